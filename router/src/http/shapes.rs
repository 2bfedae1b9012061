//! Names and small objects that all of OpenAI's bodies share.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::{service, streams::sink::FinishReason, validate::Endpoint};

/// Tokens that a request used.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
}

impl From<service::Usage> for Usage {
    fn from(usage: service::Usage) -> Self {
        let prompt_tokens = u64::from(usage.prompt_tokens);
        Self {
            prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached_tokens.into(),
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: 0,
            },
        }
    }
}

/// `choices[].finish_reason`.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// `id` of the answer to request `id`.
pub(super) fn answer_id(endpoint: Endpoint, id: &str) -> String {
    match endpoint {
        Endpoint::Chat => format!("chatcmpl-{id}"),
        Endpoint::Completions => format!("cmpl-{id}"),
    }
}

/// Seconds since 1970.
pub(super) fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
