//! What a person, and a script, is told once everything is up.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::console::Failure;
use crate::{cluster::gpus::GpuShare, status::WorkerStatus};

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
    /// The GPU of each local worker that has one.
    pub(super) shares: &'a BTreeMap<String, GpuShare>,
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
            write!(out, "  {head:<11} {id:<10} {role:<8} pid {pid:<8} {device}")?;
            // Its user may have sent it elsewhere.
            let share = self.shares.get(id).filter(|_| device.starts_with("cuda"));
            match share {
                Some(share) => writeln!(out, ", {:.0} % of its memory", 100.0 * share.memory)?,
                None => writeln!(out)?,
            }
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
    use crate::cluster::gpus::gpu_shares;

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
            shares: &BTreeMap::new(),
            token_file: Path::new("/tmp/dopd/join-token"),
        };
        insta::assert_snapshot!(text(&banner));
    }

    #[test]
    fn banner_tells_who_takes_how_much_of_which_gpu() {
        let names = ["prefill-0", "decode-0", "mixed-0"];
        let mut workers = names.map(|id| worker(id, "x", 1));
        for one in &mut workers[..2] {
            one.device = "cuda:0 NVIDIA H100".to_owned();
        }
        let shares = gpu_shares(2, 1, 0.9);
        let banner = Banner {
            addresses: &addresses(),
            model: "m",
            is_mock: false,
            keys: 0,
            workers: &workers,
            shares: &names.map(str::to_owned).into_iter().zip(shares).collect(),
            token_file: Path::new("/tmp/dopd/join-token"),
        };
        let text = text(&banner);
        let told = text.matches("cuda:0 NVIDIA H100, 45 % of its memory\n");
        assert_eq!(told.count(), 2, "{text}");
        assert!(text.contains(" cpu\n"), "{text}");
    }

    #[test]
    fn banner_without_workers_tells_how_to_join() {
        let banner = Banner {
            addresses: &addresses(),
            model: "mock",
            is_mock: false,
            keys: 2,
            workers: &[],
            shares: &BTreeMap::new(),
            token_file: Path::new("/tmp/dopd/join-token"),
        };
        insta::assert_snapshot!(text(&banner));
    }
}
