//! What is told of decisions, to people and machines: plain values, as JSON has them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    brain::queue::WaitQueue,
    ids::{SequenceId, SessionId},
    request::{RejectReason, RequestFacts},
    units::{Micros, Tokens},
};

/// What a worker was looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Compute the prompt. Score: prompt tokens that it has before it, or predicted time (us).
    Prefill,
    /// Take the sequence over. Score: what the policy's placing compares, lower is better.
    Decode,
    /// A decode worker: compute the prompt itself. Score: predicted time to first token (us).
    Steal,
    /// A prefill worker: go on decoding what it computes. Score: its decode step (us).
    Keep,
}

/// Why a worker was taken or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was.
    Chosen,
    /// Another one is better.
    Worse,
    /// No place to decode is free, and prompts start only with one.
    Gate,
    /// Its KV pool would overflow, now or later.
    Kv,
    /// Its decode step would take too long.
    Step,
    /// It would not finish the prompt in time.
    InTime,
    /// Its breaker, or that of the way to it, is open.
    Breaker,
    /// It takes nothing new: it drains, is ejected or waits after a refusal.
    Drain,
    /// It has enough prompts before it.
    Busy,
    /// It has no seat left.
    Seats,
    /// It must not meet a suspect of a worker's death.
    Quarantine,
    /// The sequence is longer than it can hold.
    TooLong,
    /// Those that are labelled for it are fast enough.
    NotNeeded,
}

/// One worker that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// Which.
    pub worker: SessionId,
    /// For what.
    pub task: Task,
    /// See [`Task`].
    pub score: i64,
    /// What came of it.
    pub verdict: Verdict,
}

/// Why the worker that computes a prompt goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is labelled mixed, or there is nobody else to hand to.
    Label,
    /// It is labelled decode, and helps.
    Stolen,
    /// It is labelled prefill; no decode worker has a place that can be reached.
    NoPlace,
    /// The gap of a hand-off would be longer than a token may take: it makes the first ones.
    Linger,
    /// The policy reserves no place: one is sought with the first token.
    Ungated,
}

/// What was chosen, or happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "choice", rename_all = "snake_case")]
pub enum Chosen {
    /// It came, and waits.
    Queue,
    /// Nobody could take it when it was its turn.
    Wait,
    /// A worker computes it and goes on with it.
    Keep {
        /// Which.
        worker: SessionId,
        /// Why.
        why: Kept,
    },
    /// One computes it, another takes it over.
    Pair {
        /// The one.
        prefill: SessionId,
        /// The other.
        decode: SessionId,
    },
    /// Its pages arrived: it goes on there.
    Switch {
        /// Where.
        worker: SessionId,
    },
    /// The hand-off was given up: it goes on where it is.
    Stay {
        /// Where.
        worker: SessionId,
    },
    /// It waits again, to be computed again.
    Replay {
        /// The fault.
        fault: &'static str,
    },
    /// It cannot meet its target any more, so it goes behind those that can.
    Demote,
    /// It ends with an error.
    Reject {
        /// Why.
        why: RejectReason,
    },
    /// It ended.
    Finish,
    /// Its client, or a stop string, ended it.
    Cancel,
}

/// What was known of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saw {
    /// Tokens of the prompt.
    pub prompt_tokens: Tokens,
    /// Answer tokens made so far.
    pub answer_tokens: Tokens,
    /// Most of them.
    pub max_tokens: Tokens,
    /// Since it arrived.
    pub waited_us: u64,
    /// Predicted time to compute it alone; 0: unknown.
    pub prefill_us: u64,
    /// When its first token is due, from its arrival; `None`: no matter when, or it is out.
    pub target_us: Option<u64>,
    /// It waits behind all that can meet their target.
    pub is_late: bool,
    /// Its place by the policy's order, smaller goes first; 0: unknown.
    pub rank: i64,
    /// Tokens that its tenant was charged, by weight; who was charged least goes first.
    pub tenant_tokens: u64,
    /// Sequences that wait, itself included.
    pub waiting: u32,
    /// Prompt tokens that wait, its own included.
    pub waiting_tokens: u64,
}

impl Saw {
    /// Of a request that comes.
    pub(in crate::brain) fn of(facts: &RequestFacts, queue: &WaitQueue) -> Self {
        Self {
            prompt_tokens: facts.prompt_tokens,
            max_tokens: facts.max_tokens,
            waiting: u32::try_from(queue.len()).unwrap_or(u32::MAX),
            waiting_tokens: queue.tokens(),
            ..Self::default()
        }
    }
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Decisions before it, ever.
    pub number: u64,
    /// When it was made first.
    pub at: Micros,
    /// When it was made last; a prompt that waits is looked at again and again.
    pub until: Micros,
    /// How often.
    pub times: u32,
    /// Of which sequence.
    pub sequence: SequenceId,
    /// What was known.
    pub saw: Saw,
    /// What was chosen.
    #[serde(flatten)]
    pub chose: Chosen,
    /// Workers that were looked at, at most [`ALTERNATIVES_MAX`](super::ALTERNATIVES_MAX).
    pub alternatives: Vec<Alternative>,
    /// Workers that were looked at and are not listed.
    pub alternatives_more: u32,
}

/// What the ring holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExplainRing {
    /// Decisions that it holds.
    pub decisions: usize,
    /// Most that it may hold; 0: it is off.
    pub decisions_max: usize,
    /// Decisions that were ever noted.
    pub decisions_total: u64,
    /// Time of the oldest that it holds.
    pub oldest: Option<Micros>,
}

/// Everything that is known of one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// Its decisions, oldest first; empty: unknown or forgotten.
    pub decisions: Vec<Decision>,
    /// Earlier ones were forgotten.
    pub is_cut: bool,
    /// Names of the workers that it speaks of.
    pub workers: BTreeMap<SessionId, String>,
    /// How far back anything is known.
    pub ring: ExplainRing,
    /// The brain's time.
    pub now: Micros,
}

impl Decision {
    /// Sessions that it speaks of.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let chosen = match self.chose {
            Chosen::Pair { prefill, decode } => [Some(prefill), Some(decode)],
            Chosen::Keep { worker, .. } | Chosen::Switch { worker } | Chosen::Stay { worker } => {
                [Some(worker), None]
            }
            _ => [None, None],
        };
        let others = self.alternatives.iter().map(|row| row.worker);
        chosen.into_iter().flatten().chain(others)
    }
}
