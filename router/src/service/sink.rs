//! The receiving end of one choice: what `streams` calls with every token.

use std::sync::Arc;

use super::{outbox::Outbox, text::AnswerText};
use crate::{
    error::Error,
    streams::sink::{FinishReason, Flow, SeatNews, Sink, TokenChunk, TokenLogprobs},
};

/// Turns the tokens of one choice into text in the request's outbox.
#[derive(Debug)]
pub(super) struct ChoiceSink {
    outbox: Arc<Outbox>,
    choice: usize,
    text: AnswerText,
}

impl ChoiceSink {
    pub(super) fn new(outbox: Arc<Outbox>, choice: usize, text: AnswerText) -> Self {
        Self {
            outbox,
            choice,
            text,
        }
    }
}

impl Sink for ChoiceSink {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        self.outbox.push(self.choice, &mut self.text, chunk)
    }

    fn seat(&mut self, news: SeatNews<'_>) {
        self.outbox.seat(self.choice, news);
    }

    fn prompt_logprobs(&mut self, start: u32, logprobs: &[TokenLogprobs]) {
        self.outbox.prompt_logprobs(self.choice, start, logprobs);
    }

    fn finish(&mut self, reason: FinishReason) {
        self.outbox.finish(self.choice, &mut self.text, reason);
    }

    fn fail(&mut self, error: Error) {
        self.outbox.fail(error);
    }
}
