//! The clients: what they ask, the answer that each must get, and what they were told.
//!
//! `token_once_in_order_own_request`, `all_tokens_before_finish` and `usage_counted_once` are
//! checked here: a sink knows every token of its answer before it is asked for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::sync::{Mutex, PoisonError};

use dopd_core::{
    ids::{RequestId, SequenceId},
    request::RequestFacts,
    units::{Micros, Tokens},
};
use dopd_mock::model;
use dopd_router::{
    error::{Error, Reason},
    streams::{
        deliver::LOGPROB_UNKNOWN,
        front::Front,
        key::StreamKey,
        messages::BrainInput,
        request::{RequestShared, prompt_hash},
        sink::{FinishReason, Flow, Sink, TokenChunk},
    },
    wire::worker::{Limits, Sampling},
};
use dopd_sync::Count;

use crate::plan::Ask;

/// How an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not over.
    Open,
    /// The right answer, complete.
    Finished,
    /// A stop string matched.
    Stopped,
    /// An error.
    Failed(Reason),
    /// The client went.
    Cancelled,
    /// The router went.
    Cut,
}

/// One choice as its client sees it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// All tokens, with their log probabilities.
    expected: Vec<(u32, f32)>,
    reason: FinishReason,
    stop_after: usize,
    has_logprobs: bool,
    pub(crate) got: usize,
    pub(crate) state: State,
    pub(crate) ended: Micros,
}

/// What all sinks of a simulation share.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// The first thing that no client may see.
    alarm: Mutex<Option<String>>,
    /// Answers that are not over.
    pub(crate) open: AtomicUsize,
    pub(crate) active: Count,
}

impl Board {
    fn alarm(&self, what: String) {
        let mut alarm = self.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        alarm.get_or_insert(what);
    }

    pub(crate) fn take_alarm(&self) -> Option<String> {
        self.alarm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A submitted request.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) ask: Ask,
    prompt: Arc<[u32]>,
    pub(crate) answers: Vec<Arc<Mutex<Answer>>>,
    /// From submission on: at which front, under which name.
    pub(crate) place: Option<(u16, RequestId, Arc<[StreamKey]>)>,
    /// No answer may be open after.
    pub(crate) bound: Micros,
}

impl Client {
    pub(crate) fn new(ask: Ask) -> Self {
        let prompt: Vec<u32> = (0..ask.prompt)
            .map(|index| {
                let word = model::mix(ask.seed ^ u64::from(index)) % 95;
                32 + u32::try_from(word).unwrap_or(0)
            })
            .collect();
        let answers = (0..ask.choices)
            .map(|choice| Arc::new(Mutex::new(answer(&ask, &prompt, choice))))
            .collect();
        Self {
            ask,
            prompt: prompt.into(),
            answers,
            place: None,
            bound: Micros(u64::MAX),
        }
    }

    /// Hands the request to a front and its brain, as `Dispatch::submit` does.
    pub(crate) fn submit(
        &mut self,
        front: &Front,
        id: RequestId,
        deadline: Micros,
        (index, board, now): (usize, &Arc<Board>, &Arc<AtomicU64>),
    ) {
        let ask = &self.ask;
        let shared = Arc::new(RequestShared {
            id,
            label: format!("r{index}"),
            prompt: Arc::clone(&self.prompt),
            prompt_hash: prompt_hash(&self.prompt),
            sampling: sampling(ask, 0),
            limits: limits(ask),
            adjustments: None,
            prompt_logprobs: None,
            traceparent: String::new(),
            tenant: ask.tenant,
            slo_tpot_us: 0,
            prefix: None,
            choices: usize::from(ask.choices),
            priority: ask.priority,
            active: board.active.enter(),
        });
        let keys = (0..ask.choices).map(|choice| {
            let sink = Told {
                name: format!("r{index}.{choice}"),
                answer: Arc::clone(&self.answers[usize::from(choice)]),
                board: Arc::clone(board),
                now: Arc::clone(now),
            };
            let sequence = SequenceId {
                request: id,
                choice,
            };
            front
                .streams
                .insert(Arc::clone(&shared), sequence, Box::new(sink))
        });
        let keys: Arc<[StreamKey]> = keys.collect();
        self.place = Some((front.index, id, keys));
        front.outbox.to_brain(BrainInput::Submitted(RequestFacts {
            choices: ask.choices,
            priority: ask.priority,
            deadline,
            ..RequestFacts::of(id, Tokens(ask.prompt), Tokens(ask.max_tokens))
        }));
    }

    /// Ends what is open without a word from the router.
    pub(crate) fn leave(&self, state: State, now: Micros, board: &Board) {
        for answer in &self.answers {
            let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
            if answer.state == State::Open {
                answer.state = state;
                answer.ended = now;
                board.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Its prompt, by the hash that seats know.
    pub(crate) fn prompt(&self) -> (u64, Arc<[u32]>) {
        (prompt_hash(&self.prompt), Arc::clone(&self.prompt))
    }

    /// States of all choices.
    pub(crate) fn states(&self) -> impl Iterator<Item = State> {
        self.answers
            .iter()
            .map(|answer| answer.lock().unwrap_or_else(PoisonError::into_inner).state)
    }
}

fn sampling(ask: &Ask, choice: u8) -> Sampling {
    Sampling {
        temperature: if ask.is_greedy { 0.0 } else { 1.0 },
        seed: ask.seed,
        choice: u32::from(choice),
        top_logprobs: ask.top_logprobs,
        ..Sampling::default()
    }
}

fn limits(ask: &Ask) -> Limits {
    Limits {
        max_tokens: ask.max_tokens,
        ..Limits::default()
    }
}

/// The answer as the model alone gives it: no pages, no batches, no hand-offs.
fn answer(ask: &Ask, prompt: &[u32], choice: u8) -> Answer {
    let sampling = sampling(ask, choice);
    let mut entry = prompt.iter().fold(model::CHAIN_START, |entry, &token| {
        model::next_entry(entry, token)
    });
    let mut expected = Vec::new();
    let mut reason = FinishReason::Length;
    for pos in 0..ask.max_tokens {
        let drawn = model::draw(entry, &sampling, pos);
        expected.push((drawn.token, drawn.logprob()));
        if drawn.token == model::EOS {
            reason = FinishReason::Stop;
            break;
        }
        entry = model::next_entry(entry, drawn.token);
    }
    Answer {
        stop_after: ask
            .stop_after
            .and_then(|tokens| usize::try_from(tokens).ok())
            .unwrap_or(usize::MAX),
        has_logprobs: ask.top_logprobs.is_some(),
        expected,
        reason,
        got: 0,
        state: State::Open,
        ended: Micros(0),
    }
}

/// A sink that knows its answer.
struct Told {
    name: String,
    answer: Arc<Mutex<Answer>>,
    board: Arc<Board>,
    now: Arc<AtomicU64>,
}

impl Told {
    fn end(&self, answer: &mut Answer, state: State) {
        answer.state = state;
        answer.ended = Micros(self.now.load(Ordering::Relaxed));
        self.board.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// After its end a client hears nothing.
    fn is_over(&self, answer: &Answer, what: &str) -> bool {
        if answer.state == State::Open {
            return false;
        }
        let (name, state) = (&self.name, answer.state);
        self.board.alarm(format!(
            "usage_counted_once: {name} got {what} after {state:?}"
        ));
        true
    }
}

impl Sink for Told {
    fn tokens(&mut self, chunk: TokenChunk<'_>) -> Flow {
        let answer = Arc::clone(&self.answer);
        let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over(&answer, "tokens") {
            return Flow::Stop;
        }
        let lines = if answer.has_logprobs {
            chunk.tokens.len()
        } else {
            0
        };
        if chunk.logprobs.len() != lines {
            self.board.alarm(format!(
                "{}: {} log probabilities for {} tokens, asked for {}",
                self.name,
                chunk.logprobs.len(),
                chunk.tokens.len(),
                answer.has_logprobs
            ));
        }
        for (place, token) in chunk.tokens.iter().enumerate() {
            let pos = answer.got;
            let wanted = answer.expected.get(pos).copied();
            if wanted.map(|(token, _)| token) != Some(*token) {
                self.board.alarm(format!(
                    "token_once_in_order_own_request: {} got {token} at position {pos}, \
                     right is {wanted:?}",
                    self.name
                ));
            }
            if let (Some(told), Some((_, right))) = (chunk.logprobs.get(place), wanted)
                && told.chosen.to_bits() != right.to_bits()
                && told.chosen.to_bits() != LOGPROB_UNKNOWN.to_bits()
            {
                self.board.alarm(format!(
                    "{}: log probability {} at position {pos}, right is {right}",
                    self.name, told.chosen
                ));
            }
            answer.got += 1;
            if answer.got >= answer.stop_after {
                self.end(&mut answer, State::Stopped);
                return Flow::Stop;
            }
        }
        Flow::Continue
    }

    fn finish(&mut self, reason: FinishReason) {
        let answer = Arc::clone(&self.answer);
        let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over(&answer, "its end") {
            return;
        }
        let all = answer.expected.len();
        if answer.got != all || reason != answer.reason {
            self.board.alarm(format!(
                "all_tokens_before_finish: {} ended by {reason:?} with {} of {all} tokens, \
                 right is {:?}",
                self.name, answer.got, answer.reason
            ));
        }
        self.end(&mut answer, State::Finished);
    }

    fn fail(&mut self, error: Error) {
        let answer = Arc::clone(&self.answer);
        let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_over(&answer, "an error") {
            self.end(&mut answer, State::Failed(error.reason));
        }
    }
}
