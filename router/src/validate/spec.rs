//! What a request asks for, before and after its check.

use std::{iter, time::Duration};

use super::slo::SloHead;
use crate::{
    error::{Error, Reason},
    metrics::SloTargets,
    tokens::Message,
    wire::worker::LogitAdjustments,
};

/// Prompt of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenized without a chat template.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
    /// A chat, rendered by the model's template.
    Messages(Vec<Message>),
}

impl Prompt {
    /// How much text it has, in bytes.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
            Self::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
        }
    }

    /// The field that it came in.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Messages(_) => "messages",
            Self::Text(_) | Self::Tokens(_) => "prompt",
        }
    }
}

/// A request as its front read it: types are right, nothing else is. `None` means the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// Model that the client named.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Option<Prompt>,
    /// Further prompts, each to be answered as the first one is.
    pub batch: Vec<Prompt>,
    /// Only the last tokens of a longer prompt count; -1: as many as fit.
    pub truncate_prompt_tokens: Option<i64>,
    /// Whether the tokenizer puts its own tokens around the prompt (bos, say).
    pub add_special_tokens: Option<bool>,
    /// Most tokens of each answer.
    pub max_tokens: Option<i64>,
    /// The client's own name of `max_tokens`, if it is another.
    pub max_tokens_name: Option<&'static str>,
    /// Most tokens if `max_tokens` is absent; `None`: what the context leaves.
    pub max_tokens_default: Option<u32>,
    /// Least tokens of each answer.
    pub min_tokens: Option<i64>,
    /// Choices of each prompt.
    pub n: Option<i64>,
    /// Choices of each prompt that are made, of which the best `n` are told.
    pub best_of: Option<i64>,
    /// The answer begins with its prompt.
    pub echo: bool,
    /// 0 takes the most likely token.
    pub temperature: Option<f64>,
    /// Nucleus.
    pub top_p: Option<f64>,
    /// 0 or -1: all tokens.
    pub top_k: Option<i64>,
    /// Least probability relative to the most likely token.
    pub min_p: Option<f64>,
    /// Subtracted from the logit of each token that the answer holds.
    pub presence_penalty: Option<f64>,
    /// Subtracted for each time that the answer holds the token.
    pub frequency_penalty: Option<f64>,
    /// Divides the logits of tokens that prompt or answer hold.
    pub repetition_penalty: Option<f64>,
    /// Added to the logit of a token.
    pub logit_bias: Vec<(i64, f64)>,
    /// Repeatable answers.
    pub seed: Option<u64>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<i64>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Log probabilities of this many alternatives.
    pub top_logprobs: Option<i64>,
    /// The client's own name of `top_logprobs`, if it is another.
    pub top_logprobs_name: Option<&'static str>,
    /// Log probabilities of the prompt's tokens and of this many alternatives.
    pub prompt_logprobs: Option<i64>,
    /// A stop string or token that ends the answer is part of it.
    pub include_stop: bool,
    /// Special tokens have no text in the answer; the default.
    pub skip_special_tokens: Option<bool>,
    /// Lower goes first.
    pub priority: Option<i64>,
    /// Requests of a tenant share what workers computed only if theirs is equal.
    pub cache_salt: Option<String>,
    /// Target: time to first token in milliseconds.
    pub slo_ttft_ms: Option<i64>,
    /// Target: time per token after the first in milliseconds.
    pub slo_tpot_ms: Option<i64>,
    /// The same by its head, and the least that its key may ask for.
    pub slo_head: SloHead,
    /// Fields that were read past: unknown ones, and known ones that change nothing.
    pub ignored_fields: u64,
}

/// How tokens are drawn, in the worker's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy.
    pub temperature: f32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub top_k: u32,
    /// 0: off.
    pub min_p: f32,
    /// `None`: the service draws one.
    pub seed: Option<u64>,
}

/// How long an answer may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLength {
    /// The client's number; must fit the context.
    Exactly(u32),
    /// A default; the context may leave less.
    AtMost(u32),
    /// What the context leaves.
    Rest,
}

/// How much of a long prompt counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// So many of its last tokens.
    To(u32),
    /// What the context holds beside the answer.
    Fit,
}

/// A request whose every value is inside of its limits.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of the request")]
pub struct Spec {
    /// Token ids are below the vocabulary's size.
    pub prompt: Prompt,
    /// Further prompts, each to be answered as the first one is.
    pub batch: Vec<Prompt>,
    /// Only the last tokens of a longer prompt count.
    pub truncate: Option<Truncate>,
    /// Whether the tokenizer puts its own tokens around a prompt; `None`: as its kind has it.
    pub special_tokens: Option<bool>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of each answer.
    pub max_tokens: AnswerLength,
    /// Least tokens of each answer.
    pub min_tokens: u32,
    /// Choices of each prompt that are made, 1 to `choices_max`.
    pub choices: u32,
    /// The best so many of them are told, 1 to `choices`.
    pub told: u32,
    /// The answer begins with its prompt.
    pub echo: bool,
    /// Changes to the logits; `None`: none.
    pub adjustments: Option<LogitAdjustments>,
    /// Strings that end the answer, none of them empty.
    pub stop: Vec<String>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Log probabilities of the chosen token and of this many alternatives.
    pub top_logprobs: Option<u32>,
    /// Log probabilities of the prompt's tokens and of this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// A stop string or token that ends the answer is part of it.
    pub include_stop: bool,
    /// Special tokens have no text in the answer.
    pub skip_special: bool,
    /// Lower goes first.
    pub priority: i32,
    /// Requests of a tenant share what workers computed only if theirs is equal.
    pub cache_salt: String,
    /// Targets that it asks for.
    pub slo: SloTargets,
    /// What the client gives the request, at most; `None`: the server's limit.
    pub timeout: Option<Duration>,
}

impl Spec {
    /// All prompts, in order.
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        iter::once(&self.prompt).chain(&self.batch)
    }

    /// Whether only the prompt is wanted: the one token that is made for it is dropped.
    pub fn drops_answer(&self) -> bool {
        self.max_tokens == AnswerLength::Exactly(0)
    }

    /// Most tokens of a prompt that is cut to what counts; `None`: no prompt is cut.
    pub fn prompt_tokens_max(&self, max_model_len: u32) -> Option<usize> {
        let max = match (self.truncate?, self.max_tokens) {
            (Truncate::To(wanted), _) => wanted,
            (Truncate::Fit, AnswerLength::Exactly(answer)) => {
                max_model_len.saturating_sub(answer.max(1)).max(1)
            }
            (Truncate::Fit, AnswerLength::AtMost(_) | AnswerLength::Rest) => max_model_len - 1,
        };
        usize::try_from(max).ok()
    }

    /// Most tokens to make after a prompt of `prompt_tokens`, at least 1, in a context of
    /// `max_model_len` tokens.
    pub fn fit(&self, prompt_tokens: usize, max_model_len: u32) -> Result<u32, Error> {
        let exceeded = |what: String| {
            let message = format!("{what}; the model's context is {max_model_len} tokens");
            Error::new(Reason::ContextLengthExceeded, message).with_field(self.prompt.field())
        };
        let left = u32::try_from(prompt_tokens)
            .ok()
            .and_then(|prompt| max_model_len.checked_sub(prompt))
            .filter(|left| *left > 0);
        let Some(left) = left else {
            return Err(exceeded(format!(
                "the prompt has {prompt_tokens} tokens and leaves no room for an answer"
            )));
        };
        let max_tokens = match self.max_tokens {
            AnswerLength::Exactly(wanted) if wanted > left => {
                return Err(exceeded(format!(
                    "{prompt_tokens} prompt tokens and max_tokens {wanted} do not fit"
                )));
            }
            // One token is made and dropped: workers know no answer without any.
            AnswerLength::Exactly(wanted) => wanted.max(1),
            AnswerLength::AtMost(default) => default.min(left),
            AnswerLength::Rest => left,
        };
        if self.min_tokens > max_tokens {
            let message = format!(
                "min_tokens is {}, but the answer has at most {max_tokens} tokens",
                self.min_tokens
            );
            return Err(Error::new(Reason::InvalidValue, message).with_field("min_tokens"));
        }
        Ok(max_tokens)
    }
}
