//! Answers as events: order, stop strings, errors on the way, cancels, slow readers.

use std::{sync::atomic::Ordering, time::Duration};

use dopd_router::{
    config::records::{HttpConfig, LimitsConfig},
    error::{Error, Reason},
    streams::sink::FinishReason,
};
use tokio::io::AsyncReadExt;

use crate::{
    client::{open, post},
    fake::{Fake, Step, serve, with_http},
};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"stream":true"#;

#[test]
fn chat_as_events() {
    let script = vec![
        Step::Text("Hel"),
        Step::Text("lo \"\n"),
        Step::Finish(FinishReason::Length),
    ];
    serve(Fake::new(script), |address| async move {
        let body = format!("{CHAT},\"stream_options\":{{\"include_usage\":true}}}}");
        let reply = post(address, "/v1/chat/completions", &body).await;
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        assert_eq!(reply.header("x-accel-buffering"), Some("no"));
        insta::assert_snapshot!(reply.stable_body(), @r##"
        data: {"id":"chatcmpl-#","object":"chat.completion.chunk","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-#","object":"chat.completion.chunk","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-#","object":"chat.completion.chunk","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"delta":{"content":"lo \"\n"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-#","object":"chat.completion.chunk","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}

        data: {"id":"chatcmpl-#","object":"chat.completion.chunk","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[],"usage":{"prompt_tokens":21,"completion_tokens":8,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}

        data: [DONE]
        "##);
    });
}

#[test]
fn completion_as_events() {
    let script = vec![Step::Text("a"), Step::Finish(FinishReason::Stop)];
    serve(Fake::new(script), |address| async move {
        let body = r#"{"prompt":"x","stream":true,"n":2}"#;
        let reply = post(address, "/v1/completions", body).await;
        insta::assert_snapshot!(reply.stable_body(), @r##"
        data: {"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}

        data: {"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":1,"text":"a","logprobs":null,"finish_reason":null}]}

        data: {"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}

        data: {"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":1,"text":"","logprobs":null,"finish_reason":"stop"}]}

        data: [DONE]
        "##);
    });
}

/// Text of all chunks, in order.
fn text_of(body: &str) -> String {
    let events = body
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    events
        .filter(|event| *event != "[DONE]")
        .map(|event| {
            let event: serde_json::Value = serde_json::from_str(event).unwrap();
            event["choices"][0]["text"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        })
        .collect()
}

#[test]
fn a_stop_string_over_reports_ends_the_answer_and_the_seat() {
    let script = vec![
        Step::Text("one ST"),
        Step::Text("O"),
        Step::Text("P two"),
        Step::Text("never"),
    ];
    let fake = Fake::new(script);
    let stopped = fake.stopped.clone();
    serve(fake.clone(), |address| async move {
        for stream in [true, false] {
            let body = format!(r#"{{"prompt":"x","stream":{stream},"stop":"STOP"}}"#);
            let reply = post(address, "/v1/completions", &body).await;
            assert!(
                reply.body.contains(r#""finish_reason":"stop""#),
                "{}",
                reply.body
            );
            if stream {
                assert_eq!(text_of(&reply.body), "one ");
            } else {
                assert!(reply.body.contains(r#""text":"one ""#), "{}", reply.body);
                // "one STOP": the token that completes the stop string is the last that counts.
                assert!(
                    reply.body.contains(r#""completion_tokens":8"#),
                    "{}",
                    reply.body
                );
            }
        }
    });
    assert_eq!(stopped.load(Ordering::Relaxed), 2);
    assert_eq!(fake.cancelled.load(Ordering::Relaxed), 0);
}

#[test]
fn a_failure_before_the_first_token_has_its_own_status() {
    let error = Error::new(Reason::NoWorker, "no worker joined in 10000 ms")
        .with_retry_after(Duration::from_millis(1_500));
    serve(Fake::new(vec![Step::Fail(error)]), |address| async move {
        let body = format!("{CHAT}}}");
        let reply = post(address, "/v1/chat/completions", &body).await;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.header("retry-after-ms"), Some("1500"));
        assert_eq!(reply.header("retry-after"), Some("2"));
        insta::assert_snapshot!(reply.body, @r##"{"error":{"message":"no worker joined in 10000 ms","type":"overloaded_error","param":null,"code":"no_worker"}}"##);
    });
}

#[test]
fn a_failure_after_the_first_token_is_an_event_and_no_done_follows() {
    let error = Error::new(Reason::WorkerFailed, "the worker is gone");
    let script = vec![Step::Text("a"), Step::Gate, Step::Fail(error)];
    let fake = Fake::new(script);
    let gate = fake.gate.clone();
    serve(fake, |address| async move {
        let body = r#"{"prompt":"x","stream":true}"#;
        let (mut stream, mut text) = open(address, body, "\"text\":\"a\"").await;
        gate.add_permits(1);
        let mut rest = [0; 4096];
        while !text.contains("\r\n0\r\n") {
            let read = stream.read(&mut rest).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&rest[..read]));
        }
        assert!(
            text.contains(r#"data: {"error":{"message":"the worker is gone""#),
            "{text}"
        );
        assert!(!text.contains("[DONE]"), "{text}");
    });
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let script = vec![
        Step::Text("a"),
        Step::Gate,
        Step::Finish(FinishReason::Stop),
    ];
    let fake = Fake::new(script);
    let cancelled = fake.cancelled.clone();
    serve(fake, |address| async move {
        let body = r#"{"prompt":"x","stream":true}"#;
        let (stream, _) = open(address, body, "\"text\":\"a\"").await;
        assert_eq!(cancelled.load(Ordering::Relaxed), 0);
        drop(stream);
        let gone = async {
            while cancelled.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .unwrap();
    });
}

#[test]
fn a_small_buffer_does_not_change_the_text() {
    let mut script: Vec<Step> = Vec::new();
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    script.resize(8, Step::Text(line));
    script.push(Step::Text("tail"));
    script.push(Step::Finish(FinishReason::Length));
    let limits = LimitsConfig {
        // Far below one report: nearly everything is kept as ids and rendered later.
        slow_reader_bytes_max: 16,
        ..LimitsConfig::default()
    };
    with_http(
        Fake::new(script),
        HttpConfig::default(),
        limits,
        |address| async move {
            let body = r#"{"prompt":"x","stream":true,"max_tokens":900,"stop":["Z","tailZ"]}"#;
            let reply = post(address, "/v1/completions", body).await;
            assert_eq!(text_of(&reply.body), line.repeat(8) + "tail");
            assert!(reply.body.ends_with("data: [DONE]\n\n"));
        },
    );
}
