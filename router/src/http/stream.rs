//! Answers as server-sent events: a response body that polls its answer.

use std::{
    convert::Infallible,
    fmt::Write as _,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use serde::Serialize;

use super::{
    error,
    form::Form,
    json,
    logprobs::{self, Logprobs, Offset},
    shapes,
};
use crate::{
    error::Error,
    service::{Answer, Delta, Next, PromptPart, Render, Usage},
    streams::sink::FinishReason,
    tokens::ServedModel,
    validate::Endpoint,
};

/// Body of a response.
#[derive(Debug)]
pub(super) enum Body {
    /// All of it at once.
    Whole(Option<Bytes>),
    /// Events as they come; boxed, because most responses are whole.
    Events(Box<Events>),
}

/// An answer that is streamed.
#[derive(Debug)]
pub(super) struct Events {
    /// Gone once it has ended; dropping it before cancels the request.
    answer: Option<Answer>,
    writer: EventWriter,
}

/// Writes events in the shape of one route.
#[derive(Debug)]
pub(super) struct EventWriter {
    form: Form,
    model: std::sync::Arc<ServedModel>,
    /// Everything of a chunk up to the number of its choice.
    prefix: String,
    /// Whether the roles have been written.
    begun: bool,
    choices: Vec<Choice>,
    out: BytesMut,
}

/// What was written of a choice so far.
#[derive(Clone, Debug, Default)]
struct Choice {
    prompt_tokens: usize,
    completion_tokens: usize,
    /// For `text_offset`.
    offset: Offset,
    /// Bytes of the prompt's text that were written.
    echoed: usize,
}

impl Body {
    /// A body that is complete.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A body that follows `answer`.
    pub(super) fn events(answer: Answer, writer: EventWriter) -> Self {
        Self::Events(Box::new(Events {
            answer: Some(answer),
            writer,
        }))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Self::Whole(bytes) => bytes.take(),
            Self::Events(events) => ready!(events.poll(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}

impl Events {
    /// Everything that waits, in one piece; `None` at the end.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some(answer) = &mut self.answer else {
                return Poll::Ready(None);
            };
            let next = ready!(answer.poll(cx, &mut self.writer));
            if next == Next::End {
                self.answer = None;
            }
            let bytes = self.writer.take();
            if !bytes.is_empty() {
                return Poll::Ready(Some(bytes));
            }
        }
    }
}

impl EventWriter {
    /// A writer for an answer in `form`.
    pub(super) fn new(
        form: Form,
        model: std::sync::Arc<ServedModel>,
        fingerprint: &str,
        id: &str,
    ) -> Self {
        let object = match form.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        let mut name = BytesMut::new();
        json::escape(&model.name, &mut name);
        let prefix = format!(
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":\"{}\",\
             \"system_fingerprint\":\"{fingerprint}\",\"choices\":[",
            shapes::answer_id(form.endpoint, id),
            shapes::now_seconds(),
            String::from_utf8_lossy(&name),
        );
        Self {
            form,
            model,
            prefix,
            begun: false,
            choices: vec![Choice::default(); form.prompts * form.made],
            out: BytesMut::new(),
        }
    }

    /// What was written since the last call.
    pub(super) fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    fn write(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// `,"name":value`.
    fn field(&mut self, name: &str, value: &impl Serialize) {
        // Strings and finite numbers: serializing cannot fail.
        let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
        // Into a BytesMut, which grows: writing cannot fail.
        let _ = write!(self.out, ",\"{name}\":{json}");
    }

    /// Start of a chunk for `choice`, up to its content.
    fn open(&mut self, choice: usize) {
        let prefix = mem::take(&mut self.prefix);
        self.write(&prefix);
        self.prefix = prefix;
        // Into a BytesMut, which grows: writing cannot fail.
        let _ = write!(self.out, "{{\"index\":{choice}");
    }

    /// End of a chunk for `choice`; `prompt` if its token ids belong to the chunk.
    fn close(
        &mut self,
        choice: usize,
        finish: Option<FinishReason>,
        prompt: Option<PromptPart<'_>>,
    ) {
        match finish.map(shapes::finish_reason) {
            None => self.write(",\"finish_reason\":null}]"),
            Some("stop") => self.write(",\"finish_reason\":\"stop\"}]"),
            Some(_) => self.write(",\"finish_reason\":\"length\"}]"),
        }
        match self.choices.get(choice) {
            Some(counts) if self.form.continuous_usage => {
                let usage = Usage {
                    prompt_tokens: u32::try_from(counts.prompt_tokens).unwrap_or(u32::MAX),
                    // The last chunk tells.
                    cached_tokens: 0,
                    completion_tokens: counts.completion_tokens as u64,
                };
                self.field("usage", &shapes::Usage::from(usage));
            }
            _ if self.form.include_usage => self.write(",\"usage\":null"),
            _ => {}
        }
        if let Some(prompt) = prompt.filter(|_| self.form.token_ids) {
            self.field("prompt_token_ids", &prompt.tokens);
        }
        self.write("}\n\n");
    }

    /// The roles of a chat's choices, which have one prompt.
    fn begin(&mut self, prompt: Option<PromptPart<'_>>) {
        if mem::replace(&mut self.begun, true) || self.form.endpoint == Endpoint::Completions {
            return;
        }
        for choice in 0..self.choices.len() {
            if let Some(counts) = self.choices.get_mut(choice) {
                counts.prompt_tokens = prompt.map_or(0, |prompt| prompt.tokens.len());
            }
            self.open(choice);
            self.write(",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
            self.close(choice, None, prompt.filter(|_| choice == 0));
        }
    }

    fn logprobs(&mut self, delta: &Delta<'_>) -> Option<Logprobs> {
        let vocabulary = self.model.tokenizer.vocabulary();
        let choice = self.choices.get_mut(delta.choice)?;
        logprobs::render(self.form, vocabulary, delta, &mut choice.offset)
    }

    /// The text that belongs to a part of the prompt, once the part's log probabilities are known.
    fn echo<'a>(&mut self, delta: &Delta<'a>) -> &'a str {
        let part = delta.prompt.filter(|_| self.form.echo);
        let Some((part, choice)) = part.zip(self.choices.get_mut(delta.choice)) else {
            return "";
        };
        let end = if part.is_last() {
            part.text.len()
        } else {
            choice.offset.in_echo(part.text)
        };
        let start = mem::replace(&mut choice.echoed, end);
        part.text.get(start..end).unwrap_or_default()
    }

    /// What of a choice's chunk comes after its text.
    fn details(&mut self, delta: &Delta<'_>, logprobs: Option<&Logprobs>) {
        match logprobs {
            Some(rendered) => self.field("logprobs", rendered),
            None => self.write(",\"logprobs\":null"),
        }
        if self.form.token_ids {
            self.field("token_ids", &delta.tokens);
        }
    }

    fn chat(&mut self, delta: &Delta<'_>) {
        if self.has_content(delta) {
            self.open(delta.choice);
            self.write(",\"delta\":{\"content\":\"");
            json::escape(delta.text, &mut self.out);
            self.write("\"}");
            let logprobs = self.logprobs(delta);
            self.details(delta, logprobs.as_ref());
            self.close(delta.choice, None, None);
        }
        if delta.finish.is_some() {
            self.open(delta.choice);
            self.write(",\"delta\":{},\"logprobs\":null");
            self.close(delta.choice, delta.finish, None);
        }
    }

    fn text(&mut self, delta: &Delta<'_>) {
        let logprobs = self.logprobs(delta);
        let echo = self.echo(delta);
        let first = delta.prompt.filter(|prompt| prompt.from == 0);
        let ids = first.filter(|_| self.form.token_ids);
        let has_prompt = !echo.is_empty() || logprobs.is_some() || ids.is_some();
        if !self.has_content(delta) && !has_prompt && delta.finish.is_none() {
            return;
        }
        self.open(delta.choice);
        self.write(",\"text\":\"");
        json::escape(echo, &mut self.out);
        json::escape(delta.text, &mut self.out);
        self.write("\"");
        self.details(delta, logprobs.as_ref());
        if let Some(prompt) = ids {
            // Of a completion they belong to the choice.
            self.field("prompt_token_ids", &prompt.tokens);
        }
        self.close(delta.choice, delta.finish, None);
    }

    fn has_content(&self, delta: &Delta<'_>) -> bool {
        let has_ids = self.form.token_ids && !delta.tokens.is_empty();
        !delta.text.is_empty() || !delta.logprobs.is_empty() || has_ids
    }
}

impl Render for EventWriter {
    fn delta(&mut self, delta: Delta<'_>) {
        if let Some(choice) = self.choices.get_mut(delta.choice) {
            choice.completion_tokens += delta.tokens.len();
            if let Some(prompt) = delta.prompt {
                choice.prompt_tokens = prompt.tokens.len();
            }
        }
        self.begin(delta.prompt);
        match self.form.endpoint {
            Endpoint::Chat => self.chat(&delta),
            Endpoint::Completions => self.text(&delta),
        }
    }

    fn ping(&mut self) {
        self.write(": ping\n\n");
    }

    fn done(&mut self, usage: Usage) {
        if self.form.include_usage {
            let prefix = mem::take(&mut self.prefix);
            self.write(&prefix);
            self.write("]");
            self.field("usage", &shapes::Usage::from(usage));
            self.write("}\n\n");
        }
        self.write("data: [DONE]\n\n");
    }

    fn failed(&mut self, error: Error) {
        self.write("data: ");
        self.out.extend_from_slice(&error::body(&error));
        self.write("\n\n");
    }
}
