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

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Its first bytes are not HTTP/2's.
    Http1,
    /// The whole preface came.
    Http2,
}

/// The greeting, if the whole preface of HTTP/2, or a byte that is not of it, comes within
/// `patience`. Takes nothing out of the stream.
pub(crate) async fn arrives(stream: &TcpStream, patience: Duration) -> Option<Greeting> {
    let greeting = async {
        let mut seen = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut seen).await {
                Ok(0) | Err(_) => return None,
                Ok(count) if !PREFACE.starts_with(&seen[..count]) => return Some(Greeting::Http1),
                Ok(count) if count == seen.len() => return Some(Greeting::Http2),
                Ok(_) => sleep(LOOK_AGAIN).await,
            }
        }
    };
    timeout(patience, greeting).await.unwrap_or(None)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// What is said of a connection whose client sends `pieces`, cut at each bar, and then nothing.
    async fn verdict(pieces: &str, patience: Duration) -> Option<Greeting> {
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
            assert_eq!(verdict(pieces, soon).await, None, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_preface_or_anything_else_is_a_greeting() {
        let late = Duration::from_secs(20);
        for pieces in ["G", "P|OST", "PRI * HTTP/1.1"] {
            let verdict = verdict(pieces, late).await;
            assert_eq!(verdict, Some(Greeting::Http1), "{pieces:?}");
        }
        let preface = "PRI *| HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(verdict(preface, late).await, Some(Greeting::Http2));
    }
}
