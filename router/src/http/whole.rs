//! Answers as one object.

use serde::Serialize;

use super::{
    logprobs::{self, Logprobs},
    shapes,
};
use crate::{
    error::Error,
    service::{Delta, Render, Usage},
    streams::sink::{FinishReason, TokenLogprobs},
    tokens::ServedModel,
    validate::Endpoint,
};

/// Collects an answer until it is complete.
#[derive(Debug)]
pub(super) struct Collector {
    choices: Vec<Collected>,
    /// Set at the end: what was used, or why there is no answer.
    pub(super) outcome: Option<Result<Usage, Error>>,
}

#[derive(Clone, Debug, Default)]
struct Collected {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<FinishReason>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Choice<'a>>,
    usage: shapes::Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Message(Message<'a>),
    Text(&'a str),
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

impl Collector {
    /// For an answer of `choices` choices.
    pub(super) fn new(choices: usize) -> Self {
        Self {
            choices: vec![Collected::default(); choices],
            outcome: None,
        }
    }

    /// The response's body.
    pub(super) fn body<'a>(
        &'a self,
        endpoint: Endpoint,
        model: &'a ServedModel,
        fingerprint: &'a str,
        id: &str,
        usage: Usage,
    ) -> Vec<u8> {
        let choice = |(index, collected): (usize, &'a Collected)| {
            let content = match endpoint {
                Endpoint::Chat => Content::Message(Message {
                    role: "assistant",
                    content: &collected.text,
                    refusal: None,
                }),
                Endpoint::Completions => Content::Text(&collected.text),
            };
            Choice {
                index,
                content,
                logprobs: logprobs::render(
                    endpoint,
                    &*model.tokenizer,
                    &collected.tokens,
                    &collected.logprobs,
                    &mut 0,
                ),
                finish_reason: collected.finish.map(shapes::finish_reason),
            }
        };
        let completion = Completion {
            id: shapes::answer_id(endpoint, id),
            object: match endpoint {
                Endpoint::Chat => "chat.completion",
                Endpoint::Completions => "text_completion",
            },
            created: shapes::now_seconds(),
            model: &model.name,
            system_fingerprint: fingerprint,
            choices: self.choices.iter().enumerate().map(choice).collect(),
            usage: usage.into(),
        };
        // Strings and finite numbers into a Vec: serializing cannot fail.
        serde_json::to_vec(&completion).unwrap_or_default()
    }
}

impl Render for Collector {
    fn delta(&mut self, delta: Delta<'_>) {
        let Some(choice) = self.choices.get_mut(delta.choice) else {
            return;
        };
        choice.text.push_str(delta.text);
        choice.tokens.extend_from_slice(delta.tokens);
        choice.logprobs.extend_from_slice(delta.logprobs);
        choice.finish = delta.finish.or(choice.finish);
    }

    fn ping(&mut self) {}

    fn done(&mut self, usage: Usage) {
        self.outcome = Some(Ok(usage));
    }

    fn failed(&mut self, error: Error) {
        self.outcome = Some(Err(error));
    }
}
