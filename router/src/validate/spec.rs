//! What a request asks for, before and after its check.

use std::time::Duration;

use crate::{
    error::{Error, Reason},
    tokens::Message,
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

/// A request as its front read it: types are right, nothing else is. `None` means the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// Model that the client named.
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Option<Prompt>,
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
    /// Choices.
    pub n: Option<i64>,
    /// 0 takes the most likely token.
    pub temperature: Option<f64>,
    /// Nucleus.
    pub top_p: Option<f64>,
    /// 0 or -1: all tokens.
    pub top_k: Option<i64>,
    /// Least probability relative to the most likely token.
    pub min_p: Option<f64>,
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
    /// Higher goes first.
    pub priority: Option<i64>,
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

/// A request whose every value is inside of its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Not empty; token ids below the vocabulary's size.
    pub prompt: Prompt,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of each answer.
    pub max_tokens: AnswerLength,
    /// Least tokens of each answer.
    pub min_tokens: u32,
    /// 1 to `choices_max`.
    pub choices: u32,
    /// Strings that end the answer, none of them empty.
    pub stop: Vec<String>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Log probabilities of the chosen token and of this many alternatives.
    pub top_logprobs: Option<u32>,
    /// Higher goes first.
    pub priority: i32,
    /// What the client gives the request, at most; `None`: the server's limit.
    pub timeout: Option<Duration>,
}

impl Spec {
    /// Most tokens of an answer after a prompt of `prompt_tokens`, in a context of
    /// `max_model_len` tokens.
    pub fn fit(&self, prompt_tokens: usize, max_model_len: u32) -> Result<u32, Error> {
        let exceeded = |what: String| {
            let message = format!("{what}; the model's context is {max_model_len} tokens");
            let field = match self.prompt {
                Prompt::Messages(_) => "messages",
                Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
            };
            Error::new(Reason::ContextLengthExceeded, message).with_field(field)
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
            AnswerLength::Exactly(wanted) => wanted,
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
