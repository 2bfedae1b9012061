//! What a browser is told about pages of other sites.

use std::net::SocketAddr;

use dopd_router::{
    auth::Gate,
    config::{
        KeyConfig, KeyDigest,
        records::{HttpConfig, LimitsConfig},
    },
};

use crate::{
    client::{Reply, exchange},
    fake::{Fake, with_gate},
};

const PAGE: &str = "https://chat.example.org";

/// Asks a server that allows `origins` and wants a key.
fn serve<F: Future<Output = ()>>(origins: &[&str], test: impl FnOnce(SocketAddr) -> F) {
    let config = HttpConfig {
        cors_origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
        ..HttpConfig::default()
    };
    let gate = Gate::new(&[KeyConfig::unlimited("a", KeyDigest::of(b"k"))]);
    with_gate(
        Fake::new(vec![]),
        gate,
        config,
        LimitsConfig::default(),
        test,
    );
}

async fn preflight(address: SocketAddr, origin: &str) -> Reply {
    let raw = format!(
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\n\
         access-control-request-method: POST\r\nconnection: close\r\n\
         access-control-request-headers: authorization,content-type,x-stainless-os\r\n\r\n"
    );
    exchange(address, raw.as_bytes()).await
}

async fn models(address: SocketAddr, headers: &str) -> Reply {
    let raw = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    exchange(address, raw.as_bytes()).await
}

#[test]
fn a_listed_page_may_call_and_read() {
    serve(&["http://localhost:3000", PAGE], |address| async move {
        let reply = preflight(address, PAGE).await;
        assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
        let headers = reply.header("access-control-allow-headers");
        assert_eq!(headers, Some("authorization,content-type,x-stainless-os"));
        assert_eq!(
            reply.header("access-control-allow-methods"),
            Some("GET, POST")
        );
        assert_eq!(reply.header("vary"), Some("origin"));
        let reply = models(
            address,
            &format!("origin: {PAGE}\r\nauthorization: Bearer k\r\n"),
        )
        .await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
        // It must be able to read why it was refused, too.
        let reply = models(address, &format!("origin: {PAGE}\r\n")).await;
        assert_eq!(reply.status, 401);
        assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    });
}

#[test]
fn any_other_page_learns_nothing() {
    let others = [
        "https://chat.example.org.evil.com",
        "https://chat.example.or",
        "null",
        "*",
    ];
    serve(&[PAGE], |address| async move {
        for origin in others {
            let reply = preflight(address, origin).await;
            assert_eq!(reply.status, 401, "{origin}");
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
    });
    serve(&[], |address| async move {
        assert_eq!(
            preflight(address, PAGE)
                .await
                .header("access-control-allow-origin"),
            None
        );
        let reply = models(
            address,
            &format!("origin: {PAGE}\r\nauthorization: Bearer k\r\n"),
        )
        .await;
        assert_eq!(reply.header("access-control-allow-origin"), None);
    });
}

#[test]
fn a_star_allows_every_page() {
    serve(&["*"], |address| async move {
        let reply = preflight(address, PAGE).await;
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    });
}
