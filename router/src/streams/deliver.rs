//! How tokens reach a sink: of the current seat, in order, each position once.

use dopd_core::{event::CloseReason, ids::SequenceId};

use crate::streams::{
    key::{Life, StreamKey},
    messages::{Ended, Flush},
    sink::{FinishReason, Flow, SeatNews, TokenChunk, TokenLogprobs},
    table::{Parked, Streams},
};

/// Log probability of a position for which the worker gave none: OpenAI's "very unlikely".
///
/// Needed only if a worker died between a hand-off and the report of its last token.
pub const LOGPROB_UNKNOWN: f32 = -9_999.0;

impl Streams {
    /// Tokens of seat `life`; dropped unless it is current. Returns the sequence if its sink wants
    /// no more: the stream is gone then.
    pub fn tokens(
        &self,
        key: StreamKey,
        life: Life,
        tokens: &[u32],
        logprobs: &[TokenLogprobs],
    ) -> Option<SequenceId> {
        {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key)?;
            if stream.current != life {
                if let Some(parked) = stream.parked.as_mut().filter(|parked| parked.life == life) {
                    parked.tokens.extend_from_slice(tokens);
                    parked.logprobs.extend_from_slice(logprobs);
                }
                return None;
            }
        }
        let stopped = self.deliver(key, tokens, logprobs);
        if stopped.is_some() {
            return stopped;
        }
        self.unpark(key, false)
    }

    /// Log probabilities of the prompt from position `start` on, from seat `life`; dropped unless
    /// it is current.
    pub fn prompt_logprobs(
        &self,
        key: StreamKey,
        life: Life,
        start: u32,
        logprobs: &[TokenLogprobs],
    ) {
        let sink = {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key).filter(|stream| stream.current == life);
            stream.and_then(|stream| stream.sink.take())
        };
        let Some(mut sink) = sink else { return };
        sink.prompt_logprobs(start, logprobs);
        if let Some(stream) = self.inner.borrow_mut().get(key) {
            stream.sink = Some(sink);
        }
    }

    /// Prompt tokens that seat `life` found in its worker's cache; dropped unless it is current.
    pub fn reused(&self, key: StreamKey, life: Life, tokens: u32) {
        let sink = {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key).filter(|stream| stream.current == life);
            stream.and_then(|stream| stream.sink.take())
        };
        let Some(mut sink) = sink else { return };
        sink.seat(SeatNews::Reused { tokens });
        if let Some(stream) = self.inner.borrow_mut().get(key) {
            stream.sink = Some(sink);
        }
    }

    /// The flush of an import seat after a switch. Dropped unless it is awaited; a legacy waits for
    /// its switch. Returns the sequence if its sink wants no more.
    pub fn flush(
        &self,
        key: StreamKey,
        life: Life,
        flush: Flush,
        tokens: &[u32],
        logprobs: &[TokenLogprobs],
    ) -> Option<SequenceId> {
        let wait = {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key)?;
            let parked = Box::new(Parked {
                life,
                flush,
                tokens: tokens.to_vec(),
                logprobs: logprobs.to_vec(),
            });
            if stream.awaited != Some(life) {
                if flush.is_legacy {
                    stream.legacy = Some(parked);
                }
                return None;
            }
            stream.awaited = None;
            stream.parked = Some(parked);
            // The old seat's report is on its way over another connection, and nobody else knows
            // the log probabilities in it.
            let request = &stream.request;
            let has_more =
                request.sampling.top_logprobs.is_some() || request.prompt_logprobs.is_some();
            has_more && stream.current_open
        };
        self.unpark(key, !wait)
    }

    /// Seat `life` ended. A current seat that finished ends the stream.
    pub fn closed(&self, key: StreamKey, life: Life, ended: &Ended) -> Option<SequenceId> {
        let finish = finish_reason(ended.why);
        {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key)?;
            if ended.note.is_some() {
                stream.note.clone_from(&ended.note);
            }
            if let Some(parked) = stream.parked.as_mut().filter(|parked| parked.life == life) {
                parked.flush.finished = finish.map(|_| ended.why);
                return None;
            }
            if stream.current != life {
                return None;
            }
            stream.current_open = false;
        }
        match finish {
            Some(reason) => {
                self.finish(key, reason);
                None
            }
            None => self.unpark(key, true),
        }
    }

    /// Gives tokens of the current seat to the sink.
    fn deliver(
        &self,
        key: StreamKey,
        tokens: &[u32],
        logprobs: &[TokenLogprobs],
    ) -> Option<SequenceId> {
        let filled;
        let (mut sink, sequence, chunk) = {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key)?;
            // Links refuse reports past the limit; this only keeps the answer bounded for sure.
            let room =
                (stream.request.limits.max_tokens as usize).saturating_sub(stream.answer.len());
            let tokens = tokens.get(..room.min(tokens.len())).unwrap_or_default();
            if tokens.is_empty() {
                return None;
            }
            stream.answer.extend_from_slice(tokens);
            let logprobs = if stream.request.sampling.top_logprobs.is_none() {
                &[]
            } else if logprobs.len() >= tokens.len() {
                logprobs.get(..tokens.len()).unwrap_or_default()
            } else {
                filled = fill(logprobs, tokens.len());
                filled.as_slice()
            };
            let sink = stream.sink.take()?;
            (sink, stream.sequence, TokenChunk { tokens, logprobs })
        };
        let flow = sink.tokens(chunk);
        let mut inner = self.inner.borrow_mut();
        match flow {
            Flow::Continue => {
                if let Some(stream) = inner.get(key) {
                    stream.sink = Some(sink);
                }
                None
            }
            Flow::Stop => {
                let stream = inner.remove(key);
                drop(inner);
                stream.map(|_| sequence)
            }
        }
    }

    /// Makes a parked flush count, if the stream has all tokens before it or `force` is set.
    pub(super) fn unpark(&self, key: StreamKey, force: bool) -> Option<SequenceId> {
        let (parked, skip) = {
            let mut inner = self.inner.borrow_mut();
            let stream = inner.get(key)?;
            let parked = stream.parked.as_ref()?;
            let arrived = parked.flush.have.saturating_add(parked.flush.tail) as usize;
            if !force && stream.answer.len() < arrived {
                return None;
            }
            let skip = (stream.answer.len()).saturating_sub(parked.flush.have as usize);
            let parked = stream.parked.take()?;
            stream.current = parked.life;
            stream.current_seat =
                (stream.import).and_then(|(seat, life)| (life == parked.life).then_some(seat));
            stream.current_open = true;
            (parked, skip)
        };
        let tokens = parked.tokens.get(skip..).unwrap_or_default();
        let tail_left = (parked.flush.tail as usize).saturating_sub(skip);
        let filled;
        let logprobs = if parked.logprobs.is_empty() || tail_left > 0 {
            let mut all = vec![unknown(); tail_left];
            all.extend_from_slice(&parked.logprobs);
            filled = all;
            filled.as_slice()
        } else {
            let past_tail = skip.saturating_sub(parked.flush.tail as usize);
            parked.logprobs.get(past_tail..).unwrap_or_default()
        };
        let stopped = self.deliver(key, tokens, logprobs);
        if stopped.is_none()
            && let Some(reason) = parked.flush.finished.and_then(finish_reason)
        {
            self.finish(key, reason);
        }
        stopped
    }

    /// Ends a stream well.
    fn finish(&self, key: StreamKey, reason: FinishReason) {
        let stream = self.inner.borrow_mut().remove(key);
        if let Some(mut sink) = stream.and_then(|stream| stream.sink) {
            sink.finish(reason);
        }
    }
}

/// The sink's word for the end of a seat, if the answer is complete.
fn finish_reason(why: CloseReason) -> Option<FinishReason> {
    match why {
        CloseReason::Stop => Some(FinishReason::Stop),
        CloseReason::Length => Some(FinishReason::Length),
        _ => None,
    }
}

/// Log probabilities of a position that nobody knows.
fn unknown() -> TokenLogprobs {
    TokenLogprobs {
        chosen: LOGPROB_UNKNOWN,
        top: Vec::new(),
    }
}

/// One entry per token, the missing ones unknown.
fn fill(logprobs: &[TokenLogprobs], tokens: usize) -> Vec<TokenLogprobs> {
    let mut filled = logprobs.to_vec();
    filled.resize(tokens, unknown());
    filled
}
