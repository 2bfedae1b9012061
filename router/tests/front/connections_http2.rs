//! HTTP/2 below what a well-behaved client sends: frames are written by hand.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use dopd_router::{
    config::records::{GrpcConfig, HttpConfig, LimitsConfig},
    streams::sink::FinishReason,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client::{ask, exchange},
    fake::{Fake, Step, with_http},
    grpc,
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block without compression.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).unwrap());
            out.extend(text.as_bytes());
        }
    }
    out
}

pub(crate) fn head(method: &str, path: &str) -> Vec<u8> {
    block(&[
        (":method", method),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", path),
        ("content-type", "application/json"),
    ])
}

/// A connection that has greeted, with `settings`.
pub(crate) async fn greet(address: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let settings = frame(SETTINGS, 0, 0, settings);
    stream.write_all(&settings).await.unwrap();
    stream
}

/// The next frame: kind, flags, stream, payload. `None`: the server closed.
pub(crate) async fn next(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], id, payload))
}

/// Whether the server closes while `flood` is sent again and again.
async fn is_cut(address: SocketAddr, flood: &[u8]) -> bool {
    let mut stream = greet(address, &[]).await;
    let flooding = async {
        let mut sink = [0; 4_096];
        loop {
            if stream.write_all(flood).await.is_err() {
                return true;
            }
            // What it answers must not fill its buffers: it could not see ours then.
            while let Ok(read) = stream.try_read(&mut sink) {
                if read == 0 {
                    return true;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, flooding)
        .await
        .unwrap_or(false)
}

fn quiet() -> Fake {
    Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)])
}

fn serve<F: Future<Output = ()>>(
    fake: Fake,
    limits: LimitsConfig,
    test: impl FnOnce(SocketAddr) -> F,
) {
    with_http(fake, HttpConfig::default(), limits, test);
}

#[test]
fn floods_end_their_connection_and_nothing_else() {
    let mut continuation = frame(HEADERS, 0, 1, &head("GET", "/health"));
    for _ in 0..50 {
        continuation.extend(frame(CONTINUATION, 0, 1, &[]));
    }
    let floods = [
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("answers to pings", frame(PING, ACK, 0, &[7; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("unknown frames", frame(77, 0, 0, &[])),
        ("priorities", frame(2, 0, 1, &[0, 0, 0, 0, 9])),
        ("continuations", continuation),
    ];
    serve(quiet(), LimitsConfig::default(), |address| async move {
        for (name, flood) in floods {
            assert!(is_cut(address, &flood.repeat(20)).await, "{name}");
            assert_eq!(ask(address, "GET", "/health").await.status, 200, "{name}");
        }
    });
}

#[test]
fn rapid_resets_end_their_connection() {
    serve(quiet(), LimitsConfig::default(), |address| async move {
        let mut stream = greet(address, &[]).await;
        let flooding = async {
            let mut sink = [0; 4_096];
            for id in (1..).step_by(2) {
                let mut pair = frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    id,
                    &head("GET", "/health"),
                );
                pair.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
                if stream.write_all(&pair).await.is_err()
                    || matches!(stream.try_read(&mut sink), Ok(0))
                {
                    return id;
                }
            }
            0
        };
        let last = tokio::time::timeout(PATIENCE, flooding).await.unwrap();
        assert!((1..60_000).contains(&last), "stream {last}");
        assert_eq!(ask(address, "GET", "/health").await.status, 200);
    });
}

#[test]
fn an_answer_without_a_window_is_reset_and_its_connection_lives() {
    let limits = LimitsConfig {
        slow_reader_timeout_ms: 200,
        ..LimitsConfig::default()
    };
    serve(quiet(), limits, |address| async move {
        // SETTINGS_INITIAL_WINDOW_SIZE 0.
        let mut stream = greet(address, &[0, 4, 0, 0, 0, 0]).await;
        let body = br#"{"prompt":"x","max_tokens":2}"#;
        let mut request = frame(HEADERS, END_HEADERS, 1, &head("POST", "/v1/completions"));
        request.extend(frame(DATA, END_STREAM, 1, body));
        stream.write_all(&request).await.unwrap();
        let reset = async {
            while let Some((kind, _, id, _)) = next(&mut stream).await {
                assert!(kind != DATA && kind != GOAWAY, "frame {kind}");
                if kind == RST_STREAM {
                    return id;
                }
            }
            0
        };
        assert_eq!(tokio::time::timeout(PATIENCE, reset).await.unwrap(), 1);
        let ping = frame(PING, 0, 0, &[7; 8]);
        stream.write_all(&ping).await.unwrap();
        let answered = async {
            while let Some((kind, flags, ..)) = next(&mut stream).await {
                if kind == PING && flags == ACK {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(PATIENCE, answered).await.unwrap());
    });
}

#[test]
fn a_head_above_the_limit_is_refused() {
    serve(quiet(), LimitsConfig::default(), |address| async move {
        let mut stream = greet(address, &[]).await;
        let mut fields = head("GET", "/health");
        for _ in 0..200 {
            fields.extend(block(&[("x", &"y".repeat(100))]));
        }
        let (first, rest) = fields.split_at(16_000);
        let mut request = frame(HEADERS, END_STREAM, 1, first);
        request.extend(frame(CONTINUATION, END_HEADERS, 1, rest));
        stream.write_all(&request).await.unwrap();
        let refused = async {
            while let Some((kind, _, id, payload)) = next(&mut stream).await {
                match kind {
                    // 431 in HPACK's Huffman code.
                    HEADERS => {
                        return id == 1 && payload.windows(3).any(|b| b == [0x69, 0x90, 0xff]);
                    }
                    RST_STREAM | GOAWAY => return true,
                    _ => {}
                }
            }
            false
        };
        assert!(tokio::time::timeout(PATIENCE, refused).await.unwrap());
        assert_eq!(ask(address, "GET", "/health").await.status, 200);
    });
}

#[test]
fn an_old_connection_is_told_to_go_and_finishes_what_runs() {
    let script = vec![
        Step::Text("a"),
        Step::Gate,
        Step::Text("b"),
        Step::Finish(FinishReason::Stop),
    ];
    let fake = Fake::new(script);
    let (gate, cancelled) = (fake.gate.clone(), fake.cancelled.clone());
    let config = HttpConfig {
        connection_age_max_ms: 100,
        ..HttpConfig::default()
    };
    with_http(
        fake,
        config,
        LimitsConfig::default(),
        |address| async move {
            let mut stream = greet(address, &[]).await;
            let body = br#"{"prompt":"x","stream":true}"#;
            let mut request = frame(HEADERS, END_HEADERS, 1, &head("POST", "/v1/completions"));
            request.extend(frame(DATA, END_STREAM, 1, body));
            stream.write_all(&request).await.unwrap();
            let (mut text, mut told) = (Vec::new(), false);
            let all = async {
                while let Some((kind, _, _, payload)) = next(&mut stream).await {
                    if kind == DATA {
                        text.extend(&payload);
                    }
                    if kind == PING {
                        // hyper asks whether the client has seen its first warning.
                        let answer = frame(PING, ACK, 0, &payload);
                        stream.write_all(&answer).await.unwrap();
                    }
                    if kind == GOAWAY && !std::mem::replace(&mut told, true) {
                        gate.add_permits(1);
                    }
                }
            };
            tokio::time::timeout(PATIENCE, all).await.unwrap();
            assert!(told);
            assert!(String::from_utf8(text).unwrap().contains("data: [DONE]"));
        },
    );
    assert_eq!(cancelled.load(Ordering::Relaxed), 0);
}

#[test]
fn http_1_on_the_port_of_grpc_is_told_where_it_is() {
    grpc::serve_at(quiet(), GrpcConfig::default(), |address| async move {
        let reply = exchange(address, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(reply.status, 415);
        assert!(
            reply.body.starts_with("this port speaks gRPC"),
            "{}",
            reply.body
        );
    });
}

#[test]
fn a_deadline_ends_a_call_whose_message_never_comes() {
    grpc::serve_at(quiet(), GrpcConfig::default(), |address| async move {
        let mut stream = greet(address, &[]).await;
        let fields = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", "/dopd.v1.InferenceService/Generate"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", "50m"),
        ]);
        // A message of ten bytes is announced, three come.
        let mut request = frame(HEADERS, END_HEADERS, 1, &fields);
        request.extend(frame(DATA, 0, 1, &[0, 0, 0, 0, 10, 1, 2, 3]));
        stream.write_all(&request).await.unwrap();
        let ended = async {
            while let Some((kind, flags, id, _)) = next(&mut stream).await {
                if kind == HEADERS {
                    return (id, flags & END_STREAM);
                }
            }
            (0, 0)
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
        assert_eq!(ended, (1, END_STREAM));
    });
}
