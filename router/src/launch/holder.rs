//! Who listens on a port that is taken, as far as this user may know.

use std::{fs, path::Path};

/// State of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// Most processes that are looked through.
const PROCESSES_MAX: usize = 10_000;

/// Process id and name of who listens on `port`.
pub(super) fn holder(port: u16) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inodes: Vec<String> = (tables.iter())
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, port))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let links: Vec<String> = (inodes.iter())
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().take(PROCESSES_MAX);
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if holds(&process.path(), &links) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// Inodes of the sockets of `table` that listen on `port`.
fn inodes(table: &str, port: u16) -> Vec<String> {
    let port = format!(":{port:04X}");
    let lines = table.lines().skip(1);
    let found = lines.filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (local.ends_with(&port) && *state == LISTENS).then(|| (*inode).to_owned())
    });
    found.collect()
}

/// Whether a process has one of these sockets open. Those of other users do not tell.
fn holds(process: &Path, links: &[String]) -> bool {
    let Ok(open) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    open.flatten().any(|entry| {
        let link = fs::read_link(entry.path()).ok();
        link.is_some_and(|link| {
            links
                .iter()
                .any(|wanted| link.as_os_str() == wanted.as_str())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(holder(port).unwrap().0, std::process::id());
        drop(socket);
        assert_eq!(holder(port), None);
    }
}
