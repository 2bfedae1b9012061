//! What the brain knows of a request: counts, limits, class. Never a token id, never text.

use serde::{Deserialize, Serialize};

use crate::{
    ids::RequestId,
    units::{Micros, Tokens},
};

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
    /// Workers failed under it more often than the budget allows.
    WorkerFailed,
    /// Workers died under it, more than one: it may be the cause.
    PoisonSuspect,
    /// The engine reported an error for this sequence alone.
    EngineError,
    /// The router is shutting down.
    Draining,
}
