//! Answers in every form that a request may ask for: echo, best of, batches, ids, usage.

use std::sync::atomic::Ordering;

use dopd_router::{
    error::{Error, Reason},
    streams::sink::FinishReason,
};
use serde_json::{Value, json};

use crate::{
    client::{ask, exchange, post},
    fake::{Fake, Step, entries, serve},
};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn play(script: Vec<Step>, path: &'static str, body: &'static str) -> Value {
    let fake = Fake::new(script);
    let cell = std::rc::Rc::new(std::cell::RefCell::new(Value::Null));
    let result = std::rc::Rc::clone(&cell);
    serve(fake, |address| async move {
        let reply = post(address, path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        *cell.borrow_mut() = if body.contains(r#""stream":true"#) {
            events(&reply.body)
        } else {
            serde_json::from_str(&reply.body).unwrap()
        };
    });
    result.take()
}

/// All events of a stream that ended well.
fn events(body: &str) -> Value {
    let body = body.strip_suffix("data: [DONE]\n\n").unwrap();
    let event = |event: &str| {
        let json = event.strip_prefix("data: ").unwrap();
        serde_json::from_str::<Value>(json).unwrap()
    };
    body.split_terminator("\n\n").map(event).collect()
}

fn end() -> Step {
    Step::Finish(FinishReason::Stop)
}

#[test]
fn an_echo_begins_with_the_prompt() {
    let script = vec![Step::Text("lo"), end()];
    let body = r#"{"prompt":["hel","yel"],"echo":true}"#;
    let reply = play(script.clone(), TEXT, body);
    assert_eq!(reply["choices"][0]["text"], "hello");
    assert_eq!(reply["choices"][1]["text"], "yello");
    let body = r#"{"prompt":[104,101,108],"echo":true,"stream":true}"#;
    let chunks = play(script, TEXT, body);
    assert_eq!(chunks[0]["choices"][0]["text"], "hello");
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

/// What lm-eval sends to score a text.
#[test]
fn a_prompt_is_scored_without_an_answer() {
    let script = vec![
        Step::PromptLogprobs(1, vec![-0.5, -1.5]),
        Step::Logprobs(vec![120], entries(&[-9.0])),
        end(),
    ];
    let body = r#"{"prompt":"a\u00e9","echo":true,"max_tokens":0,"logprobs":0}"#;
    let reply = play(script.clone(), TEXT, body);
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "a\u{e9}");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["logprobs"],
        json!({
            "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9"],
            "token_logprobs": [null, -0.5, -1.5],
            "top_logprobs": [null, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -1.5}],
            "text_offset": [0, 1, 1],
        })
    );
    assert_eq!(reply["usage"]["completion_tokens"], 0);
    let body = r#"{"prompt":"a\u00e9","echo":true,"max_tokens":0,"logprobs":0,"stream":true}"#;
    let chunks = play(script, TEXT, body);
    assert_eq!(&chunks[0]["choices"][0], choice);
    assert_eq!(chunks.as_array().unwrap().len(), 1);
}

#[test]
fn an_echo_with_log_probabilities_has_those_of_prompt_and_answer() {
    let script = vec![
        Step::PromptLogprobs(1, vec![-0.5]),
        Step::Logprobs(vec![99, 100], entries(&[-2.0, -3.0])),
        end(),
    ];
    let body = r#"{"prompt":"ab","echo":true,"logprobs":1,"n":2}"#;
    let reply = play(script, TEXT, body);
    for choice in [0, 1] {
        let logprobs = &reply["choices"][choice]["logprobs"];
        assert_eq!(logprobs["tokens"], json!(["a", "b", "c", "d"]));
        assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -2.0, -3.0]));
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    }
}

/// Long enough to be written on another thread.
#[test]
fn a_long_answer_is_whole() {
    let script = vec![
        Step::PromptLogprobs(1, vec![-1.0; 999]),
        Step::Text("b"),
        end(),
    ];
    let prompt = "a".repeat(1_000);
    let body = format!(r#"{{"prompt":"{prompt}","echo":true,"logprobs":0,"max_tokens":1}}"#);
    let choice = play(script, TEXT, body.leak())["choices"][0].take();
    assert_eq!(choice["text"], format!("{prompt}b"));
    let told = &choice["logprobs"]["token_logprobs"];
    assert_eq!(told.as_array().unwrap().len(), 1_000);
}

/// More than is written at once: a choice's prompt comes in parts, whose text, columns and offsets
/// are together those of the whole answer.
#[test]
fn a_long_echo_in_parts_is_that_of_the_whole_answer() {
    let prompt = "a\u{e9}".repeat(333);
    let scores: Vec<f32> = (1_u8..=u8::MAX).cycle().take(998).map(f32::from).collect();
    let script = vec![
        Step::PromptLogprobs(1, scores),
        Step::Logprobs(vec![98], entries(&[-2.0])),
        end(),
    ];
    let asked = format!(r#""prompt":"{prompt}","echo":true,"logprobs":0,"n":4,"max_tokens":1"#);
    let whole = play(script.clone(), TEXT, format!("{{{asked}}}").leak());
    let body = format!(r#"{{{asked},"stream":true,"return_token_ids":true}}"#);
    let chunks = play(script, TEXT, body.leak());
    for whole in whole["choices"].as_array().unwrap() {
        let chunks = chunks.as_array().unwrap().iter();
        let parts = chunks.map(|chunk| &chunk["choices"][0]);
        let parts: Vec<&Value> = parts
            .filter(|part| part["index"] == whole["index"])
            .collect();
        let text: String = parts
            .iter()
            .map(|part| part["text"].as_str().unwrap())
            .collect();
        assert_eq!(whole["text"], text);
        for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let entries = parts
                .iter()
                .filter_map(|part| part["logprobs"][column].as_array());
            let together: Vec<&Value> = entries.flatten().collect();
            assert_eq!(json!(together), whole["logprobs"][column], "{column}");
        }
        let (first, rest) = parts.split_first().unwrap();
        assert_eq!(first["prompt_token_ids"].as_array().unwrap().len(), 999);
        assert!(rest.iter().all(|part| part["prompt_token_ids"].is_null()));
        let ends = parts.iter().filter(|part| part["finish_reason"] == "stop");
        assert_eq!(ends.count(), 1);
        // The third is cut inside of a character, which comes with its last byte.
        let begins = first["logprobs"]["tokens"].as_array().unwrap().len();
        if whole["index"] == 2 {
            assert_eq!((begins, first["text"].as_str().unwrap().len()), (50, 49));
        }
    }
}

#[test]
fn log_probabilities_of_a_prompt_in_the_shape_of_vllm() {
    let script = vec![Step::PromptLogprobs(1, vec![-0.5]), Step::Text("x"), end()];
    let body = r#"{"prompt":"ab","prompt_logprobs":0,"return_token_ids":true}"#;
    let choice = play(script, TEXT, body)["choices"][0].take();
    let expected = json!([null, {"98": {"logprob": -0.5, "rank": null, "decoded_token": "b"}}]);
    assert_eq!(choice["prompt_logprobs"], expected);
    assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
    assert_eq!(choice["token_ids"], json!([120]));
    assert_eq!(choice["logprobs"], Value::Null);
    // A chat has them beside its choices, and a template's prompt is 20 tokens long.
    let script = vec![
        Step::PromptLogprobs(1, vec![-1.0; 19]),
        Step::Text("x"),
        end(),
    ];
    let body = r#"{"messages":[{"role":"user","content":"x"}],"prompt_logprobs":0}"#;
    let reply = play(script, CHAT, body);
    assert_eq!(reply["prompt_logprobs"].as_array().unwrap().len(), 20);
    assert_eq!(reply["choices"][0].get("prompt_logprobs"), None);
    assert_eq!(reply.get("prompt_token_ids"), None);
}

#[test]
fn log_probabilities_that_a_worker_left_out_fail_the_request() {
    let script = vec![Step::PromptLogprobs(1, vec![-0.5]), Step::Text("x"), end()];
    serve(Fake::new(script), |address| async move {
        let body = r#"{"prompt":"abc","prompt_logprobs":0}"#;
        let reply = post(address, TEXT, body).await;
        assert_eq!(reply.status, 503);
        assert!(reply.body.contains("left out 1 log"), "{}", reply.body);
    });
}

#[test]
fn the_best_of_more_are_told_best_first_and_all_are_paid() {
    let script = vec![Step::Each(vec![(97, -3.0), (98, -1.0), (99, -2.0)]), end()];
    let body = r#"{"prompt":"x","best_of":3,"n":2}"#;
    let reply = play(script, TEXT, body);
    let choices = reply["choices"].as_array().unwrap();
    let told: Vec<_> = choices.iter().map(|c| (&c["index"], &c["text"])).collect();
    assert_eq!(told, [(&json!(0), &json!("b")), (&json!(1), &json!("c"))]);
    assert_eq!(choices[0]["logprobs"], Value::Null, "nobody asked for them");
    assert_eq!(reply["usage"]["completion_tokens"], 3);
}

#[test]
fn choices_of_a_batch_are_numbered_through_and_paid_together() {
    let script = vec![Step::Text("a"), end()];
    let body = r#"{"prompt":["xy","z"],"n":2}"#;
    let reply = play(script.clone(), TEXT, body);
    let choices = reply["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices
        .iter()
        .map(|c| c["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
    assert_eq!(reply["usage"]["completion_tokens"], 4);
    let body = r#"{"prompt":["xy","z"],"stream":true,"stream_options":{"include_usage":true,
        "continuous_usage_stats":true}}"#;
    let chunks = play(script, TEXT, body);
    let chunks = chunks.as_array().unwrap();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["usage"]["total_tokens"], 5);
    for chunk in before {
        let prompt =
            [2, 1][usize::try_from(chunk["choices"][0]["index"].as_u64().unwrap()).unwrap()];
        assert_eq!(chunk["usage"]["prompt_tokens"], prompt);
        assert_eq!(chunk["usage"]["completion_tokens"], 1);
    }
}

#[test]
fn token_ids_come_with_the_text_and_those_of_the_prompt_once() {
    let script = vec![Step::Text("a"), Step::Text("b"), end()];
    let body =
        r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"return_token_ids":true}"#;
    let chunks = play(script.clone(), CHAT, body);
    assert_eq!(chunks[0]["prompt_token_ids"].as_array().unwrap().len(), 20);
    assert_eq!(chunks[1].get("prompt_token_ids"), None);
    assert_eq!(chunks[1]["choices"][0]["token_ids"], json!([97]));
    let body = r#"{"prompt":"x","stream":true,"return_token_ids":true}"#;
    let chunks = play(script, TEXT, body);
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([120]));
    assert_eq!(chunks[1]["choices"][0].get("prompt_token_ids"), None);
    assert_eq!(chunks[1]["choices"][0]["token_ids"], json!([98]));
}

#[test]
fn what_ended_an_answer_is_part_of_it_only_on_demand() {
    let script = vec![Step::Text("one. "), Step::Text("STOP two")];
    for (more, text) in [
        ("", "one. "),
        (r#","include_stop_str_in_output":true"#, "one. STOP"),
    ] {
        let body = format!(r#"{{"prompt":"x","stop":"STOP"{more}}}"#).leak();
        assert_eq!(play(script.clone(), TEXT, body)["choices"][0]["text"], text);
    }
    // One that begins before `min_tokens`, but ends behind it; and one that ends before it.
    for (min_tokens, text) in [(8, "one. "), (9, "one. STOPxSTO")] {
        let script = vec![Step::Text("one. ST"), Step::Text("OPxSTO"), end()];
        let body = format!(r#"{{"prompt":"x","stop":"STOP","min_tokens":{min_tokens}}}"#).leak();
        assert_eq!(play(script, TEXT, body)["choices"][0]["text"], text);
    }
    // The worker ends at a stop token; 46 is a full stop.
    let script = vec![Step::Text("one."), end()];
    for (more, text) in [
        ("", "one"),
        (r#","include_stop_str_in_output":true"#, "one."),
    ] {
        let body = format!(r#"{{"prompt":"x","stop_token_ids":[46]{more}}}"#).leak();
        assert_eq!(play(script.clone(), TEXT, body)["choices"][0]["text"], text);
    }
}

#[test]
fn special_tokens_have_a_text_only_on_demand() {
    let script = vec![Step::Logprobs(vec![97, 256, 98], entries(&[0.0; 3])), end()];
    for (more, text) in [
        ("", "ab"),
        (r#","skip_special_tokens":false"#, "a<|im_start|>b"),
    ] {
        let body = format!(r#"{{"prompt":"x"{more}}}"#).leak();
        assert_eq!(play(script.clone(), TEXT, body)["choices"][0]["text"], text);
    }
}

#[test]
fn a_batch_of_which_one_prompt_is_refused_runs_none() {
    let mut fake = Fake::new(vec![Step::Gate]);
    fake.refuse_after = Some((1, Error::new(Reason::QueueFull, "full")));
    let cancelled = fake.cancelled.clone();
    serve(fake, |address| async move {
        let reply = post(address, TEXT, r#"{"prompt":["a","b"]}"#).await;
        assert_eq!(reply.status, 503);
        assert_eq!(cancelled.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn every_response_has_an_id_and_a_refused_body_leaves_the_connection_open() {
    serve(
        Fake::new(vec![Step::Text("a"), end()]),
        |address| async move {
            for (method, path, status) in [
                ("GET", "/health", 200),
                ("HEAD", "/v1/models", 200),
                ("OPTIONS", "/v1/completions", 204),
                ("GET", "/v1/completions", 405),
                ("PUT", "/tokenize", 405),
                ("GET", "/nothing", 404),
                ("GET", "/v1/models/org%2fother", 404),
            ] {
                let reply = ask(address, method, path).await;
                assert_eq!(reply.status, status, "{method} {path}");
                assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
                if matches!(status, 204 | 405) {
                    assert!(
                        reply
                            .header("allow")
                            .is_some_and(|allow| allow.contains("OPTIONS"))
                    );
                }
            }
            // Three requests at once: a wrong type, a wrong route, and one that is answered.
            let long = "x".repeat(50_000);
            let raw = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n\
             content-length: 50000\r\n\r\n{long}\
             POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n{long}\
             POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json; charset=utf-8\
             \r\ncontent-length: 15\r\nconnection: close\r\n\r\n{{\"prompt\":\"ab\"}}"
            );
            let reply = exchange(address, raw.as_bytes()).await;
            assert_eq!(reply.status, 400);
            assert!(reply.body.contains("HTTP/1.1 404"), "{}", reply.body);
            assert!(reply.body.contains(r#""tokens":[97,98]"#), "{}", reply.body);
        },
    );
}

#[test]
fn texts_become_tokens_and_tokens_text() {
    serve(Fake::new(vec![]), |address| async move {
        let reply = post(
            address,
            "/tokenize",
            r#"{"prompt":"a\u00e9","return_token_strs":true}"#,
        );
        assert_eq!(
            reply.await.body,
            r#"{"count":3,"max_model_len":1024,"tokens":[97,195,169],"token_strs":["a","\\xc3","\\xa9"]}"#
        );
        for (body, status, expected) in [
            (
                r#"{"tokens":[97,195,169,257]}"#,
                200,
                "{\"prompt\":\"a\u{e9}<|im_end|>\"}",
            ),
            (r#"{"tokens":[]}"#, 200, r#"{"prompt":""}"#),
            (r#"{"tokens":[258]}"#, 400, "token id 258"),
            (r#"{"tokens":[-1]}"#, 400, "token id -1"),
            (r"{}", 400, "tokens is required"),
            (r#"{"tokens":[1],"model":"other"}"#, 404, "not served here"),
        ] {
            let reply = post(address, "/detokenize", body).await;
            assert_eq!(reply.status, status, "{body}");
            assert!(reply.body.contains(expected), "{}", reply.body);
        }
        let many = format!(r#"{{"tokens":[{}1]}}"#, "1,".repeat(1_024));
        assert_eq!(post(address, "/detokenize", &many).await.status, 400);
    });
}
