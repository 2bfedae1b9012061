//! The policy: which of the brain's rules are on, and their constants. A baseline of the literature
//! is another value of the same type, so it runs in the same brain.
//!
//! The defaults are those of dopd's policy study (simulated; `docs/concepts/policy.md` says what
//! each rule is worth).

mod check;

use serde::{Deserialize, Serialize};

pub use self::check::PolicyError;

use crate::{
    step::{StepMode, StepPolicy},
    units::{Micros, Tokens},
};

/// Order of prompts that wait, within their lane and priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By arrival.
    Fcfs,
    /// By the time that the prefill takes, the shortest first. Long prompts may starve.
    Sjf,
    /// By the time at which the target for the first token ends.
    Edf,
    /// By arrival + `ageing_ratio` x time of the prefill: the shortest first, but not for ever.
    #[default]
    Aged,
}

/// When a prompt gets its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bind {
    /// When the worker is about to be free.
    #[default]
    Late,
    /// When it comes, to the least loaded worker; it waits there, in the order in which they came.
    Early,
}

/// Which prompts a worker labelled decode computes itself, without a hand-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steal {
    /// None.
    Never,
    /// Every prompt of fewer tokens than this, whatever waits (a fixed local-prefill threshold).
    Shorter(Tokens),
    /// Any that it finishes in time, while prefill workers are behind.
    #[default]
    InTime,
}

/// Which decode worker gets a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceBy {
    /// Least KV tokens + 5 x prompt tokens still to compute there.
    #[default]
    LeastTokens,
    /// Fewest sequences.
    FewestSequences,
    /// Most free pages.
    MostPages,
    /// One after the other.
    RoundRobin,
}

/// Pages that a sequence is promised when it is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reserve {
    /// For its longest answer.
    MaxTokens,
    /// As many sequences as fit at every time to come, by the lengths of late; who does not fit
    /// nevertheless is preempted and computed again.
    #[default]
    FuturePeak,
}

/// Who is refused for a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refuse {
    /// Nobody.
    Never,
    /// Who missed the target that was asked for by `late_max`.
    #[default]
    Late,
    /// Besides, who could not meet it even if it went first.
    Early,
}

/// All rules and constants. `StepPolicy` is carried out by workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a rule that is on or off"
)]
pub struct PolicyConfig {
    /// Targets of requests for which nobody asked for any: time to first token.
    pub ttft: Micros,
    /// The same: time per later token.
    pub tpot: Micros,
    /// The policy's own target for the first token is at least so many times the unloaded prefill.
    pub ttft_prefill_ratio: f64,
    /// Order of those that wait.
    pub order: Order,
    /// Of [`Order::Aged`].
    pub ageing_ratio: f64,
    /// A prompt that can no longer meet its target goes behind all that can.
    pub demote: bool,
    /// See [`Refuse`].
    pub refuse: Refuse,
    /// How long one that missed its target waits at most.
    pub late_max: Micros,
    /// What the longest tenth of prompts is owed of the others' attainment; 0 to 1.
    pub fair_ratio: f64,
    /// Tenants share by tokens computed, both phases, by weight.
    pub share_tenants: bool,
    /// Tenants whose service differs by less than so many tokens, at weight 1, are equal.
    pub share_quantum: Tokens,
    /// Prompt tokens that a worker takes at once; one prompt may be longer.
    pub prefill_tokens_max: Tokens,
    /// See [`Bind`].
    pub bind: Bind,
    /// A worker is given its next prompts so long before it is free: the way of the command.
    pub bind_ahead: Micros,
    /// No prompt starts before its place to decode is reserved. Off: it starts at once, and looks
    /// for a place with its first token, by a move; until there is one it decodes where it was
    /// computed, as no finished prompt may hold pages and wait.
    pub gate: bool,
    /// See [`Steal`].
    pub steal: Steal,
    /// Decode workers help once the queue takes so much of the target, per prefill worker.
    pub steal_wait_ratio: f64,
    /// Not beyond this part of their pool.
    pub steal_kv_ratio: f64,
    /// Prompts looked at.
    pub steal_scan: u32,
    /// A worker labelled prefill keeps a sequence for which no decode worker has a place, until one
    /// has; only while another takes prompts within `steal_wait_ratio` of the target.
    pub keep: bool,
    /// While its own decode step stays below this part of the target.
    pub keep_step_ratio: f64,
    /// See [`PlaceBy`].
    pub place: PlaceBy,
    /// A decode worker is full at this part of its pool.
    pub place_kv_ratio: f64,
    /// Or when its decode step takes this part of the target.
    pub place_step_ratio: f64,
    /// A worker labelled prefill makes the first `linger_tokens` itself, and looks for a place
    /// anew then, if the gap after a hand-off would take more than this part of the target per
    /// token: what is not sent while the prompt is computed, and a step and a half over there; 0:
    /// never.
    pub linger_ratio: f64,
    /// See `linger_ratio`.
    pub linger_tokens: Tokens,
    /// See [`Reserve`].
    pub reserve: Reserve,
    /// Deviations above the mean of [`Reserve::FuturePeak`].
    pub peak_z: f64,
    /// Prefixes that a worker has cached count as work done when prompts are placed.
    pub use_prefixes: bool,
    /// What a worker computes next.
    pub step: StepPolicy,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            ttft: Micros::from_millis(2_000),
            tpot: Micros::from_millis(80),
            ttft_prefill_ratio: 3.0,
            order: Order::default(),
            ageing_ratio: 10.0,
            demote: true,
            refuse: Refuse::default(),
            late_max: Micros::from_millis(10_000),
            fair_ratio: 0.5,
            share_tenants: true,
            share_quantum: Tokens(8_192),
            prefill_tokens_max: Tokens(4_096),
            bind: Bind::default(),
            bind_ahead: Micros::from_millis(2),
            gate: true,
            steal: Steal::default(),
            steal_wait_ratio: 0.25,
            steal_kv_ratio: 0.85,
            steal_scan: 12,
            keep: true,
            keep_step_ratio: 0.95,
            place: PlaceBy::default(),
            place_kv_ratio: 0.93,
            place_step_ratio: 0.93,
            linger_ratio: 1.0,
            linger_tokens: Tokens(1),
            reserve: Reserve::default(),
            peak_z: 2.33,
            use_prefixes: true,
            step: StepPolicy::default(),
        }
    }
}

impl PolicyConfig {
    /// dopd before it had a policy: by arrival, whole reservation, most free pages, nothing stolen,
    /// nobody refused for a target. What tests of other rules, and baselines, begin with.
    pub fn plain() -> Self {
        Self {
            order: Order::Fcfs,
            demote: false,
            refuse: Refuse::Never,
            fair_ratio: 0.0,
            share_tenants: false,
            steal: Steal::Never,
            place: PlaceBy::MostPages,
            place_kv_ratio: 1.0,
            place_step_ratio: 0.0,
            keep_step_ratio: 0.0,
            linger_ratio: 0.0,
            bind_ahead: Micros(u64::MAX),
            reserve: Reserve::MaxTokens,
            use_prefixes: false,
            step: StepPolicy {
                mode: StepMode::Fill,
                ..StepPolicy::default()
            },
            ..Self::default()
        }
    }
}
