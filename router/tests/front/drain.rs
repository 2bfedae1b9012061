//! What clients see of a router that drains: the port is open, and everybody is told to go.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use dopd_router::{
    config::records::{HttpConfig, LimitsConfig},
    drain::Stop,
    streams::sink::FinishReason,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use crate::{
    client::open,
    connections_http2::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, frame, greet, head, next},
    fake::{Fake, Step, service},
};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
const STREAM: &str = r#"{"prompt":"x","stream":true}"#;

/// Runs `test` beside a server; ends it and waits until its connections have ended.
fn with_stop<F: Future<Output = ()>>(fake: Fake, test: impl FnOnce(SocketAddr, Stop) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, config) = (Stop::default(), HttpConfig::default());
        let service = service(fake, LimitsConfig::default());
        let server =
            dopd_router::http::serve(listener, service, Arc::default(), config, stop.clone());
        let server = tokio::task::spawn_local(server);
        test(address, stop.clone()).await;
        stop.end.cancel();
        tokio::time::timeout(PATIENCE, server)
            .await
            .unwrap()
            .unwrap();
    });
}

/// The next answer without a body of unknown length; `None`: the server closed.
async fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    let mut buffer = [0; 4_096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mark = "content-length: ";
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix(mark))
                .unwrap();
            if body.len() >= length.parse().unwrap() {
                return Some(text);
            }
        }
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer));
        match read.await.unwrap() {
            Ok(0) | Err(_) => return None,
            Ok(read) => text.push_str(&String::from_utf8_lossy(&buffer[..read])),
        }
    }
}

#[test]
fn http_1_hears_it_with_its_next_answer() {
    with_stop(Fake::new(vec![]), |address, stop| async move {
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(ASK).await.unwrap();
        assert!(
            !answer(&mut idle)
                .await
                .unwrap()
                .contains("connection: close")
        );
        stop.drain.cancel();
        let mut late = TcpStream::connect(address).await.unwrap();
        for stream in [&mut idle, &mut late] {
            stream.write_all(ASK).await.unwrap();
            let last = answer(stream).await.unwrap();
            assert!(last.contains("connection: close"), "{last}");
            assert_eq!(answer(stream).await, None, "and it is closed");
        }
    });
}

#[test]
fn http_2_hears_it_at_once_or_with_its_first_answer() {
    with_stop(Fake::new(vec![]), |address, stop| async move {
        let mut idle = greet(address, &[]).await;
        next(&mut idle).await.unwrap();
        stop.drain.cancel();
        until(&mut idle, &[GOAWAY]).await;
        let mut late = greet(address, &[]).await;
        let ask = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &head("GET", "/health"),
        );
        late.write_all(&ask).await.unwrap();
        until(&mut late, &[HEADERS, DATA, GOAWAY]).await;
    });
}

/// Reads until a frame of each of these kinds has come.
async fn until(stream: &mut TcpStream, kinds: &[u8]) {
    let mut missing = kinds.to_vec();
    while !missing.is_empty() {
        let frame = tokio::time::timeout(PATIENCE, next(stream)).await;
        let (kind, ..) = frame.unwrap().unwrap();
        missing.retain(|&wanted| wanted != kind);
    }
}

#[test]
fn what_runs_goes_on_and_the_end_waits_for_it() {
    let script = vec![
        Step::Text("a"),
        Step::Gate,
        Step::Text("b"),
        Step::Finish(FinishReason::Stop),
    ];
    let fake = Fake::new(script);
    let gate = fake.gate.clone();
    with_stop(fake, |address, stop| async move {
        let (mut running, _) = open(address, STREAM, "\"text\":\"a\"").await;
        stop.drain.cancel();
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(ASK).await.unwrap();
        assert!(answer(&mut late).await.is_some(), "the port is open");
        stop.end.cancel();
        gate.add_permits(1);
        let mut rest = String::new();
        let read = running.read_to_string(&mut rest);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(rest.contains("data: [DONE]"), "{rest}");
        assert!(
            TcpStream::connect(address).await.is_err(),
            "the port is closed"
        );
    });
}
