//! Bodies of answers and pages, whole.

use dopd_router::streams::sink::{FinishReason, TokenLogprobs};

use crate::{
    client::{ask, post, stable},
    fake::{Fake, Step, serve},
};

fn hello() -> Fake {
    Fake::new(vec![
        Step::Text("Hel"),
        Step::Text("lo"),
        Step::Finish(FinishReason::Stop),
    ])
}

const CHAT: &str = r#"{"model":"mock","messages":[{"role":"user","content":"hi"}]}"#;

#[test]
fn chat_as_one_object() {
    let fake = hello();
    let seen = fake.seen.clone();
    serve(fake, |address| async move {
        let reply = post(address, "/v1/chat/completions", CHAT).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
        insta::assert_snapshot!(reply.stable_body(), @r##"{"id":"chatcmpl-#","object":"chat.completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":21,"completion_tokens":5,"total_tokens":26,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"##);
    });
    let seen = seen.lock();
    // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n in the mock's tokens.
    assert_eq!(seen[0].prompt.len(), 1 + 7 + 1 + 1 + 1 + 10);
    assert_eq!(seen[0].max_tokens, 1_024 - 21);
}

#[test]
fn completion_as_one_object() {
    let fake = hello();
    let seen = fake.seen.clone();
    serve(fake, |address| async move {
        let body = r#"{"model":"mock","prompt":[104,105],"max_tokens":8,"n":2,"seed":7}"#;
        let reply = post(address, "/v1/completions", body).await;
        insta::assert_snapshot!(reply.stable_body(), @r##"{"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"text":"Hello","logprobs":null,"finish_reason":"stop"},{"index":1,"text":"Hello","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":10,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"##);
    });
    let seen = seen.lock();
    assert_eq!((seen[0].seed, seen[0].choices), (7, 2));
}

fn with_logprobs() -> Fake {
    let entry = |chosen: f32, top: &[(u32, f32)]| TokenLogprobs {
        chosen,
        top: top.to_vec(),
    };
    Fake::new(vec![
        Step::Logprobs(
            vec![0xC3, 0xA9],
            vec![
                entry(-0.5, &[(0xC3, -0.5), (0x41, -1.5)]),
                entry(
                    f32::NEG_INFINITY,
                    &[(0x42, -0.25), (0xA9, f32::NEG_INFINITY)],
                ),
            ],
        ),
        Step::Finish(FinishReason::Length),
    ])
}

#[test]
fn logprobs_of_a_chat() {
    serve(with_logprobs(), |address| async move {
        let body = CHAT.replacen(
            r#""model""#,
            r#""logprobs":true,"top_logprobs":2,"model""#,
            1,
        );
        let reply = post(address, "/v1/chat/completions", &body).await;
        insta::assert_snapshot!(reply.stable_body(), @r##"{"id":"chatcmpl-#","object":"chat.completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"message":{"role":"assistant","content":"é","refusal":null},"logprobs":{"content":[{"token":"\\xc3","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"\\xc3","logprob":-0.5,"bytes":[195]},{"token":"A","logprob":-1.5,"bytes":[65]}]},{"token":"\\xa9","logprob":-9999.0,"bytes":[169],"top_logprobs":[{"token":"B","logprob":-0.25,"bytes":[66]},{"token":"\\xa9","logprob":-9999.0,"bytes":[169]}]}],"refusal":null},"finish_reason":"length"}],"usage":{"prompt_tokens":21,"completion_tokens":2,"total_tokens":23,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"##);
    });
}

#[test]
fn logprobs_of_a_completion() {
    serve(with_logprobs(), |address| async move {
        let body = r#"{"prompt":"x","logprobs":2}"#;
        let reply = post(address, "/v1/completions", body).await;
        insta::assert_snapshot!(reply.stable_body(), @r##"{"id":"cmpl-#","object":"text_completion","created":#,"model":"mock","system_fingerprint":"fp_460783cf2e","choices":[{"index":0,"text":"é","logprobs":{"tokens":["bytes:\\xc3","bytes:\\xa9"],"token_logprobs":[-0.5,-9999.0],"top_logprobs":[{"bytes:\\xc3":-0.5,"A":-1.5},{"B":-0.25,"bytes:\\xa9":-9999.0}],"text_offset":[0,0]},"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"##);
    });
}

#[test]
fn pages() {
    serve(hello(), |address| async move {
        let models = ask(address, "GET", "/v1/models").await;
        insta::assert_snapshot!(stable(&models.body), @r##"{"object":"list","data":[{"id":"mock","object":"model","created":#,"owned_by":"dopd","root":"mock","parent":null,"max_model_len":1024,"status":"ready"}]}"##);
        let model = ask(address, "GET", "/v1/models/mock").await;
        assert_eq!(model.status, 200);
        let escaped = ask(address, "GET", "/v1/models/%6Dock").await;
        assert_eq!(escaped.body, model.body);
        let health = ask(address, "GET", "/health").await;
        assert_eq!(
            (health.status, health.body.as_str()),
            (200, r#"{"status":"ok"}"#)
        );
        assert_eq!(ask(address, "GET", "/ready").await.status, 200);
        let version = ask(address, "GET", "/version").await;
        assert_eq!(
            version.body,
            format!(r#"{{"version":"{}"}}"#, env!("CARGO_PKG_VERSION"))
        );
        let status = ask(address, "GET", "/status").await;
        assert!(
            status.body.starts_with(r#"{"model":"mock","version":"#),
            "{}",
            status.body
        );
        assert!(status.body.contains(r#""workers":[]"#), "{}", status.body);
        let tokens = post(address, "/tokenize", r#"{"prompt":"ab<|im_end|>"}"#).await;
        insta::assert_snapshot!(tokens.body, @r##"{"count":3,"max_model_len":1024,"tokens":[97,98,257],"token_strs":null}"##);
        let head = ask(address, "HEAD", "/health").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    });
}

#[test]
fn metrics_count_the_requests_by_their_code() {
    serve(hello(), |address| async move {
        post(address, "/v1/chat/completions", CHAT).await;
        post(address, "/v1/chat/completions", r#"{"surprise":1}"#).await;
        let page = ask(address, "GET", "/metrics").await;
        for row in [
            r#"dopd_requests_total{model="mock",code="ok"} 1"#,
            r#"dopd_requests_total{model="mock",code="invalid_value"} 1"#,
            r#"dopd_generation_tokens_total{model="mock"} 5"#,
            r#"dopd_prompt_tokens_total{model="mock"} 21"#,
        ] {
            assert!(page.body.contains(row), "{row} is not in\n{}", page.body);
        }
    });
}
