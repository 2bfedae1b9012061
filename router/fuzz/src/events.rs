//! The writer of server-sent events: whatever tokens say, every event is one line of JSON, and the
//! texts of all events are the answer.

use dopd_router::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    http::EventLog,
    service::{Delta, PromptPart, Render, Usage},
    streams::sink::{FinishReason, TokenLogprobs},
    validate::{Endpoint, check, parse},
};
use serde_json::Value;

const CHAT: &[u8] = br#"{"messages":[{"role":"user","content":"x"}],"stream":true,"logprobs":true,
    "stream_options":{"include_usage":true,"continuous_usage_stats":true},
    "return_token_ids":true}"#;
const CHATS: &[u8] = br#"{"messages":[{"role":"user","content":"x"}],"stream":true,"n":2}"#;
const TEXT: &[u8] = br#"{"prompt":"x","stream":true,"echo":true,"logprobs":1,"n":2,
    "return_token_ids":true}"#;
const TEXTS: &[u8] = br#"{"prompt":["x","y"],"stream":true,"skip_special_tokens":false,
    "stream_options":{"include_usage":true}}"#;

/// The first byte names the request; then each delta has a byte for its choice and kind, one for
/// its length, and so many bytes of text and of tokens.
pub(crate) fn run(data: &[u8]) {
    let (kind, mut data) = crate::head(data);
    let (endpoint, body) = match kind & 3 {
        0 => (Endpoint::Chat, CHAT),
        1 => (Endpoint::Chat, CHATS),
        2 => (Endpoint::Completions, TEXT),
        _ => (Endpoint::Completions, TEXTS),
    };
    let (model, limits) = (crate::model(), LimitsConfig::default());
    let Ok(asked) = parse(endpoint, body, &limits, &model) else {
        return;
    };
    let form = asked.form;
    let Ok(spec) = check(asked.params, &limits, &model) else {
        return;
    };
    let with_logprobs = spec.top_logprobs.is_some();
    let mut log = EventLog::new(endpoint, form, &spec, model);
    let mut expected = [String::new(), String::new()];
    while !data.is_empty() {
        let (shape, rest) = crate::head(data);
        let (length, rest) = crate::head(rest);
        let (piece, rest) = rest.split_at(rest.len().min(length.into()));
        data = rest;
        write(&mut log, shape, piece, with_logprobs, &mut expected);
    }
    if kind & 4 == 0 {
        log.done(Usage::default());
    } else {
        log.failed(Error::new(Reason::WorkerFailed, "a \"quoted\"\nfailure"));
    }
    read(&log.into_bytes(), kind & 4 == 0, &expected);
}

fn write(
    log: &mut EventLog,
    shape: u8,
    piece: &[u8],
    with_logprobs: bool,
    expected: &mut [String; 2],
) {
    if shape & 2 != 0 {
        log.ping();
    }
    let choice = usize::from(shape & 1);
    let text = String::from_utf8_lossy(piece).into_owned();
    let tokens: Vec<u32> = piece.iter().map(|byte| u32::from(*byte) * 2).collect();
    let entry = |byte: &u8| TokenLogprobs {
        chosen: f32::from_bits(u32::from(*byte) << 24),
        top: vec![(u32::from(*byte), f32::NEG_INFINITY), (9_999, f32::NAN)],
    };
    let logprobs: Vec<TokenLogprobs> = piece.iter().map(entry).collect();
    let prompt = PromptPart {
        text: "",
        tokens: &[120],
        logprobs: None,
        from: 0,
        to: 1,
    };
    expected[choice].push_str(&text);
    log.delta(Delta {
        choice,
        prompt: (shape & 4 != 0).then_some(prompt),
        text: &text,
        tokens: &tokens,
        logprobs: if with_logprobs { &logprobs } else { &[] },
        finish: match shape & 0x18 {
            0x08 => Some(FinishReason::Stop),
            0x10 => Some(FinishReason::Length),
            _ => None,
        },
    });
}

fn read(bytes: &[u8], is_done: bool, expected: &[String; 2]) {
    let body = String::from_utf8_lossy(bytes);
    assert_eq!(body.ends_with("data: [DONE]\n\n"), is_done, "{body}");
    let mut texts = [String::new(), String::new()];
    for event in body.split_terminator("\n\n") {
        assert!(!event.contains('\n'), "{event:?} is one line");
        let Some(json) = event.strip_prefix("data: ") else {
            assert_eq!(event, ": ping");
            continue;
        };
        if json == "[DONE]" {
            continue;
        }
        let event: Result<Value, _> = serde_json::from_str(json);
        assert!(event.is_ok(), "{json:?} is JSON");
        let choice = &event.unwrap_or_default()["choices"][0];
        let index = choice["index"].as_u64().unwrap_or(0);
        let text = choice["text"].as_str();
        let text = text.or(choice["delta"]["content"].as_str()).unwrap_or("");
        texts[usize::from(index == 1)].push_str(text);
    }
    assert_eq!(&texts, expected);
}
