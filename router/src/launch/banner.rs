//! What a person, and a script, is told once everything is up.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::console::Failure;
use crate::status::WorkerStatus;

/// The addresses of a running router.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) workers: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// What the banner shows besides addresses.
#[derive(Clone, Debug)]
pub(super) struct Banner<'a> {
    pub(super) addresses: &'a Addresses,
    pub(super) model: &'a str,
    pub(super) is_mock: bool,
    /// API keys that are accepted; 0: nobody is asked for one.
    pub(super) keys: usize,
    pub(super) workers: &'a [WorkerStatus],
    pub(super) token_file: &'a Path,
}

impl Banner<'_> {
    /// The text, without a last newline.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Addresses {
            http,
            grpc,
            workers,
            admin,
        } = self.addresses;
        let http = reachable(*http);
        writeln!(
            out,
            "dopd {} serves {}",
            env!("CARGO_PKG_VERSION"),
            self.model
        )?;
        if self.is_mock {
            writeln!(
                out,
                "  simulated   workers make up their tokens; no model is loaded"
            )?;
        }
        writeln!(out, "  OpenAI      http://{http}/v1")?;
        let grpc = reachable(*grpc);
        writeln!(
            out,
            "  gRPC        {grpc}, in Python dopd.Client(\"{grpc}\")"
        )?;
        writeln!(out, "  metrics     http://{admin}/metrics, /status")?;
        match self.keys {
            0 => writeln!(
                out,
                "  keys        none asked for; --api-key KEY asks for one"
            )?,
            1 => writeln!(
                out,
                "  keys        1; clients send `authorization: Bearer KEY`"
            )?,
            count => writeln!(
                out,
                "  keys        {count}; clients send `authorization: Bearer KEY`"
            )?,
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let head = if index == 0 { "workers" } else { "" };
            let WorkerStatus {
                id,
                role,
                pid,
                device,
                ..
            } = worker;
            writeln!(out, "  {head:<11} {id:<10} {role:<8} pid {pid:<8} {device}")?;
        }
        if self.workers.is_empty() {
            let file = self.token_file.display();
            writeln!(out, "  workers     join at {workers}, for example")?;
            writeln!(
                out,
                "    dopd worker MODEL --role mixed --join {workers} --join-token-file {file}"
            )?;
        }
        self.curl(out, http)?;
        write!(out, "\nCtrl-C stops")
    }

    /// A line to paste.
    fn curl(&self, out: &mut String, http: SocketAddr) -> std::fmt::Result {
        writeln!(out)?;
        writeln!(
            out,
            "  curl -N http://{http}/v1/chat/completions -H 'content-type: application/json' \\"
        )?;
        if self.keys > 0 {
            writeln!(out, "    -H \"authorization: Bearer $DOPD_API_KEY\" \\")?;
        }
        let body = serde_json::json!({
            "model": self.model,
            "stream": true,
            "temperature": 0,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        });
        writeln!(out, "    -d '{}'", body.to_string().replace('\'', "'\\''"))
    }
}

/// An address that a client on this machine can dial: "any" becomes loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
        }
        _ => address,
    }
}

#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    http: String,
    grpc: String,
    workers: String,
    admin: String,
    join_token_file: &'a Path,
    model: &'a str,
}

/// The ready file; removed when dropped.
#[derive(Debug)]
pub(super) struct ReadyFile(PathBuf);

impl ReadyFile {
    /// Writes it in one step: a reader sees nothing or all of it.
    pub(super) fn write(path: &Path, banner: &Banner<'_>) -> Result<Self, Failure> {
        let addresses = banner.addresses;
        let ready = Ready {
            pid: std::process::id(),
            http: addresses.http.to_string(),
            grpc: addresses.grpc.to_string(),
            workers: addresses.workers.to_string(),
            admin: addresses.admin.to_string(),
            join_token_file: banner.token_file,
            model: banner.model,
        };
        let mut draft = path.as_os_str().to_owned();
        draft.push(".draft");
        let text = serde_json::to_string(&ready).map_err(Failure::new)?;
        fs::write(&draft, text + "\n")
            .and_then(|()| fs::rename(&draft, path))
            .map_err(|error| {
                Failure::new(format!(
                    "cannot write the ready file {}: {error}",
                    path.display()
                ))
            })?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("cannot remove the ready file {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, role: &str, pid: u32) -> WorkerStatus {
        WorkerStatus {
            id: id.to_owned(),
            role: role.to_owned(),
            device: "cpu".to_owned(),
            pid,
            ..WorkerStatus::default()
        }
    }

    fn addresses() -> Addresses {
        let [http, grpc, workers, admin] = [
            "0.0.0.0:8000",
            "0.0.0.0:50051",
            "127.0.0.1:50052",
            "127.0.0.1:9464",
        ]
        .map(|address| address.parse().unwrap());
        Addresses {
            http,
            grpc,
            workers,
            admin,
        }
    }

    fn text(banner: &Banner<'_>) -> String {
        banner.text().replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }

    #[test]
    fn banner_with_workers() {
        let banner = Banner {
            addresses: &addresses(),
            model: "it's",
            is_mock: true,
            keys: 0,
            workers: &[
                worker("prefill-0", "prefill", 12),
                worker("decode-0", "decode", 1_234_567),
            ],
            token_file: Path::new("/tmp/dopd/join-token"),
        };
        insta::assert_snapshot!(text(&banner));
    }

    #[test]
    fn banner_without_workers_tells_how_to_join() {
        let banner = Banner {
            addresses: &addresses(),
            model: "mock",
            is_mock: false,
            keys: 2,
            workers: &[],
            token_file: Path::new("/tmp/dopd/join-token"),
        };
        insta::assert_snapshot!(text(&banner));
    }
}
