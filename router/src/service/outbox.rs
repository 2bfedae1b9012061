//! Where sinks leave an answer and its reader fetches it.
//!
//! One per request. Both sides are on the same thread as a rule, so its lock is free; it is held
//! for some text appends, never over a wait. What has not been fetched merges: a reader that comes
//! late finds one longer delta per choice.
//!
//! A slow reader is bounded: once `bytes_max` wait, a choice keeps token ids (4 bytes each) and is
//! rendered when the reader comes; [`Outbox::look_after`] cuts a reader that does not come at all.

use std::{
    future::Future as _,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Wake, Wanted,
    pending::{Delta, Pending},
    prompt::{LOGPROBS_AT_ONCE, Prompt},
    record::Record,
    text::AnswerText,
};
use crate::{
    error::{Error, Reason},
    metrics::CODE_OK,
    streams::sink::{FinishReason, Flow, SeatNews, TokenChunk, TokenLogprobs},
    tokens::StopScan,
};

/// Silence after which a stream gets a ping, so that proxies keep it open.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Constants of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutboxConfig {
    /// Choices of each prompt.
    pub(super) choices: usize,
    pub(super) wanted: Wanted,
    /// Only the prompts are wanted: tokens do not count.
    pub(super) drops_answer: bool,
    /// Bytes that may wait before token ids are kept instead.
    pub(super) bytes_max: usize,
    pub(super) deadline: Instant,
}

/// What a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, those that a worker had computed already when the request first ran there.
    pub cached_tokens: u32,
    /// Tokens of all answers, up to the one that completed a stop string.
    pub completion_tokens: u64,
}

/// How a front writes an answer. Calls come in the order of the answer.
pub trait Render {
    /// More of one choice.
    fn delta(&mut self, delta: Delta<'_>);
    /// Nothing was written for a while.
    fn ping(&mut self);
    /// All choices are complete; nothing follows.
    fn done(&mut self, usage: Usage);
    /// The request failed; nothing follows.
    fn failed(&mut self, error: Error);
}

/// Whether an answer goes on after a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll again.
    More,
    /// `done` or `failed` was called.
    End,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    config: OutboxConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    prompts: Vec<Prompt>,
    /// Of all prompts, one after another.
    choices: Vec<Pending>,
    /// Choices that are not complete.
    open: usize,
    error: Option<Error>,
    /// Failed, or left by its reader: sinks stop.
    closed: bool,
    /// Something came since the last fetch, or the last fetch left something.
    news: bool,
    ping: bool,
    /// Log probabilities of prompts that may be written before others have their turn.
    room: usize,
    /// When the reader last fetched, or the oldest unread token came.
    progress: Instant,
    waker: Option<Waker>,
    /// Until the request has ended.
    record: Option<Record>,
    usage: Usage,
}

impl Outbox {
    /// An outbox for a request that is about to start.
    pub(super) fn new(config: OutboxConfig, prompts: Vec<Prompt>, record: Record) -> Arc<Self> {
        let choices = config.choices * prompts.len();
        let usage = Usage {
            prompt_tokens: record.prompt_tokens(),
            cached_tokens: 0,
            completion_tokens: 0,
        };
        Arc::new(Self {
            config,
            state: Mutex::new(State {
                prompts,
                choices: (0..choices).map(|_| Pending::default()).collect(),
                open: choices,
                error: None,
                closed: false,
                news: false,
                ping: false,
                room: LOGPROBS_AT_ONCE,
                progress: Instant::now(),
                waker: None,
                record: Some(record),
                usage,
            }),
        })
    }

    /// Adds tokens to a choice whose text is in state `text`.
    pub(super) fn push(&self, choice: usize, text: &mut AnswerText, chunk: TokenChunk<'_>) -> Flow {
        let mut state = self.state.lock();
        let now = Instant::now();
        let Some(pending) = state.pending(choice) else {
            return Flow::Stop;
        };
        if self.config.drops_answer {
            if let Some(record) = &mut state.record {
                record.scored(now);
            }
            return Flow::Continue;
        }
        if self.config.wanted.wake == Wake::Each && pending.bytes() >= self.config.bytes_max {
            pending.defer(text);
        }
        let keep_ids = self.config.wanted.token_ids || !chunk.logprobs.is_empty();
        let (taken, scan) = pending.push(text, chunk, keep_ids);
        let before = pending.last_token.replace(now);
        state.count(choice, taken, now, before);
        if scan == StopScan::Stopped {
            self.finish_choice(&mut state, choice, text, FinishReason::Stop);
            return Flow::Stop;
        }
        self.tell(&mut state, now);
        Flow::Continue
    }

    /// Where the choice is.
    pub(super) fn seat(&self, choice: usize, news: SeatNews<'_>) {
        let mut state = self.state.lock();
        if let Some(record) = &mut state.record {
            record.seat(choice, news, Instant::now());
            state.usage.cached_tokens = record.cached_tokens();
        }
    }

    /// Log probabilities of the tokens of the choice's prompt, from position `start` on.
    pub(super) fn prompt_logprobs(&self, choice: usize, start: u32, entries: &[TokenLogprobs]) {
        let mut state = self.state.lock();
        let Some(prompt) = state.prompts.get_mut(choice / self.config.choices) else {
            return;
        };
        let before = prompt.missing();
        prompt.add(start, entries);
        // Choices that waited for it may be told now.
        if before > 0 && prompt.missing() == 0 {
            self.tell(&mut state, Instant::now());
        }
    }

    /// The choice is complete.
    pub(super) fn finish(&self, choice: usize, text: &mut AnswerText, reason: FinishReason) {
        let reason = if self.config.drops_answer {
            FinishReason::Length
        } else {
            reason
        };
        self.finish_choice(&mut self.state.lock(), choice, text, reason);
    }

    fn finish_choice(
        &self,
        state: &mut State,
        choice: usize,
        text: &mut AnswerText,
        reason: FinishReason,
    ) {
        let Some(pending) = state.pending(choice) else {
            return;
        };
        let reason = pending.finish(text, reason);
        let prompt = state.prompts.get(choice / self.config.choices);
        if let Some(missing @ 1..) = prompt.map(Prompt::missing) {
            let message = format!("the worker left out {missing} log probabilities of the prompt");
            return state.fail(Error::new(Reason::WorkerFailed, message));
        }
        if let Some(record) = &mut state.record {
            record.finished(choice, reason);
        }
        state.open = state.open.saturating_sub(1);
        if state.open == 0
            && let Some(record) = state.record.take()
        {
            record.end(CODE_OK);
        }
        self.tell(state, Instant::now());
    }

    fn tell(&self, state: &mut State, now: Instant) {
        if !std::mem::replace(&mut state.news, true) {
            state.progress = now;
        }
        if self.config.wanted.wake == Wake::Each || state.open == 0 {
            state.wake();
        }
    }

    /// Ends the request with `error`, unless it has ended. What waits is still delivered.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        if state.closed || state.open == 0 {
            return;
        }
        state.fail(error);
    }

    /// The reader is gone, after the end or before it.
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        state.end(Reason::Cancelled);
        state.closed = true;
        state.choices.clear();
    }

    /// The request was not started; whoever refused it tells of it.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        (state.record, state.closed) = (None, true);
    }

    /// Cuts a reader without progress for `patience`, ends an overdue request, asks for a ping.
    pub(super) fn look_after(&self, now: Instant, patience: Duration) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let streamed = self.config.wanted.wake == Wake::Each;
        let silence = now.saturating_duration_since(state.progress);
        if streamed && state.news && silence > patience {
            // What waits is dropped: it is what takes the memory.
            state.choices.clear();
            let message = format!("the answer was not read for {} ms", silence.as_millis());
            state.fail(Error::new(Reason::ClientTooSlow, message));
        } else if state.open > 0 && now > self.config.deadline {
            let message = "the request's deadline passed before its answer was complete";
            state.fail(Error::new(Reason::DeadlineExceeded, message));
        } else if streamed && !state.news && silence > PING_INTERVAL {
            state.progress = now;
            state.ping = true;
            state.wake();
        }
    }

    /// Ready as soon as there is something to write; an error if the request failed before that.
    pub(super) fn poll_first(&self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.state.lock();
        if state.usage.completion_tokens == 0
            && let Some(error) = state.error.take()
        {
            return Poll::Ready(Err(error));
        }
        if state.news {
            return Poll::Ready(Ok(()));
        }
        state.listen(cx);
        Poll::Pending
    }

    /// Writes what is new into `render`; pending if there is nothing.
    pub(super) fn poll(&self, cx: &Context<'_>, render: &mut impl Render) -> Poll<Next> {
        let mut state = self.state.lock();
        let ready = match self.config.wanted.wake {
            Wake::Each => state.news || state.ping,
            Wake::End => state.open == 0 || state.closed,
        };
        if !ready {
            state.listen(cx);
            return Poll::Pending;
        }
        if state.room == 0 {
            state.room = LOGPROBS_AT_ONCE;
            return after_others(cx);
        }
        if std::mem::take(&mut state.ping) {
            render.ping();
        }
        state.progress = Instant::now();
        let mut more = false;
        let State {
            prompts,
            choices,
            room,
            ..
        } = &mut *state;
        for (choice, pending) in choices.iter_mut().enumerate() {
            let Some(prompt) = prompts.get(choice / self.config.choices) else {
                continue;
            };
            // An answer begins with what its prompt has.
            if prompt.missing() == 0 {
                if *room > 0 {
                    pending.fetch(choice, prompt, room, self.config.bytes_max, render);
                }
                more |= pending.has_more();
            }
        }
        state.news = more;
        if more {
            return Poll::Ready(Next::More);
        }
        if let Some(error) = state.error.take() {
            render.failed(error);
            return Poll::Ready(Next::End);
        }
        if state.open == 0 {
            render.done(state.usage);
            return Poll::Ready(Next::End);
        }
        Poll::Ready(Next::More)
    }
}

/// Pending until every other task of this thread and its sockets had their turn, which a task that
/// wakes itself does not wait for.
fn after_others(cx: &Context<'_>) -> Poll<Next> {
    let turn = pin!(tokio::task::yield_now());
    turn.poll(&mut Context::from_waker(cx.waker()))
        .map(|()| Next::More)
}

impl State {
    /// What waits of a choice, while anybody wants it.
    fn pending(&mut self, choice: usize) -> Option<&mut Pending> {
        if self.closed {
            return None;
        }
        self.choices.get_mut(choice)
    }

    fn count(&mut self, choice: usize, tokens: usize, now: Instant, before: Option<Instant>) {
        if let Some(record) = &mut self.record {
            record.count(choice, tokens as u64, now, before);
            self.usage.completion_tokens = record.completion_tokens();
        }
    }

    fn fail(&mut self, error: Error) {
        self.end(error.reason);
        self.error = Some(error);
        (self.closed, self.news) = (true, true);
        self.wake();
    }

    fn end(&mut self, reason: Reason) {
        if let Some(record) = self.record.take() {
            record.end(reason.row().code);
        }
    }

    fn listen(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}
