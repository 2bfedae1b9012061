//! Settings of the brain. Constant for its life; they head the event log, so that a replay has
//! them.

use serde::{Deserialize, Serialize};

use crate::{policy::PolicyConfig, units::Micros};

/// Bounds and budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrainConfig {
    /// Start of the random numbers (waits after a refusal).
    pub seed: u64,
    /// Requests that wait; more are rejected.
    pub queue_requests_max: usize,
    /// Prompt tokens that wait; more are rejected, unless nothing else waits.
    pub queue_tokens_max: u64,
    /// How long a sequence waits while no worker could take it.
    pub no_worker_wait: Micros,
    /// How often a sequence is computed again because something failed, before it is given up.
    pub replays_max: u32,
    /// Tokens that these times may compute together, prompt and answer. The first is always
    /// allowed.
    pub replay_tokens_max: u64,
    /// Part of the sequences that run, in percent, that may be computed again without having made
    /// a token. The others wait.
    pub retries_percent: u32,
    /// So many may in any case.
    pub retries_min: u32,
    /// How long replays wait after a worker died: a host takes all its workers with it.
    pub death_settle: Micros,
    /// Failures in a row that open a breaker.
    pub breaker_row_max: u32,
    /// Failures among the outcomes of 10 s, in percent, that open it.
    pub breaker_percent: u32,
    /// Fewer outcomes do not.
    pub breaker_outcomes_min: u32,
    /// How long it is open at first; doubled each time.
    pub breaker_open_min: Micros,
    /// Longest time that it is open.
    pub breaker_open_max: Micros,
    /// Workers that may die under a request; at this number it is taken for the cause.
    pub deaths_max: u32,
    /// How often a running sequence may move.
    pub moves_max: u32,
    /// Added to twice the predicted time of a hand-off and a step of its source.
    pub handoff_slack: Micros,
    /// Added to that from one worker to another until a hand-off between them has ended, well or
    /// not: they make what joins them, and two ranks of NCCL take seconds to meet. The source
    /// decodes meanwhile.
    pub handoff_meet: Micros,
    /// Longest hand-off.
    pub handoff_max: Micros,
    /// Shortest wait after a worker refused a seat.
    pub refused_wait_min: Micros,
    /// Longest random wait after a refusal.
    pub refused_wait_max: Micros,
    /// Longest wait that a refusing worker may ask for.
    pub refused_hint_max: Micros,
    /// Part of a prefill worker's pool, in percent, that may fill up with sequences that find no
    /// place at a decode worker. The rest stays free for prompts that will leave.
    pub keep_pool_percent: u32,
    /// Bounds of the hint given with a full queue.
    pub retry_after_min: Micros,
    /// See `retry_after_min`.
    pub retry_after_max: Micros,
    /// Decisions that are remembered for people; 0: none.
    pub explain_decisions_max: usize,
    /// Which rules are on.
    pub policy: PolicyConfig,
}

impl Default for BrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            queue_requests_max: 10_000,
            queue_tokens_max: 50_000_000,
            no_worker_wait: Micros::from_millis(10_000),
            replays_max: 3,
            replay_tokens_max: 64 << 10,
            retries_percent: 20,
            retries_min: 3,
            death_settle: Micros::from_millis(20),
            breaker_row_max: 5,
            breaker_percent: 50,
            breaker_outcomes_min: 20,
            breaker_open_min: Micros::from_millis(1_000),
            breaker_open_max: Micros::from_millis(30_000),
            deaths_max: 2,
            moves_max: 3,
            handoff_slack: Micros::from_millis(500),
            handoff_meet: Micros::from_millis(4_000),
            handoff_max: Micros::from_millis(5_000),
            refused_wait_min: Micros::from_millis(5),
            refused_wait_max: Micros::from_millis(50),
            refused_hint_max: Micros::from_millis(1_000),
            keep_pool_percent: 50,
            retry_after_min: Micros::from_millis(100),
            retry_after_max: Micros::from_millis(10_000),
            explain_decisions_max: 8_192,
            policy: PolicyConfig::default(),
        }
    }
}
