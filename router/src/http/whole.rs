//! Answers as one object.

use std::borrow::Cow;

use serde::Serialize;

use super::{
    form::Form,
    logprobs::{self, Logprobs, Offset},
    shapes,
};
use crate::{
    error::Error,
    service::{Delta, PromptPart, Render, Usage},
    streams::sink::{FinishReason, TokenLogprobs},
    tokens::ServedModel,
    validate::Endpoint,
};

/// About what one log probability takes in an answer, in bytes.
const LOGPROB_BYTES: usize = 64;

/// Collects an answer until it is complete.
#[derive(Debug)]
pub(super) struct Collector {
    form: Form,
    /// Of all prompts, one after another.
    choices: Vec<Collected>,
    /// Set at the end: what was used, or why there is no answer.
    pub(super) outcome: Option<Result<Usage, Error>>,
}

#[derive(Clone, Debug, Default)]
struct Collected {
    prompt: PromptShown,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<FinishReason>,
}

/// What the answer tells of its prompt.
#[derive(Clone, Debug, Default)]
struct PromptShown {
    text: String,
    tokens: Vec<u32>,
    logprobs: Option<Vec<TokenLogprobs>>,
}

impl PromptShown {
    /// Keeps a part; token ids if they are shown or have log probabilities.
    fn add(&mut self, part: PromptPart<'_>, with_ids: bool) {
        if part.from == 0 {
            self.text.push_str(part.text);
            if with_ids || part.logprobs.is_some() {
                self.tokens.extend_from_slice(part.tokens);
            }
        }
        if part.logprobs.is_some() {
            let entries = part.entries().filter_map(|(_, entry)| entry.cloned());
            self.logprobs.get_or_insert_default().extend(entries);
        }
    }
}

/// What the bodies of one router have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    pub(super) model: &'a ServedModel,
    pub(super) fingerprint: &'a str,
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
    #[serde(flatten)]
    prompt: PromptDetails<'a>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    #[serde(flatten)]
    prompt: PromptDetails<'a>,
}

/// vLLM's fields: of a completion in each choice, of a chat beside them.
#[derive(Default, Serialize)]
struct PromptDetails<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<logprobs::PromptLogprobs>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Message(Message<'a>),
    Text(Cow<'a, str>),
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

impl Collector {
    /// For an answer in `form`.
    pub(super) fn new(form: Form) -> Self {
        Self {
            form,
            choices: vec![Collected::default(); form.prompts * form.made],
            outcome: None,
        }
    }

    /// About how long the body is, in bytes: whether writing it would hold up other answers.
    pub(super) fn body_bytes(&self) -> usize {
        let entries = |logprobs: &[TokenLogprobs]| -> usize {
            logprobs.iter().map(|entry| 1 + entry.top.len()).sum()
        };
        let of = |choice: &Collected| {
            let shown = choice.prompt.logprobs.as_deref().unwrap_or_default();
            let ids = choice.tokens.len() + choice.prompt.tokens.len();
            let logprobs = entries(&choice.logprobs) + entries(shown);
            let text = choice.text.len() + choice.prompt.text.len();
            text + ids * size_of::<u32>() + logprobs * LOGPROB_BYTES
        };
        self.choices.iter().map(of).sum()
    }

    /// The response's body.
    pub(super) fn body(&self, sender: Sender<'_>, id: &str, usage: Usage) -> Vec<u8> {
        let endpoint = self.form.endpoint;
        let model = sender.model;
        let of_chat = match self.choices.first() {
            Some(first) if endpoint == Endpoint::Chat => first.details(self.form, model),
            _ => PromptDetails::default(),
        };
        let told =
            (self.choices.chunks(self.form.made)).flat_map(|made| best(made, self.form.told));
        let choices = told.enumerate();
        let completion = Completion {
            id: shapes::answer_id(endpoint, id),
            object: match endpoint {
                Endpoint::Chat => "chat.completion",
                Endpoint::Completions => "text_completion",
            },
            created: shapes::now_seconds(),
            model: &model.name,
            system_fingerprint: sender.fingerprint,
            choices: choices
                .map(|(index, collected)| collected.choice(index, self.form, model))
                .collect(),
            usage: usage.into(),
            prompt: of_chat,
        };
        // Strings and finite numbers into a Vec: serializing cannot fail.
        serde_json::to_vec(&completion).unwrap_or_default()
    }
}

/// The `told` choices with the highest mean log probability, best first; all of them as they are.
fn best(made: &[Collected], told: usize) -> Vec<&Collected> {
    let mut choices: Vec<&Collected> = made.iter().collect();
    if told < choices.len() {
        choices.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        choices.truncate(told);
    }
    choices
}

impl Collected {
    fn mean_logprob(&self) -> f64 {
        if self.logprobs.is_empty() {
            return f64::NEG_INFINITY;
        }
        let sum: f64 = (self.logprobs.iter())
            .map(|entry| f64::from(entry.chosen))
            .sum();
        sum / self.logprobs.len() as f64
    }

    fn choice<'a>(&'a self, index: usize, form: Form, model: &ServedModel) -> Choice<'a> {
        let prompt = PromptPart {
            text: &self.prompt.text,
            tokens: &self.prompt.tokens,
            logprobs: self.prompt.logprobs.as_deref(),
            from: 0,
            to: self.prompt.tokens.len(),
        };
        let delta = Delta {
            choice: index,
            prompt: Some(prompt),
            text: &self.text,
            tokens: &self.tokens,
            logprobs: &self.logprobs,
            finish: self.finish,
        };
        let vocabulary = model.tokenizer.vocabulary();
        let (content, prompt) = match form.endpoint {
            Endpoint::Chat => {
                let message = Message {
                    role: "assistant",
                    content: &self.text,
                    refusal: None,
                };
                (Content::Message(message), PromptDetails::default())
            }
            Endpoint::Completions => {
                let text = match self.prompt.text.as_str() {
                    "" => Cow::Borrowed(self.text.as_str()),
                    prompt => Cow::Owned(format!("{prompt}{}", self.text)),
                };
                (Content::Text(text), self.details(form, model))
            }
        };
        Choice {
            index,
            content,
            logprobs: logprobs::render(form, vocabulary, &delta, &mut Offset::default()),
            finish_reason: self.finish.map(shapes::finish_reason),
            token_ids: form.token_ids.then_some(&self.tokens),
            prompt,
        }
    }

    fn details(&self, form: Form, model: &ServedModel) -> PromptDetails<'_> {
        let (shown, vocabulary) = (&self.prompt, model.tokenizer.vocabulary());
        let logprobs = shown.logprobs.as_ref().filter(|_| form.prompt_logprobs);
        PromptDetails {
            prompt_token_ids: form.token_ids.then_some(&shown.tokens),
            prompt_logprobs: logprobs
                .map(|entries| logprobs::of_prompt(vocabulary, entries, &shown.tokens)),
        }
    }
}

impl Render for Collector {
    fn delta(&mut self, delta: Delta<'_>) {
        let Some(choice) = self.choices.get_mut(delta.choice) else {
            return;
        };
        if let Some(prompt) = delta.prompt {
            choice.prompt.add(prompt, self.form.token_ids);
        }
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
