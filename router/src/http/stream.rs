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

use super::{
    error, json,
    logprobs::{self},
    shapes,
};
use crate::{
    error::Error,
    service::{Answer, Delta, Next, Render, Usage},
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
    endpoint: Endpoint,
    model: std::sync::Arc<ServedModel>,
    /// Everything of a chunk up to the number of its choice.
    prefix: String,
    /// What every chunk but the last has for `usage`, with the closing brace.
    suffix: &'static str,
    include_usage: bool,
    /// Whether the roles have been written.
    begun: bool,
    /// Per choice: characters of its tokens so far, for `text_offset`.
    offsets: Vec<usize>,
    out: BytesMut,
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
            let bytes = self.writer.out.split().freeze();
            if !bytes.is_empty() {
                return Poll::Ready(Some(bytes));
            }
        }
    }
}

impl EventWriter {
    /// A writer for an answer of `choices` choices.
    pub(super) fn new(
        endpoint: Endpoint,
        model: std::sync::Arc<ServedModel>,
        fingerprint: &str,
        id: &str,
        choices: usize,
        include_usage: bool,
    ) -> Self {
        let object = match endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        let mut name = BytesMut::new();
        json::escape(&model.name, &mut name);
        let prefix = format!(
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":\"{}\",\
             \"system_fingerprint\":\"{fingerprint}\",\"choices\":[",
            shapes::answer_id(endpoint, id),
            shapes::now_seconds(),
            String::from_utf8_lossy(&name),
        );
        let suffix = if include_usage {
            ",\"usage\":null}\n\n"
        } else {
            "}\n\n"
        };
        Self {
            endpoint,
            model,
            prefix,
            suffix,
            include_usage,
            begun: false,
            offsets: vec![0; choices],
            out: BytesMut::new(),
        }
    }

    fn write(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Start of a chunk for `choice`, up to its content.
    fn open(&mut self, choice: usize) {
        let prefix = mem::take(&mut self.prefix);
        self.write(&prefix);
        self.prefix = prefix;
        // Into a BytesMut, which grows: writing cannot fail.
        let _ = write!(self.out, "{{\"index\":{choice}");
    }

    fn close(&mut self, finish: Option<FinishReason>) {
        match finish.map(shapes::finish_reason) {
            None => self.write(",\"finish_reason\":null}]"),
            Some("stop") => self.write(",\"finish_reason\":\"stop\"}]"),
            Some(_) => self.write(",\"finish_reason\":\"length\"}]"),
        }
        self.write(self.suffix);
    }

    fn begin(&mut self) {
        if mem::replace(&mut self.begun, true) || self.endpoint == Endpoint::Completions {
            return;
        }
        for choice in 0..self.offsets.len() {
            self.open(choice);
            self.write(",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
            self.close(None);
        }
    }

    fn logprobs(&mut self, delta: &Delta<'_>) {
        if delta.logprobs.is_empty() {
            self.write(",\"logprobs\":null");
            return;
        }
        let mut none = 0;
        let rendered = logprobs::render(
            self.endpoint,
            &*self.model.tokenizer,
            delta.tokens,
            delta.logprobs,
            self.offsets.get_mut(delta.choice).unwrap_or(&mut none),
        );
        self.write(",\"logprobs\":");
        // Strings and finite numbers: serializing cannot fail.
        let json = serde_json::to_string(&rendered).unwrap_or_else(|_| "null".to_owned());
        self.write(&json);
    }
}

impl Render for EventWriter {
    fn delta(&mut self, delta: Delta<'_>) {
        self.begin();
        let has_text = !delta.text.is_empty() || !delta.logprobs.is_empty();
        match self.endpoint {
            Endpoint::Chat => {
                if has_text {
                    self.open(delta.choice);
                    self.write(",\"delta\":{\"content\":\"");
                    json::escape(delta.text, &mut self.out);
                    self.write("\"}");
                    self.logprobs(&delta);
                    self.close(None);
                }
                if delta.finish.is_some() {
                    self.open(delta.choice);
                    self.write(",\"delta\":{},\"logprobs\":null");
                    self.close(delta.finish);
                }
            }
            Endpoint::Completions if has_text || delta.finish.is_some() => {
                self.open(delta.choice);
                self.write(",\"text\":\"");
                json::escape(delta.text, &mut self.out);
                self.write("\"");
                self.logprobs(&delta);
                self.close(delta.finish);
            }
            Endpoint::Completions => {}
        }
    }

    fn ping(&mut self) {
        self.write(": ping\n\n");
    }

    fn done(&mut self, usage: Usage) {
        if self.include_usage {
            let prefix = mem::take(&mut self.prefix);
            self.write(&prefix);
            // Numbers only: serializing cannot fail.
            let usage = serde_json::to_string(&shapes::Usage::from(usage)).unwrap_or_default();
            self.write("],\"usage\":");
            self.write(&usage);
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
