//! The listening sockets, all bound before anything is loaded: a port in use is known at once.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener},
};

use super::{banner::Addresses, console::Failure, holder::holder};
use crate::config::Config;

/// Connections that may wait to be accepted; the system may allow fewer. std asks for 128, and past
/// that a client's first packet is dropped, which costs it a second or more: a burst of clients is
/// no error.
const BACKLOG: i32 = 4_096;

/// One socket and its address.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `host:port`; `what` and `flag` name it in errors.
    fn bind(host: IpAddr, port: u16, what: &str, flag: &str) -> Result<Self, Failure> {
        let wanted = SocketAddr::new(host, port);
        let failed = |error: io::Error| {
            let problem = format!("cannot listen on {wanted} for {what}: {error}");
            match error.kind() {
                ErrorKind::AddrInUse => {
                    let who = match holder(port) {
                        Some((pid, name)) => format!("process {pid} ({name}) has this one"),
                        None => "`ss -ltnp`, as root, shows who has this one".to_owned(),
                    };
                    Failure::usage(problem).with_fix(format!(
                        "another {flag}, or {flag} 0 for a free port; {who}"
                    ))
                }
                ErrorKind::PermissionDenied => {
                    Failure::usage(problem).with_fix(format!("a {flag} of 1024 or above"))
                }
                _ => Failure::new(problem),
            }
        };
        // Plain bind, no SO_REUSEPORT: that would hide a port in use.
        let socket = TcpListener::bind(wanted).map_err(failed)?;
        // On a socket that listens already this only changes the number.
        rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed(errno.into()))?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Another handle on the same socket. Accepting on either takes from one queue.
    pub(super) fn another(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }
}

/// Listeners that front threads share. Whoever keeps this after they have closed theirs keeps
/// clients waiting in the backlog instead of refusing them.
#[derive(Debug)]
pub(super) struct FrontListeners {
    pub(super) http: Listener,
    pub(super) grpc: Listener,
    pub(super) workers: Listener,
}

/// All listeners of a router.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) fronts: FrontListeners,
    pub(super) admin: Listener,
}

impl Listeners {
    /// Binds them all.
    pub(super) fn bind(config: &Config) -> Result<Self, Failure> {
        let (http, workers, admin) = (&config.http, &config.workers, &config.admin);
        let fronts = FrontListeners {
            http: Listener::bind(http.host, http.port, "the OpenAI front", "--port")?,
            grpc: Listener::bind(http.host, config.grpc.port, "the gRPC front", "--grpc-port")?,
            workers: Listener::bind(workers.host, workers.port, "workers", "--worker-port")?,
        };
        let admin = Listener::bind(
            admin.host,
            admin.port,
            "metrics and admin",
            "--metrics-port",
        )?;
        Ok(Self { fronts, admin })
    }

    /// Where they listen.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            http: self.fronts.http.address,
            grpc: self.fronts.grpc.address,
            workers: self.fronts.workers.address,
            admin: self.admin.address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, TcpStream},
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_port_in_use_is_refused_with_flag_and_fix() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let first = Listener::bind(localhost, 0, "the first", "--first").unwrap();
        let port = first.address.port();
        let second = Listener::bind(localhost, port, "the OpenAI front", "--port").unwrap_err();
        let text = second.to_string().replace(&port.to_string(), "PORT");
        let (told, who) = text.split_once("; process ").unwrap();
        assert_eq!(
            told,
            "error: cannot listen on 127.0.0.1:PORT for the OpenAI front: Address already in use \
             (os error 98)\n  fix: another --port, or --port 0 for a free port"
        );
        assert!(
            who.starts_with(&format!("{} (", std::process::id())),
            "{who}"
        );
    }

    #[test]
    fn a_burst_of_clients_waits_to_be_accepted() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = Listener::bind(localhost, 0, "a test", "--test").unwrap();
        // Twice what std would let wait.
        let client = || TcpStream::connect_timeout(&listener.address, Duration::from_secs(5));
        let burst: Vec<TcpStream> = (0..256).map_while(|_| client().ok()).collect();
        assert_eq!(burst.len(), 256);
    }
}
