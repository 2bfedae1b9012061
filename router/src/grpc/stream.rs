//! An answer as a stream of events: `GenerateResponse` or `ChatResponse`.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::time::Sleep;
use tonic::{Status, codegen::tokio_stream::Stream};

use super::{call, status};
use crate::{
    error::Error,
    service::{Answer, Delta, Next, Render, Usage},
    streams::sink::{FinishReason, TokenLogprobs},
    tokens::{ServedModel, Vocabulary},
    wire::v1::{self, ChatResponse, GenerateResponse, chat_response, generate_response::Event},
};

/// A message of the stream. Both have the same events, of types that only look the same.
pub(super) trait Reply: Send + Unpin + 'static {
    /// Event `sequence_number` of its stream.
    fn new(sequence_number: u64, event: Event) -> Self;
}

impl Reply for GenerateResponse {
    fn new(sequence_number: u64, event: Event) -> Self {
        Self {
            sequence_number,
            event: Some(event),
        }
    }
}

impl Reply for ChatResponse {
    fn new(sequence_number: u64, event: Event) -> Self {
        let event = match event {
            Event::Started(started) => chat_response::Event::Started(started),
            Event::Delta(delta) => chat_response::Event::Delta(delta),
            Event::Finished(finished) => chat_response::Event::Finished(finished),
            Event::Done(done) => chat_response::Event::Done(done),
        };
        Self {
            sequence_number,
            event: Some(event),
        }
    }
}

/// Polls its answer; dropping it before the end cancels the request.
#[derive(Debug)]
pub(super) struct AnswerStream<R> {
    answer: Option<Answer>,
    writer: EventWriter<R>,
    /// The client's own deadline; the server's is kept by the service.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Numbers events and keeps them until tonic takes them: a fetch brings a few at once.
#[derive(Debug)]
struct EventWriter<R> {
    id: String,
    model: Arc<ServedModel>,
    next_number: u64,
    events: VecDeque<R>,
    failure: Option<Status>,
}

impl<R: Reply> AnswerStream<R> {
    pub(super) fn new(answer: Answer, model: Arc<ServedModel>, deadline: Option<Instant>) -> Self {
        let mut writer = EventWriter {
            id: answer.id().to_owned(),
            next_number: 0,
            events: VecDeque::new(),
            failure: None,
            model,
        };
        writer.push(Event::Started(v1::Started {
            request_id: writer.id.clone(),
            model: writer.model.name.clone(),
            prompt_tokens: answer.prompt_tokens(),
        }));
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
        Self {
            answer: Some(answer),
            writer,
            deadline,
        }
    }
}

impl<R: Reply> Stream for AnswerStream<R> {
    type Item = Result<R, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.writer.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(status) = this.writer.failure.take() {
                return Poll::Ready(Some(Err(status)));
            }
            let Some(answer) = &mut this.answer else {
                return Poll::Ready(None);
            };
            let elapsed = |sleep: &mut Pin<Box<Sleep>>| sleep.as_mut().poll(cx).is_ready();
            if this.deadline.as_mut().is_some_and(elapsed) {
                this.deadline = None;
                answer.fail(call::overdue());
            }
            match answer.poll(cx, &mut this.writer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Next::More) => {}
                Poll::Ready(Next::End) => this.answer = None,
            }
        }
    }
}

impl<R: Reply> EventWriter<R> {
    fn push(&mut self, event: Event) {
        self.events.push_back(R::new(self.next_number, event));
        self.next_number += 1;
    }
}

impl<R: Reply> Render for EventWriter<R> {
    fn delta(&mut self, delta: Delta<'_>) {
        let choice = u32::try_from(delta.choice).unwrap_or(u32::MAX);
        let vocabulary = self.model.tokenizer.vocabulary();
        let pairs = delta.tokens.iter().zip(delta.logprobs);
        let logprobs = pairs
            .map(|(id, entry)| token_logprobs(vocabulary, *id, entry))
            .collect();
        if !delta.tokens.is_empty() || !delta.text.is_empty() {
            self.push(Event::Delta(v1::Delta {
                choice,
                text: delta.text.to_owned(),
                token_ids: delta.tokens.to_vec(),
                logprobs,
            }));
        }
        if let Some(reason) = delta.finish {
            let reason = match reason {
                FinishReason::Stop => v1::FinishReason::Stop,
                FinishReason::Length => v1::FinishReason::Length,
            };
            self.push(Event::Finished(v1::Finished {
                choice,
                reason: reason.into(),
            }));
        }
    }

    /// HTTP/2 has pings of its own.
    fn ping(&mut self) {}

    fn done(&mut self, usage: Usage) {
        self.push(Event::Done(v1::Done {
            usage: Some(v1::Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: u32::try_from(usage.completion_tokens).unwrap_or(u32::MAX),
                cached_tokens: usage.cached_tokens,
            }),
        }));
    }

    fn failed(&mut self, error: Error) {
        self.failure = Some(status::of(&error, Some(&self.id)));
    }
}

fn token_logprobs(vocabulary: &Vocabulary, id: u32, entry: &TokenLogprobs) -> v1::TokenLogprobs {
    let token = |id: u32, logprob: f32| v1::TokenLogprob {
        token_id: id,
        token_bytes: vocabulary.bytes(id).to_vec(),
        logprob,
    };
    v1::TokenLogprobs {
        chosen: Some(token(id, entry.chosen)),
        top: entry
            .top
            .iter()
            .map(|(id, logprob)| token(*id, *logprob))
            .collect(),
    }
}
