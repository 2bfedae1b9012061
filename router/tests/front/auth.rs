//! Keys and quotas, on both fronts: what is closed, what is open, and how a quota ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dopd_router::{
    auth::{Door, Gate},
    config::{
        KeyConfig, KeyDigest,
        records::{GrpcConfig, HttpConfig, LimitsConfig},
    },
    streams::sink::FinishReason,
    wire::{
        DESCRIPTORS,
        v1::{GenerateRequest, GenerateResponse, inference_service_client::InferenceServiceClient},
    },
};
use parking_lot::Mutex;
use prost::Message as _;
use tonic::{
    Code, Request, Status, codegen::http::uri::PathAndQuery, metadata::MetadataValue,
    transport::Channel,
};
use tonic_types::StatusExt;

use crate::{
    client::{Reply, exchange},
    fake::{self, Fake, Step},
    grpc,
    grpc_methods::reason,
};

const KEY: &str = "sk-only-for-this-test";

/// Every route with a method that it takes. That they exist is checked below.
const ROUTES: &[(&str, &str)] = &[
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/mock"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("GET", "/version"),
];

/// No routes, and ways to write an open one that are not it.
const STRANGE: &[&str] = &[
    "/",
    "//",
    "*",
    "/v1",
    "/nothing",
    "/admin",
    "//health",
    "/health/",
    "/health/..;/v1/models",
    "/health/../v1/models",
    "/health%2f..%2fv1/models",
    "/%68ealth",
    "/HEALTH",
    "/ready;x",
    "/v1/models?x=/health",
    "http://x/v1/models",
    "http://health/v1/models",
];

fn key(change: impl FnOnce(&mut KeyConfig)) -> Gate {
    let mut key = KeyConfig::unlimited("team", KeyDigest::of(KEY.as_bytes()));
    change(&mut key);
    Gate::new(&[key])
}

fn answers() -> Fake {
    Fake::new(vec![Step::Text("ab"), Step::Finish(FinishReason::Stop)])
}

/// Asks with `authorization`; a POST has a small prompt.
async fn ask(address: std::net::SocketAddr, method: &str, path: &str, sent: &str) -> Reply {
    let body = match method {
        "POST" if path.contains("chat") => {
            r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":10}"#
        }
        "POST" => r#"{"prompt":"hi","max_tokens":10}"#,
        _ => "",
    };
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n{sent}\r\n{body}",
        body.len()
    );
    exchange(address, raw.as_bytes()).await
}

fn with_key(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

fn http<F: Future<Output = ()>>(gate: Gate, test: impl FnOnce(std::net::SocketAddr) -> F) {
    let limits = LimitsConfig::default();
    fake::with_gate(answers(), gate, HttpConfig::default(), limits, test);
}

#[test]
fn no_route_of_http_answers_without_a_key() {
    http(key(|_| ()), |address| async move {
        let methods = [
            "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE",
        ];
        let known = ROUTES.iter().map(|(_, path)| *path);
        for path in known.chain(STRANGE.iter().copied()) {
            for method in methods {
                let reply = ask(address, method, path, "").await;
                assert_eq!(reply.status, 401, "{method} {path}");
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                assert_eq!(reply.header("x-should-retry"), Some("false"));
                let told = method == "HEAD" || reply.body.contains(r#""code":"unauthenticated""#);
                assert!(told, "{}", reply.body);
            }
        }
        for wrong in ["", "x", "sk-only-for-this-tesT", "sk-only-for-this-test2"] {
            let reply = ask(address, "GET", "/v1/models", &with_key(wrong)).await;
            assert_eq!(reply.status, 401, "{wrong:?}");
            assert!(!reply.body.contains("sk-"), "{}", reply.body);
        }
        for path in Door::Http.open_paths() {
            assert_eq!(ask(address, "GET", path, "").await.status, 200, "{path}");
        }
        for (method, path) in ROUTES {
            let reply = ask(address, method, path, &with_key(KEY)).await;
            assert_eq!(reply.status, 200, "{method} {path}: {}", reply.body);
        }
    });
}

/// Every method of every service that this program can serve.
fn methods() -> Vec<String> {
    let ours = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let health = tonic_health::pb::FILE_DESCRIPTOR_SET;
    let health = prost_types::FileDescriptorSet::decode(health).unwrap();
    let mut all: Vec<String> = ["v1", "v1alpha"]
        .map(|version| format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"))
        .into();
    for file in ours.file.iter().chain(&health.file) {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                all.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    all
}

/// What a call of `path` with nothing but an empty message comes to.
async fn call(channel: Channel, path: &str, key: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = Request::new(futures_util::stream::iter([GenerateRequest::default()]));
    if let Some(key) = key {
        let value = MetadataValue::try_from(format!("Bearer {key}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let codec: tonic_prost::ProstCodec<GenerateRequest, GenerateResponse> =
        tonic_prost::ProstCodec::default();
    let path = PathAndQuery::try_from(path).unwrap();
    client.streaming(request, path, codec).await.map(|_| ())
}

#[test]
fn no_method_of_grpc_answers_without_a_key() {
    let config = GrpcConfig::default();
    grpc::with_gate(answers(), key(|_| ()), config, |channel| async move {
        let methods = methods();
        assert!(methods.len() > 10, "{methods:?}");
        let strange = [
            "/",
            "/x",
            "/grpc.health.v1.Health/check",
            "/grpc.health.v1.Health/",
        ];
        let paths = methods.iter().map(String::as_str).chain(strange);
        for path in paths {
            let refused = call(channel.clone(), path, None).await;
            if Door::Grpc.open_paths().contains(&path) {
                assert!(refused.is_ok(), "{path}: {refused:?}");
                continue;
            }
            for sent in [None, Some("x")] {
                let status = call(channel.clone(), path, sent).await.unwrap_err();
                assert_eq!(status.code(), Code::Unauthenticated, "{path}");
                assert_eq!(reason(&status).0, "unauthenticated");
            }
            let known = call(channel.clone(), path, Some(KEY)).await;
            let code = known.err().map(|status| status.code());
            assert_ne!(code, Some(Code::Unauthenticated), "{path}");
        }
    });
}

#[test]
fn the_callers_tenant_goes_with_the_request() {
    let fake = answers();
    let seen = fake.seen.clone();
    let gate = key(|key| key.tenant = "chemistry".to_owned());
    let (config, limits) = (HttpConfig::default(), LimitsConfig::default());
    fake::with_gate(fake, gate, config, limits, |address| async move {
        ask(address, "POST", "/v1/completions", &with_key(KEY)).await;
    });
    assert_eq!(&*seen.lock()[0].tenant, "chemistry");
}

#[test]
fn a_quota_of_requests_ends_with_429_and_says_when() {
    let gate = key(|key| key.requests_per_minute = Some(2));
    http(gate, |address| async move {
        let mut told = Vec::new();
        for _ in 0..3 {
            let reply = ask(address, "POST", "/v1/completions", &with_key(KEY)).await;
            let remaining = reply.header("x-ratelimit-remaining-requests");
            told.push((reply.status, remaining.unwrap().to_owned()));
            assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("2"));
            assert_eq!(reply.header("x-ratelimit-limit-tokens"), None);
            if reply.status == 429 {
                let wait: u64 = reply.header("retry-after-ms").unwrap().parse().unwrap();
                assert!((1..=30_000).contains(&wait), "{wait}");
                assert!(reply.body.contains("rate_limit"), "{}", reply.body);
            }
        }
        let expected = [(200, "1"), (200, "0"), (429, "0")];
        assert_eq!(
            told,
            expected.map(|(status, left)| (status, left.to_owned()))
        );
        // Looking costs nothing.
        let looked = ask(address, "GET", "/v1/models", &with_key(KEY)).await;
        assert_eq!(looked.status, 200);
    });
}

#[test]
fn unused_tokens_come_back() {
    let gate = key(|key| key.tokens_per_minute = Some(20));
    http(gate, |address| async move {
        // Two of prompt, ten allowed, two used: 16 of 20 are left, where 12 would not do.
        for (left, status) in [("16", 200), ("12", 200), ("8", 200), ("8", 429)] {
            let reply = ask(address, "POST", "/v1/completions", &with_key(KEY)).await;
            assert_eq!(reply.status, status, "{}", reply.body);
            let remaining = reply.header("x-ratelimit-remaining-tokens");
            // It may have filled by one since.
            let remaining: u32 = remaining.unwrap().parse().unwrap();
            let least: u32 = left.parse().unwrap();
            assert!((least..=least + 1).contains(&remaining), "{remaining}");
        }
    });
}

#[test]
fn a_quota_of_places_is_told_to_grpc_too() {
    let fake = Fake::new(vec![
        Step::Text("a"),
        Step::Gate,
        Step::Finish(FinishReason::Stop),
    ]);
    let gate = key(|key| key.requests_running_max = Some(1));
    let open = fake.gate.clone();
    grpc::with_gate(fake, gate, GrpcConfig::default(), |channel| async move {
        let request = || {
            let mut request = Request::new(grpc::text("hi"));
            let value = MetadataValue::try_from(format!("Bearer {KEY}")).unwrap();
            request.metadata_mut().insert("authorization", value);
            request
        };
        let mut client = InferenceServiceClient::new(channel);
        let first = client.generate(request()).await.unwrap();
        let status = client.generate(request()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(reason(&status).0, "rate_limited");
        let details = status.get_error_details();
        let violation = &details.quota_failure().unwrap().violations[0];
        assert_eq!(
            violation.description,
            "1 requests of key \"team\" are running, at most 1"
        );
        open.add_permits(1);
        let mut first = first.into_inner();
        while first.message().await.unwrap().is_some() {}
        open.add_permits(1);
        client.generate(request()).await.unwrap();
    });
}

/// Fields of the log's lines that this thread writes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The log goes here until the guard is dropped.
    fn catch(&self) -> tracing::subscriber::DefaultGuard {
        let lines = self.clone();
        let log = tracing_subscriber::fmt().json();
        tracing::subscriber::set_default(log.with_writer(move || lines.clone()).finish())
    }

    /// The refusal that was logged, if one was since the last call: so many a second are.
    fn refusal(&self) -> Option<serde_json::Value> {
        let bytes = std::mem::take(&mut *self.0.lock());
        let text = String::from_utf8(bytes).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .find(|line: &serde_json::Value| line["fields"]["message"] == "request refused")
            .map(|mut line| line["fields"].take())
    }
}

/// All tests of this program share the bound on logged refusals, which ends after a second.
const LOGGED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_request_over_its_quota_is_logged_under_the_id_that_http_tells() {
    let lines = Lines::default();
    let _guard = lines.catch();
    let gate = key(|key| key.requests_per_minute = Some(1));
    http(gate, |address| async move {
        let sent = with_key(KEY) + "x-client-request-id: mine\r\n";
        let ask = || ask(address, "POST", "/v1/completions", &sent);
        assert_eq!(ask().await.status, 200);
        let until = Instant::now() + LOGGED_WITHIN;
        let (reply, logged) = loop {
            let reply = ask().await;
            assert_eq!(reply.status, 429);
            if let Some(logged) = lines.refusal() {
                break (reply, logged);
            }
            assert!(Instant::now() < until, "no refusal was logged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(logged["code"], "rate_limited");
        assert_eq!(reply.header("x-request-id").unwrap(), logged["id"]);
        assert_eq!(logged["client_id"], "mine");
    });
}

#[test]
fn a_request_over_its_quota_is_logged_under_the_id_that_grpc_tells() {
    let lines = Lines::default();
    let _guard = lines.catch();
    let gate = key(|key| key.requests_per_minute = Some(1));
    grpc::with_gate(
        answers(),
        gate,
        GrpcConfig::default(),
        |channel| async move {
            let mut client = InferenceServiceClient::new(channel);
            let mut ask = async || {
                let mut request = Request::new(grpc::text("hi"));
                let value = MetadataValue::try_from(format!("Bearer {KEY}")).unwrap();
                request.metadata_mut().insert("authorization", value);
                client.generate(request).await
            };
            assert!(ask().await.is_ok());
            let until = Instant::now() + LOGGED_WITHIN;
            let (status, logged) = loop {
                let status = ask().await.unwrap_err();
                assert_eq!(reason(&status).0, "rate_limited");
                if let Some(logged) = lines.refusal() {
                    break (status, logged);
                }
                assert!(Instant::now() < until, "no refusal was logged");
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            let details = status.get_error_details();
            let told = details.request_info().unwrap();
            assert_eq!(told.request_id, logged["id"]);
        },
    );
}
