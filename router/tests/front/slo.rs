//! Latency targets on their way in: a field, a header, metadata or a key, on both fronts.

use std::net::SocketAddr;

use dopd_core::{request::Slo, units::Micros};
use dopd_router::{
    auth::Gate,
    config::{
        KeyConfig, KeyDigest,
        records::{GrpcConfig, HttpConfig, LimitsConfig},
    },
    streams::sink::FinishReason,
    wire::v1::{AnswerOptions, GenerateRequest, inference_service_client::InferenceServiceClient},
};
use tonic::{Code, Request, transport::Channel};

use crate::{
    client::{Reply, exchange},
    fake::{self, Fake, Step},
    grpc,
};

const KEY: &str = "k";

fn answers() -> Fake {
    Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)])
}

fn gate() -> Gate {
    let key = KeyConfig {
        slo_ttft_ms: Some(900),
        slo_tpot_ms: Some(90),
        weight: 7,
        ..KeyConfig::unlimited("team", KeyDigest::of(KEY.as_bytes()))
    };
    Gate::new(&[key])
}

fn millis(ttft: u64, tpot: u64) -> Slo {
    Slo {
        ttft: Some(Micros::from_millis(ttft)),
        tpot: Some(Micros::from_millis(tpot)),
    }
}

async fn post(address: SocketAddr, headers: &str, fields: &str) -> Reply {
    let body = format!(r#"{{"prompt":"xyz"{fields}}}"#);
    let raw = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    exchange(address, raw.as_bytes()).await
}

#[test]
fn a_field_goes_before_a_header_and_that_before_the_key() {
    const TTFT: &str = "x-slo-ttft-ms: 500\r\n";
    const BOTH: &str = "x-slo-ttft-ms: 500\r\nX-SLO-TPOT-MS: 50\r\n";
    let rows = [
        ("", "", millis(900, 90)),
        (TTFT, "", millis(500, 90)),
        (BOTH, "", millis(500, 50)),
        (BOTH, r#","slo_ttft_ms":300"#, millis(300, 50)),
        ("", r#","slo_tpot_ms":30"#, millis(900, 30)),
        (TTFT, r#","slo_ttft_ms":null"#, millis(500, 90)),
    ];
    let fake = answers();
    let seen = fake.seen.clone();
    let (config, limits) = (HttpConfig::default(), LimitsConfig::default());
    fake::with_gate(fake, gate(), config, limits, |address| async move {
        for (headers, fields, _) in rows {
            let reply = post(address, headers, fields).await;
            assert_eq!(reply.status, 200, "{headers}{fields}: {}", reply.body);
        }
    });
    let expected: Vec<(Slo, u32)> = rows.iter().map(|row| (row.2, 7)).collect();
    let found: Vec<(Slo, u32)> = seen.lock().iter().map(|s| (s.slo, s.weight)).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_header_that_is_no_target_is_refused_by_name() {
    let (config, limits) = (HttpConfig::default(), LimitsConfig::default());
    fake::with_gate(answers(), gate(), config, limits, |address| async move {
        for wrong in ["0", "-5", "1.5", "soon", "86400001"] {
            let reply = post(address, &format!("x-slo-tpot-ms: {wrong}\r\n"), "").await;
            assert_eq!(reply.status, 400, "{wrong}");
            let names = r#""param":"x-slo-tpot-ms""#;
            assert!(reply.body.contains(names), "{wrong}: {}", reply.body);
        }
    });
}

/// 100 and 20 ms for all, 50 ms to the first token for the key.
fn bounded() -> (Gate, LimitsConfig) {
    let key = KeyConfig {
        slo_ttft_ms_min: Some(50),
        ..KeyConfig::unlimited("team", KeyDigest::of(KEY.as_bytes()))
    };
    let limits = LimitsConfig {
        slo_ttft_ms_min: 100,
        slo_tpot_ms_min: 20,
        ..LimitsConfig::default()
    };
    (Gate::new(&[key]), limits)
}

#[test]
fn less_than_the_least_target_is_refused_whichever_way_it_comes() {
    const HEAD: &str = "x-slo-ttft-ms: 49\r\n";
    let rows = [
        ("x-slo-ttft-ms: 50\r\n", "", None),
        (
            HEAD,
            "",
            Some(("x-slo-ttft-ms", "50 (slo_ttft_ms_min of the key)")),
        ),
        (HEAD, r#","slo_ttft_ms":50"#, None),
        (
            "",
            r#","slo_ttft_ms":49"#,
            Some(("slo_ttft_ms", "50 (slo_ttft_ms_min of the key)")),
        ),
        (
            "x-slo-tpot-ms: 19\r\n",
            "",
            Some(("x-slo-tpot-ms", "20 (limits.slo_tpot_ms_min)")),
        ),
        (
            "",
            r#","slo_tpot_ms":19"#,
            Some(("slo_tpot_ms", "20 (limits.slo_tpot_ms_min)")),
        ),
        ("", r#","slo_tpot_ms":20"#, None),
    ];
    let ((gate, limits), config) = (bounded(), HttpConfig::default());
    fake::with_gate(answers(), gate, config, limits, |address| async move {
        for (headers, fields, refused) in rows {
            let reply = post(address, headers, fields).await;
            let Some((name, least)) = refused else {
                assert_eq!(reply.status, 200, "{headers}{fields}: {}", reply.body);
                continue;
            };
            assert_eq!(reply.status, 400, "{headers}{fields}");
            assert!(reply.body.contains(&below(name, least)), "{}", reply.body);
            let param = format!(r#""param":"{name}""#);
            assert!(reply.body.contains(&param), "{}", reply.body);
        }
    });
}

fn below(name: &str, least: &str) -> String {
    let asked = if name.contains("ttft") { 49 } else { 19 };
    format!("{name} is {asked}, the least that may be asked for is {least}")
}

#[test]
fn less_than_the_least_target_is_refused_by_the_other_front_alike() {
    let ((gate, limits), config) = (bounded(), GrpcConfig::default());
    grpc::at(answers(), gate, config, limits, |address| async move {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.connect().await.unwrap();
        for (ttft, tpot, refused) in [
            ("50", Some(20), None),
            (
                "49",
                None,
                Some(("x-slo-ttft-ms", "50 (slo_ttft_ms_min of the key)")),
            ),
            (
                "50",
                Some(19),
                Some(("slo_tpot_ms", "20 (limits.slo_tpot_ms_min)")),
            ),
        ] {
            let options = AnswerOptions {
                slo_tpot_ms: tpot,
                ..AnswerOptions::default()
            };
            let mut request = Request::new(GenerateRequest {
                options: Some(options),
                ..grpc::text("xyz")
            });
            let metadata = request.metadata_mut();
            metadata.insert("authorization", "Bearer k".parse().unwrap());
            metadata.insert("x-slo-ttft-ms", ttft.parse().unwrap());
            let mut client = InferenceServiceClient::new(channel.clone());
            let answer = client.generate(request).await.err();
            let told = answer.map(|status| (status.code(), status.message().to_owned()));
            let expected = refused.map(|(name, least)| (Code::InvalidArgument, below(name, least)));
            assert_eq!(told, expected);
        }
    });
}

#[test]
fn metadata_is_what_headers_are() {
    let fake = answers();
    let seen = fake.seen.clone();
    grpc::with_gate(fake, gate(), GrpcConfig::default(), |channel| async move {
        let call = |ttft: &'static str, field: Option<u32>| {
            let options = AnswerOptions {
                slo_ttft_ms: field,
                ..AnswerOptions::default()
            };
            let mut request = Request::new(GenerateRequest {
                options: Some(options),
                ..grpc::text("xyz")
            });
            let metadata = request.metadata_mut();
            metadata.insert("authorization", "Bearer k".parse().unwrap());
            metadata.insert("x-slo-ttft-ms", ttft.parse().unwrap());
            let channel = channel.clone();
            async move { InferenceServiceClient::new(channel).generate(request).await }
        };
        call("500", None).await.unwrap();
        call("500", Some(300)).await.unwrap();
        let refused = call("soon", None).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("x-slo-ttft-ms"), "{refused}");
    });
    let found: Vec<Slo> = seen.lock().iter().map(|seen| seen.slo).collect();
    assert_eq!(found, [millis(500, 90), millis(300, 90)]);
}
