//! Waits for the first bytes of a connection: the time-outs of hyper begin behind them.
//!
//! Without it a client that connects and says nothing, or half of HTTP/2's preface, would keep its
//! place for ever. Called by `listen` and by `workers` for each new connection.

use std::time::Duration;

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// First bytes of a client of HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause before a part of the preface is looked at again: unread bytes wake at once.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Whether the whole preface of HTTP/2, or a byte that is not of it, came within `patience`. Takes
/// nothing out of the stream.
pub(crate) async fn arrives(stream: &TcpStream, patience: Duration) -> bool {
    let greeting = async {
        let mut seen = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut seen).await {
                Ok(0) | Err(_) => return false,
                Ok(count) if count == seen.len() || !PREFACE.starts_with(&seen[..count]) => {
                    return true;
                }
                Ok(_) => sleep(LOOK_AGAIN).await,
            }
        }
    };
    timeout(patience, greeting).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// What is said of a connection whose client sends `pieces`, cut at each bar, and then nothing.
    async fn verdict(pieces: &str, patience: Duration) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let send = async {
            for piece in pieces.split('|') {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(arrives(&server, patience), send).0
    }

    #[tokio::test]
    async fn silence_and_half_a_preface_are_no_greeting() {
        let soon = Duration::from_millis(50);
        for pieces in ["", "P", "PRI * HTTP/2.0|\r\n"] {
            assert!(!verdict(pieces, soon).await, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_preface_or_anything_else_is_a_greeting() {
        let late = Duration::from_secs(20);
        for pieces in ["PRI *| HTTP/2.0\r\n\r\nSM\r\n\r\n", "G", "P|OST"] {
            assert!(verdict(pieces, late).await, "{pieces:?}");
        }
    }
}
