//! Connections: how many, and how they end.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

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
    client::{ask, open},
    fake::{Fake, Step, service, with_http},
};

const STREAM: &str = r#"{"prompt":"x","stream":true}"#;

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_connection_over_the_limit_is_closed_at_once() {
    let config = HttpConfig {
        connections_max: 1,
        ..HttpConfig::default()
    };
    let fake = Fake::new(vec![Step::Text("a"), Step::Gate]);
    with_http(
        fake,
        config,
        LimitsConfig::default(),
        |address| async move {
            let (first, _) = open(address, STREAM, "\"text\":\"a\"").await;
            assert_eq!(rest(TcpStream::connect(address).await.unwrap()).await, "");
            drop(first);
            // Its place is free again once the server has seen it go.
            let served = async {
                while ask(address, "GET", "/health").await.status != 200 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), served)
                .await
                .unwrap();
        },
    );
}

#[test]
fn a_stop_finishes_what_runs_and_takes_nothing_new() {
    let script = vec![
        Step::Text("a"),
        Step::Gate,
        Step::Text("b"),
        Step::Finish(FinishReason::Stop),
    ];
    let fake = Fake::new(script);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let stop = Stop::default();
        let service = service(fake.clone(), LimitsConfig::default());
        let config = HttpConfig::default();
        let server =
            dopd_router::http::serve(listener, service, Arc::default(), config, stop.clone());
        let server = tokio::task::spawn_local(server);
        let idle = TcpStream::connect(address).await.unwrap();
        let (running, _) = open(address, STREAM, "\"text\":\"a\"").await;
        stop.end.cancel();
        assert_eq!(rest(idle).await, "", "an idle connection is closed");
        assert!(TcpStream::connect(address).await.is_err());
        assert!(!server.is_finished());
        fake.gate.add_permits(1);
        assert!(rest(running).await.contains("data: [DONE]"));
        server.await.unwrap();
    });
    assert_eq!(fake.cancelled.load(Ordering::Relaxed), 0);
}

#[test]
fn a_client_that_never_reads_is_cut() {
    // More than socket buffers hold: the server is left with a write that cannot go on.
    let line: &str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    let mut script = vec![Step::Text(line); 16];
    script.push(Step::Gate);
    let fake = Fake::new(script);
    let cancelled = fake.cancelled.clone();
    let limits = LimitsConfig {
        slow_reader_timeout_ms: 100,
        ..LimitsConfig::default()
    };
    with_http(fake, HttpConfig::default(), limits, |address| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{STREAM}",
            STREAM.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let cut = async {
            while cancelled.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), cut)
            .await
            .unwrap();
        drop(stream);
    });
}

#[test]
fn a_head_that_does_not_come_is_cut() {
    let config = HttpConfig {
        read_timeout_ms: 50,
        ..HttpConfig::default()
    };
    with_http(
        Fake::new(vec![]),
        config,
        LimitsConfig::default(),
        |address| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"POST /v1/comp").await.unwrap();
            let cut = tokio::time::timeout(Duration::from_secs(10), rest(stream)).await;
            assert!(!cut.unwrap().contains("200"));
        },
    );
}

#[test]
fn a_connection_that_does_not_greet_is_cut() {
    let config = HttpConfig {
        read_timeout_ms: 50,
        ..HttpConfig::default()
    };
    with_http(
        Fake::new(vec![]),
        config,
        LimitsConfig::default(),
        |address| async move {
            for start in ["", "P", "PRI * HTTP/2.0\r\n"] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(start.as_bytes()).await.unwrap();
                let cut = tokio::time::timeout(Duration::from_secs(10), rest(stream)).await;
                assert_eq!(cut.as_deref(), Ok(""), "{start:?}");
            }
        },
    );
}
