//! Fields of both routes: what a bad value gets, and what a good one becomes.

use dopd_router::{
    config::records::{HttpConfig, LimitsConfig},
    streams::sink::FinishReason,
};

use crate::{
    client::{Reply, post},
    fake::{Fake, Seen, Step, serve, with_http},
};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn quiet() -> Fake {
    Fake::new(vec![Step::Text("a"), Step::Finish(FinishReason::Stop)])
}

/// A body of `path` with `fields`.
fn body(path: &str, fields: &str) -> String {
    match path {
        CHAT => format!(r#"{{"messages":[{{"role":"user","content":"x"}}],{fields}}}"#),
        _ => format!(r#"{{"prompt":"xyz",{fields}}}"#),
    }
}

/// `status code param`.
fn outcome(reply: &Reply) -> String {
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let text = |key: &str| body["error"][key].as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", reply.status, text("code"), text("param"))
}

/// Fields, status, code, field at fault.
const BOTH: &[(&str, &str)] = &[
    (r#""logit_bias":{"258":1}"#, "400 invalid_value logit_bias"),
    (r#""logit_bias":{"-1":1}"#, "400 invalid_value logit_bias"),
    (
        r#""logit_bias":{"5":100.5}"#,
        "400 invalid_value logit_bias",
    ),
    (r#""logit_bias":{"5":-101}"#, "400 invalid_value logit_bias"),
    (r#""logit_bias":{"five":1}"#, "400 invalid_value logit_bias"),
    (
        r#""logit_bias":{"5":1,"05":2}"#,
        "400 invalid_value logit_bias",
    ),
    (r#""logit_bias":{"5":null}"#, "400 invalid_value logit_bias"),
    (r#""logit_bias":[1]"#, "400 invalid_value logit_bias"),
    (r#""logit_bias":{"5":100,"6":-100}"#, "200 - -"),
    (r#""logit_bias":{}"#, "200 - -"),
    (r#""logit_bias":null"#, "200 - -"),
    (
        r#""presence_penalty":2.1"#,
        "400 invalid_value presence_penalty",
    ),
    (r#""presence_penalty":-2"#, "200 - -"),
    (
        r#""frequency_penalty":-2.1"#,
        "400 invalid_value frequency_penalty",
    ),
    (r#""frequency_penalty":2"#, "200 - -"),
    (
        r#""repetition_penalty":0"#,
        "400 invalid_value repetition_penalty",
    ),
    (
        r#""repetition_penalty":-1"#,
        "400 invalid_value repetition_penalty",
    ),
    (
        r#""repetition_penalty":2.1"#,
        "400 invalid_value repetition_penalty",
    ),
    (r#""repetition_penalty":1e-60"#, "200 - -"),
    (r#""priority":2147483648"#, "400 invalid_value priority"),
    (r#""priority":-2147483648"#, "200 - -"),
    (
        r#""min_tokens":9,"max_tokens":8"#,
        "400 invalid_value min_tokens",
    ),
    (r#""stop":[""]"#, "400 invalid_value stop"),
    (
        r#""stop_token_ids":[258]"#,
        "400 invalid_value stop_token_ids",
    ),
    (r#""stop_token_ids":[257]"#, "200 - -"),
    (
        r#""max_completion_tokens":0"#,
        "400 invalid_value max_completion_tokens",
    ),
    (
        r#""prompt_logprobs":-1"#,
        "400 invalid_value prompt_logprobs",
    ),
    (
        r#""prompt_logprobs":21"#,
        "400 invalid_value prompt_logprobs",
    ),
    (
        r#""prompt_logprobs":0,"stream":true"#,
        "400 invalid_value prompt_logprobs",
    ),
    (
        r#""truncate_prompt_tokens":0"#,
        "400 invalid_value truncate_prompt_tokens",
    ),
    (
        r#""truncate_prompt_tokens":1025"#,
        "400 invalid_value truncate_prompt_tokens",
    ),
    (r#""truncate_prompt_tokens":-1"#, "200 - -"),
    (
        r#""include_stop_str_in_output":1"#,
        "400 invalid_value include_stop_str_in_output",
    ),
    (r#""skip_special_tokens":false"#, "200 - -"),
    (r#""add_special_tokens":false"#, "200 - -"),
    (r#""add_special_tokens":true"#, "200 - -"),
    (r#""return_token_ids":true"#, "200 - -"),
    (r#""user":5"#, "400 invalid_value user"),
    (r#""metadata":{"k":5}"#, "400 invalid_value metadata"),
    (r#""metadata":{"k":"v"}"#, "200 - -"),
    (r#""stream_options":{}"#, "400 invalid_value stream_options"),
    (
        r#""allowed_token_ids":[1]"#,
        "400 unsupported_value allowed_token_ids",
    ),
    (r#""bad_words":["y"]"#, "400 unsupported_value bad_words"),
    (
        r#""use_beam_search":true"#,
        "400 unsupported_value use_beam_search",
    ),
    (
        r#""structured_outputs":{"json":{}}"#,
        "400 unsupported_value structured_outputs",
    ),
    (
        r#""response_format":{"type":"json_object"}"#,
        "400 unsupported_value response_format",
    ),
    (r#""response_format":{"type":"text"}"#, "200 - -"),
    (r#""n":17"#, "400 invalid_value n"),
    (r#""surprise":1"#, "200 - -"),
];

const ONLY_TEXT: &[(&str, &str)] = &[
    (r#""best_of":1,"n":2"#, "400 invalid_value best_of"),
    (r#""best_of":17"#, "400 invalid_value best_of"),
    (r#""best_of":2,"stream":true"#, "400 invalid_value best_of"),
    (
        r#""echo":true,"max_tokens":-1"#,
        "400 invalid_value max_tokens",
    ),
    (r#""max_tokens":0"#, "400 invalid_value max_tokens"),
    (r#""suffix":"y""#, "400 unsupported_value suffix"),
    (r#""echo":true,"max_tokens":0"#, "200 - -"),
    (r#""logprobs":21"#, "400 invalid_value logprobs"),
];

const ONLY_CHAT: &[(&str, &str)] = &[
    (r#""best_of":2"#, "400 unsupported_value best_of"),
    (r#""echo":true"#, "400 unsupported_value echo"),
    (r#""max_tokens":0"#, "400 invalid_value max_tokens"),
    (r#""top_logprobs":1"#, "400 invalid_value top_logprobs"),
    (r#""logprobs":1"#, "400 invalid_value logprobs"),
    (r#""tools":[{}],"tool_choice":"none""#, "200 - -"),
    (r#""tool_choice":"none","tools":[{}]"#, "200 - -"),
    (r#""tools":[{}]"#, "400 unsupported_value tools"),
    (
        r#""tools":[{}],"tool_choice":"auto""#,
        "400 unsupported_value tools",
    ),
    (
        r#""tools":[{}],"tool_choice":"required""#,
        "400 unsupported_value tool_choice",
    ),
    (
        r#""tools":[5],"tool_choice":"none""#,
        "400 invalid_value tools",
    ),
    (r#""functions":[{}]"#, "400 unsupported_value functions"),
    (r#""functions":[{}],"function_call":"none""#, "200 - -"),
    (r#""parallel_tool_calls":true"#, "200 - -"),
    (
        r#""modalities":["audio"]"#,
        "400 unsupported_value modalities",
    ),
    (
        r#""reasoning_effort":"high""#,
        "400 unsupported_value reasoning_effort",
    ),
];

#[test]
fn each_field_passes_or_is_refused_by_its_name() {
    serve(quiet(), |address| async move {
        let both = BOTH.iter().flat_map(|row| [(TEXT, row), (CHAT, row)]);
        let text = ONLY_TEXT.iter().map(|row| (TEXT, row));
        let chat = ONLY_CHAT.iter().map(|row| (CHAT, row));
        for (path, (fields, expected)) in both.chain(text).chain(chat) {
            let reply = post(address, path, &body(path, fields)).await;
            assert_eq!(
                outcome(&reply),
                *expected,
                "{path} {fields}: {}",
                reply.body
            );
        }
    });
}

#[test]
fn what_is_counted_has_a_bound() {
    let list = |element: &str, count: usize| vec![element; count].join(",");
    let biases: Vec<String> = (0..1_025).map(|id| format!(r#""{id}":0"#)).collect();
    let labels: Vec<String> = (0..17).map(|k| format!(r#""{k}":"v""#)).collect();
    let rows = [
        (
            TEXT,
            format!(r#""logit_bias":{{{}}}"#, biases.join(",")),
            "logit_bias",
        ),
        (
            TEXT,
            format!(r#""metadata":{{{}}}"#, labels.join(",")),
            "metadata",
        ),
        (
            TEXT,
            format!(r#""metadata":{{"k":"{}"}}"#, "v".repeat(513)),
            "metadata",
        ),
        (TEXT, format!(r#""user":"{}""#, "v".repeat(513)), "user"),
        (
            CHAT,
            format!(r#""tool_choice":"none","tools":[{}]"#, list("{}", 129)),
            "tools",
        ),
        (
            CHAT,
            format!(
                r#""tool_choice":"none","tools":[{{"x":"{}"}}]"#,
                "v".repeat(256 << 10)
            ),
            "tools",
        ),
        (TEXT, format!(r#""stop":[{}]"#, list("\"s\"", 17)), "stop"),
        (
            TEXT,
            format!(r#""stop_token_ids":[{}]"#, list("5", 65)),
            "stop_token_ids",
        ),
    ];
    serve(quiet(), |address| async move {
        for (path, fields, field) in rows {
            let reply = post(address, path, &body(path, &fields)).await;
            assert_eq!(outcome(&reply), format!("400 invalid_value {field}"));
        }
        let prompts = format!(r#"{{"prompt":[{}]}}"#, list("\"x\"", 65));
        let reply = post(address, TEXT, &prompts).await;
        assert_eq!(outcome(&reply), "400 invalid_value prompt");
    });
    let limits = LimitsConfig {
        prompt_logprobs_max: 8,
        ..LimitsConfig::default()
    };
    with_http(
        quiet(),
        HttpConfig::default(),
        limits,
        |address| async move {
            // Three tokens, and as many times two alternatives; or one of each in three choices.
            for fields in [
                r#""echo":true,"logprobs":2"#,
                r#""echo":true,"logprobs":0,"n":3"#,
                r#""prompt_logprobs":0,"best_of":3"#,
            ] {
                let reply = post(address, TEXT, &body(TEXT, fields)).await;
                assert_eq!(outcome(&reply), "400 invalid_value prompt_logprobs");
            }
        },
    );
}

#[test]
fn a_strict_server_refuses_what_nobody_knows() {
    let config = HttpConfig {
        strict: true,
        ..HttpConfig::default()
    };
    with_http(
        quiet(),
        config,
        LimitsConfig::default(),
        |address| async move {
            for (path, fields, expected) in [
                (TEXT, r#""surprise":1"#, "400 invalid_value surprise"),
                (CHAT, r#""surprise":null"#, "400 invalid_value surprise"),
                (TEXT, r#""user":"u","store":true"#, "200 - -"),
                ("/tokenize", r#""surprise":1"#, "400 invalid_value surprise"),
                ("/tokenize", r#""add_special_tokens":true"#, "200 - -"),
            ] {
                let reply = post(address, path, &body(path, fields)).await;
                assert_eq!(outcome(&reply), expected, "{path} {fields}");
            }
            let reply = post(address, "/detokenize", r#"{"tokens":[],"x":1}"#).await;
            assert_eq!(outcome(&reply), "400 invalid_value x");
        },
    );
}

fn submitted(path: &'static str, fields: &'static str) -> Vec<Seen> {
    let fake = quiet();
    let seen = fake.seen.clone();
    serve(fake, |address| async move {
        let reply = post(address, path, &body(path, fields)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    });
    seen.lock().clone()
}

#[test]
fn adjustments_go_to_the_worker_only_if_they_change_something() {
    let neutral = r#""presence_penalty":0,"frequency_penalty":-0.0,"repetition_penalty":1,
        "logit_bias":{"5":0}"#;
    assert_eq!(submitted(TEXT, neutral)[0].adjustments, None);
    let all = r#""presence_penalty":0.5,"frequency_penalty":-1,"repetition_penalty":1.25,
        "logit_bias":{"9":-100,"5":2.5,"7":0}"#;
    let seen = submitted(CHAT, all);
    let adjustments = seen[0].adjustments.as_ref().unwrap();
    let penalties = (
        adjustments.presence_penalty,
        adjustments.frequency_penalty,
        adjustments.repetition_penalty,
    );
    assert_eq!(penalties, (0.5, -1.0, 1.25));
    assert_eq!(adjustments.bias_tokens, [5, 9]);
    assert_eq!(adjustments.bias_values, [2.5, -100.0]);
}

#[test]
fn a_long_prompt_is_cut_to_its_last_tokens() {
    for (fields, prompt) in [
        (r#""truncate_prompt_tokens":2"#, "yz"),
        (r#""truncate_prompt_tokens":3"#, "xyz"),
        (r#""truncate_prompt_tokens":-1,"max_tokens":1022"#, "yz"),
        (r#""truncate_prompt_tokens":-1"#, "xyz"),
    ] {
        let ids: Vec<u32> = prompt.bytes().map(u32::from).collect();
        assert_eq!(submitted(TEXT, fields)[0].prompt, ids, "{fields}");
    }
}

#[test]
fn the_best_are_chosen_by_log_probabilities_that_nobody_asked_for() {
    let seen = submitted(TEXT, r#""best_of":3,"n":2"#);
    assert_eq!(
        (seen[0].choices, seen[0].sampling.top_logprobs),
        (3, Some(0))
    );
    assert_eq!(seen[0].prompt_logprobs, None);
    let seen = submitted(TEXT, r#""best_of":2,"n":2"#);
    assert_eq!((seen[0].choices, seen[0].sampling.top_logprobs), (2, None));
}

#[test]
fn each_prompt_of_a_batch_is_a_request_of_its_own() {
    let fake = quiet();
    let seen = fake.seen.clone();
    serve(fake, |address| async move {
        let both = r#"{"prompt":["ab","c"],"n":2}"#;
        assert_eq!(post(address, TEXT, both).await.status, 200);
        let seeded = r#"{"prompt":[[97,98],[99]],"seed":5,"priority":-7}"#;
        assert_eq!(post(address, TEXT, seeded).await.status, 200);
    });
    let seen = seen.lock();
    let prompts: Vec<&[u32]> = seen.iter().map(|seen| seen.prompt.as_slice()).collect();
    assert_eq!(prompts, [&[97, 98][..], &[99], &[97, 98], &[99]]);
    assert_eq!((seen[0].choices, seen[1].choices), (2, 2));
    assert_ne!(seen[0].seed, seen[1].seed, "drawn for each");
    assert_eq!((seen[2].seed, seen[3].seed), (5, 5));
    assert_eq!((seen[2].priority, seen[0].priority), (-7, 0));
}
