//! The validator on anything: it never panics, and what it lets through is inside of its limits.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{AnswerLength, Endpoint, Prompt, Spec, check, parse};
use crate::{
    config::records::{LimitsConfig, ModelConfig},
    error::{Error, Reason},
    tokens::ServedModel,
};

const NAMES: [&str; 32] = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "n",
    "logprobs",
    "top_logprobs",
    "ignore_eos",
    "stream",
    "stream_options",
    "priority",
    "slo_ttft_ms",
    "slo_tpot_ms",
    "logit_bias",
    "tools",
    "response_format",
    "echo",
    "best_of",
    "user",
    "surprise",
    "add_special_tokens",
    "modalities",
    "suffix",
];

fn model() -> ServedModel {
    ServedModel::mock(&ModelConfig::default()).unwrap()
}

fn read(endpoint: Endpoint, body: &[u8]) -> Result<Spec, Error> {
    let (limits, model) = (LimitsConfig::default(), model());
    check(
        parse(endpoint, body, &limits, &model)?.params,
        &limits,
        &model,
    )
}

/// Values of all kinds, many of them near a limit.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..30).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1.0_f64..3.0).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        Just(json!("mock")),
        Just(json!({"role": "user", "content": "hi"})),
        Just(json!({"include_usage": true})),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec(("[a-z]{1,4}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn body() -> impl Strategy<Value = Value> {
    let field = (proptest::sample::select(&NAMES[..]), value());
    proptest::collection::vec(field, 0..8).prop_map(|fields| {
        let mut body = Map::new();
        // A good prompt, unless a drawn one takes its place: other fields are reached then.
        body.insert("prompt".to_owned(), json!("hi"));
        body.insert(
            "messages".to_owned(),
            json!([{"role": "user", "content": "hi"}]),
        );
        body.extend(
            fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        Value::Object(body)
    })
}

fn assert_inside_of_limits(spec: &Spec) {
    let (limits, model) = (LimitsConfig::default(), model());
    let sampling = spec.sampling;
    assert!((0.0..=2.0).contains(&sampling.temperature), "{spec:?}");
    assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0, "{spec:?}");
    assert!((0.0..=1.0).contains(&sampling.min_p), "{spec:?}");
    assert!(sampling.top_k < model.vocab_size, "{spec:?}");
    assert!((1..=limits.choices_max).contains(&spec.choices), "{spec:?}");
    assert!(
        spec.top_logprobs.unwrap_or(0) <= limits.top_logprobs_max,
        "{spec:?}"
    );
    assert!(spec.stop.len() <= limits.stop_strings_max, "{spec:?}");
    assert!(
        spec.stop
            .iter()
            .all(|stop| (1..=limits.stop_bytes_max).contains(&stop.len()))
    );
    assert!(
        spec.stop_token_ids.iter().all(|id| *id < model.vocab_size),
        "{spec:?}"
    );
    assert!((-100..=100).contains(&spec.priority), "{spec:?}");
    if let Prompt::Tokens(ids) = &spec.prompt {
        assert!(
            !ids.is_empty() && ids.iter().all(|id| *id < model.vocab_size),
            "{spec:?}"
        );
    }
    if let Ok(max_tokens) = spec.fit(10, 100) {
        assert!(
            (1..=90).contains(&max_tokens) && spec.min_tokens <= max_tokens,
            "{spec:?}"
        );
    }
}

proptest! {
    #[test]
    fn whatever_passes_is_inside_of_its_limits(body in body(), chat in any::<bool>()) {
        let endpoint = if chat { Endpoint::Chat } else { Endpoint::Completions };
        if let Ok(spec) = read(endpoint, body.to_string().as_bytes()) {
            assert_inside_of_limits(&spec);
        }
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let error = read(Endpoint::Chat, &noise).unwrap_err();
        prop_assert_eq!(error.reason.row().http, 400);
    }
}

#[test]
fn deep_and_wide_bodies_are_refused_at_once() {
    let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
    let nested = format!(
        "{{\"prompt\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let keys: Vec<String> = (0..100_000).map(|key| format!("\"k{key}\":0")).collect();
    let wide = format!("{{{}}}", keys.join(","));
    let messages = format!("{{\"messages\":[{}0]}}", "0,".repeat(1_000_000));
    for body in [deep, nested, wide, messages] {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            let error = read(endpoint, body.as_bytes()).unwrap_err();
            assert_eq!(error.reason.row().http, 400, "{error}");
            assert!(error.message.len() < 400, "{error}");
        }
    }
}

#[test]
fn defaults_are_openais() {
    let spec = read(Endpoint::Completions, br#"{"prompt":"x"}"#).unwrap();
    assert_eq!(spec.max_tokens, AnswerLength::AtMost(16));
    assert_eq!((spec.sampling.temperature, spec.sampling.top_p), (1.0, 1.0));
    assert_eq!(
        (spec.choices, spec.top_logprobs, spec.sampling.seed),
        (1, None, None)
    );
    let chat = br#"{"messages":[{"role":"user","content":"x"}]}"#;
    assert_eq!(
        read(Endpoint::Chat, chat).unwrap().max_tokens,
        AnswerLength::Rest
    );
}

#[test]
fn max_completion_tokens_goes_before_max_tokens() {
    let body = br#"{"prompt":"x","max_completion_tokens":5,"max_tokens":9}"#;
    let spec = read(Endpoint::Completions, body).unwrap();
    assert_eq!(spec.max_tokens, AnswerLength::Exactly(5));
}

#[test]
fn a_refusal_names_the_field_as_the_client_wrote_it() {
    for (body, field) in [
        (
            r#"{"prompt":"x","max_completion_tokens":0}"#,
            "max_completion_tokens",
        ),
        (r#"{"prompt":"x","max_tokens":0}"#, "max_tokens"),
        (r#"{"prompt":"x","logprobs":21}"#, "logprobs"),
    ] {
        let error = read(Endpoint::Completions, body.as_bytes()).unwrap_err();
        assert_eq!(error.field.as_deref(), Some(field));
        assert!(
            error.message.starts_with(&format!("{field} is ")),
            "{error}"
        );
    }
    let chat = r#"{"messages":[{"role":"user","content":"x"}],"logprobs":true,"top_logprobs":21}"#;
    let error = read(Endpoint::Chat, chat.as_bytes()).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("top_logprobs"));
}

#[test]
fn a_prompt_that_fills_the_context_is_refused() {
    let spec = read(Endpoint::Completions, br#"{"prompt":"x"}"#).unwrap();
    assert_eq!(spec.fit(99, 100), Ok(1));
    for tokens in [100, 101, usize::MAX] {
        let error = spec.fit(tokens, 100).unwrap_err();
        assert_eq!(error.reason, Reason::ContextLengthExceeded);
    }
}
