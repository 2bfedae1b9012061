//! What the brain knows of a request: counts, limits, targets. Never a token id, never text.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    ids::RequestId,
    units::{Micros, Tokens},
};

/// Latency targets that somebody asked for: the request, its key or the operator. What nobody asked
/// for is ordered by the policy's own targets, and never refused for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slo {
    /// Time to first token, from the arrival on.
    pub ttft: Option<Micros>,
    /// Mean time per token after the first.
    pub tpot: Option<Micros>,
}

/// The target for its first token that a request is refused for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedTarget {
    /// As it was asked for, from the arrival on.
    pub target: Micros,
    /// So long it waited; if it is refused when it comes, the least that it would have waited.
    pub wait: Micros,
}

/// A part of a prompt that a worker may have computed already, for somebody of the same tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixMark {
    /// Full pages from the start of the prompt.
    pub pages: u32,
    /// First 8 bytes (little endian) of the hash chain over tenant and tokens up to there.
    pub hash: u64,
}

/// Most marks of a request: 16 bytes each, of the 1 KiB that a waiting request may cost.
pub const PREFIX_MARKS_MAX: usize = 16;

/// Where a prompt of so many full pages is marked, in pages from its start: all of the first, then
/// ever fewer, as the distance to the next mark grows with the way from the start, and the last.
/// Between two marks the brain takes a prefix for one that ends at the first.
pub fn marked_pages(pages: usize) -> impl Iterator<Item = usize> {
    const ALL: usize = PREFIX_MARKS_MAX * PREFIX_MARKS_MAX;
    let place = move |nth: usize| nth.max((pages * nth * nth).div_ceil(ALL));
    let mut last = 0;
    let is_new = move |place: &usize| std::mem::replace(&mut last, *place) < *place;
    (1..=pages.min(PREFIX_MARKS_MAX)).map(place).filter(is_new)
}

/// Facts of a request, complete when it arrives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// Its id.
    pub id: RequestId,
    /// Number of choices, at least 1. Each is a sequence of its own.
    pub choices: u8,
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: Tokens,
    /// Most tokens of each answer, at least 1.
    pub max_tokens: Tokens,
    /// Lower goes first among those that wait; 0 by default.
    pub priority: i32,
    /// When the client stops waiting, on the brain's clock.
    pub deadline: Micros,
    /// Targets that somebody asked for.
    #[serde(default)]
    pub slo: Slo,
    /// Hash of the tenant's name; 0: nobody's.
    #[serde(default)]
    pub tenant: u64,
    /// Share of the tenant where tenants compete; 0 counts as 1.
    #[serde(default)]
    pub weight: u32,
    /// Takes the place of the policy's own key within a priority, the lowest first; in
    /// microseconds. For ordering policies of others.
    #[serde(default)]
    pub order_key: Option<i64>,
    /// By length, at most [`PREFIX_MARKS_MAX`]; empty: nothing can be shared.
    #[serde(default = "no_marks")]
    pub prefix: Arc<[PrefixMark]>,
}

fn no_marks() -> Arc<[PrefixMark]> {
    Arc::from([])
}

impl RequestFacts {
    /// One choice of so many tokens without a deadline, targets or tenant: the rest by name.
    pub fn of(id: RequestId, prompt_tokens: Tokens, max_tokens: Tokens) -> Self {
        Self {
            id,
            choices: 1,
            prompt_tokens,
            max_tokens,
            priority: 0,
            deadline: Micros(u64::MAX),
            slo: Slo::default(),
            tenant: 0,
            weight: 1,
            order_key: None,
            prefix: no_marks(),
        }
    }
}

/// Why a request ends without its answer. The router maps each to one row of its error table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The queue is full.
    QueueFull,
    /// No worker that could serve it was there in time.
    NoWorker,
    /// It would not fit any worker, even an empty one.
    TooLarge,
    /// Its deadline passed.
    DeadlineExceeded,
    /// It missed the target that was asked for, and waited longer than the policy lets late ones.
    Late,
    /// No order of work could meet the target that was asked for.
    Unmeetable,
    /// Workers failed under it more often than the budget allows.
    WorkerFailed,
    /// Workers died under it, more than one: it may be the cause.
    PoisonSuspect,
    /// The engine reported an error for this sequence alone.
    EngineError,
    /// The router is shutting down.
    Draining,
}
