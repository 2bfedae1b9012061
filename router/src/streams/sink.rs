//! The receiving end of one choice's answer.

use std::sync::Arc;

use crate::error::Error;

/// What a sink gets at once: the tokens that one report (or several, merged) brought for its
/// sequence, in order.
#[derive(Clone, Copy, Debug)]
pub struct TokenChunk<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// One entry per token if log probabilities were asked for, else empty.
    pub logprobs: &'a [TokenLogprobs],
}

/// Log probabilities of one position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Most likely others: token and log probability, best first.
    pub top: Vec<(u32, f32)>,
}

/// Whether a sink wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// The answer is complete (a stop string) or nobody reads it: close the seat, send nothing
    /// more.
    Stop,
}

/// Why a sequence ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End of sequence, stop token or stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

/// What became of a sequence's seats, for the account of its request.
#[derive(Clone, Copy, Debug)]
pub enum SeatNews<'a> {
    /// A worker computes it: at first, or again.
    Placed {
        /// Its name.
        worker: &'a Arc<str>,
    },
    /// The worker that was placed last had so many tokens of the prompt already.
    Reused {
        /// Tokens.
        tokens: u32,
    },
    /// Its KV arrived at another worker, which goes on.
    Switched {
        /// Its name.
        worker: &'a Arc<str>,
    },
}

/// Where the tokens of one sequence go. Implemented by `service`, called by `streams` on the thread
/// that owns the stream.
///
/// Order: any number of `tokens`, then at most one of `finish` and `fail`, nothing after it. After
/// `tokens` returned [`Flow::Stop`] nothing more is called: the sink has ended itself.
pub trait Sink: Send {
    /// More tokens of the answer.
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow;
    /// Log probabilities of the prompt's tokens at positions `start` and on, if they were asked
    /// for: in order, each piece before the tokens of the step that computed it. A replay tells
    /// them again from the start; a worker that dies at the wrong moment takes some with it.
    fn prompt_logprobs(&mut self, _start: u32, _logprobs: &[TokenLogprobs]) {}
    /// Where the sequence is; may come at any time before the end.
    fn seat(&mut self, _news: SeatNews<'_>) {}
    /// The worker ended the answer; the last token came with the `tokens` call before.
    fn finish(&mut self, reason: FinishReason);
    /// The request failed. Tokens may have been delivered before.
    fn fail(&mut self, error: Error);
}
