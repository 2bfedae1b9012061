//! In which form a request wants its answer.

use crate::validate::{AnswerForm, Endpoint, Spec};

/// How an answer is to be written.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of the request")]
pub(super) struct Form {
    pub(super) endpoint: Endpoint,
    /// Events instead of one object.
    pub(super) stream: bool,
    /// Usage in a last event.
    pub(super) include_usage: bool,
    /// Usage so far in every event.
    pub(super) continuous_usage: bool,
    /// Token ids of prompt and answer.
    pub(super) token_ids: bool,
    /// The answer begins with its prompt.
    pub(super) echo: bool,
    /// Log probabilities of the answer's tokens; with `echo` of the prompt's too.
    pub(super) logprobs: bool,
    /// Log probabilities of the prompt's tokens in vLLM's shape.
    pub(super) prompt_logprobs: bool,
    /// Special tokens have no text.
    pub(super) skip_special: bool,
    pub(super) prompts: usize,
    /// Choices of each prompt that are made.
    pub(super) made: usize,
    /// The best so many of them are told.
    pub(super) told: usize,
}

impl Form {
    /// Of a request that became `spec`.
    pub(super) fn new(endpoint: Endpoint, asked: AnswerForm, spec: &Spec) -> Self {
        Self {
            endpoint,
            stream: asked.stream,
            include_usage: asked.include_usage,
            continuous_usage: asked.include_usage && asked.continuous_usage,
            token_ids: asked.token_ids,
            echo: spec.echo,
            logprobs: spec.top_logprobs.is_some(),
            prompt_logprobs: asked.prompt_logprobs,
            skip_special: spec.skip_special,
            prompts: 1 + spec.batch.len(),
            made: spec.choices as usize,
            told: spec.told as usize,
        }
    }
}
