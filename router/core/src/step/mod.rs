//! What a worker computes next: decode those that run, a prompt, or both.
//!
//! Carried out by workers, who alone know their residents' slack at each step boundary; the brain
//! decides which prompts they have. Called by mock workers and the simulator; Python's batcher does
//! the same (`python/dopd/sched/choice.py`, compared by `tests/contract/step_vectors.json`).
//! Source: policy study, section 4, STEP; the least chunk of 64 tokens: its section on policies.
//!
//! # Definition
//!
//! Times are whole microseconds; a product with a ratio is rounded to the nearest, `floor(x + 0.5)`
//! in `f64`. `plain(n)` is the predicted time of a step with the first `n` tokens of the prompts,
//! in their order, beside all that decode, without what mixing costs on top; `alone(n)` the same
//! with nobody who decodes; `mixed(n) = round(plain(n) * (1 + p))` with the believed penalty `p`;
//! `decode = plain(0)`.
//!
//! `tpot` is the tightest target among those that decode (of each its own, or the policy's) that
//! `decode` meets, and slack is that of those whose target it meets: the others are lost whatever
//! is done, and hold nobody up. Where it meets none, the tightest, and that of all.
//! `tau = round(mixed_step_ratio * tpot)`, `pace = round(pace_ratio * tpot)`. `todo` are the tokens
//! of all prompts. `beside = min(todo, step's token limit - those that decode)`: what a mixed step
//! may take; `most = min(todo, token limit)`: what a step of prompts alone may.
//! `fit(limit, n, f)` is the largest of `0 ..= n` with `f <= limit`, by bisection: `n` if that
//! fits, else `low = 0, high = n`, and while `high - low > 1` the middle `low + (high - low) / 2`.
//! `least = 64` tokens, or all there are.
//!
//! No prompts: decode, or idle. Prompts and nobody who decodes: `most`; with mode `chunk` at most
//! `max(chunk_tokens, least)`; with `pause_or_mix` on a worker labelled decode at most
//! `max(fit(idle_slice_max, most, alone), least)`.
//!
//! Both, `beside > 0`, and mode `fill`: mixed, `beside`. `chunk`: mixed, `chunk_tokens` less those
//! that decode. `chunk_in_time`: mixed, `fit(tau, beside, mixed)`. Each at least `least` and at
//! most `beside`; `beside = 0`: decode.
//!
//! Both, and mode `pause_or_mix`:
//!
//! 1. `chunk = fit(tau, beside, mixed)` and, for `decode > tpot` (the target is lost whatever is
//!    done), `fit(decode + pause_max, beside, mixed)` instead. `slice = fit(pause_max, most,
//!    alone)`.
//! 2. Mixed, `max(chunk, least)` up to `beside`, if `beside > 0` and one of these holds:
//!    `chunk > 0` and tokens per extra microsecond are as many as alone, that is
//!    `chunk * alone(slice) >= slice * (mixed(chunk) - decode)`; `decode > round(0.95 * pace)`;
//!    this would be the `probe_every`th pause since a mixed step; 50 decode steps have gone by
//!    while a prompt waited. (`beside = 0` and one of the last two: a pause of `least` tokens.)
//! 3. Else `s = min(slack, pause_max - gap)`: the quantile of the residents' slack with what the
//!    next decode step gains them ([`Residents::slack_us`]), and the time since their last token.
//!    `n = fit(s, most, alone)` tokens alone if `n > 0` and either `s >= pause_min` or `n` ends the
//!    first prompt.
//! 4. Else a decode step.
//!
//! So those that decode wait at most `pause_max` and one step for a token, as predicted, and a
//! prompt at most 50 decode steps for its next 64 tokens.

mod belief;
mod choose;
mod residents;
mod work;

use serde::{Deserialize, Serialize};

pub use self::{
    belief::Belief,
    choose::{StepView, choose},
    residents::{Residents, Stay},
    work::{StepCost, StepWork},
};
use crate::units::{Micros, Tokens};

/// Prompt tokens that a mixed step takes at least.
pub const MIXED_TOKENS_MIN: u32 = 64;
/// A prompt that waits moves after so many decode steps, whatever slack there is.
pub const DECODES_MAX: u32 = 50;

/// How a worker with sequences that run, and a prompt, goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepMode {
    /// Prompts take what is left of the step's token limit beside those that decode.
    Fill,
    /// Prompts take at most `chunk_tokens`, those that decode included.
    Chunk,
    /// Prompts take what keeps the step within `chunk_step_ratio` of the target per token.
    ChunkInTime,
    /// A prompt alone between two decode steps as far as slack allows, or mixed where that is
    /// measured to be cheaper.
    #[default]
    PauseOrMix,
}

/// Constants of the choice; the router tells them to its workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepPolicy {
    /// See [`StepMode`].
    pub mode: StepMode,
    /// Of [`StepMode::Chunk`]: tokens of a step.
    pub chunk_tokens: Tokens,
    /// Target of sequences for which nobody asked for one: time per token.
    pub tpot: Micros,
    /// A mixed step takes at most this part of the target (`tau`).
    pub mixed_step_ratio: f64,
    /// Sequences are to keep this part of the target (`pace`).
    pub pace_ratio: f64,
    /// Longest pause between two decode steps.
    pub pause_max: Micros,
    /// Shortest, unless it ends the prompt.
    pub pause_min: Micros,
    /// Which quantile of the residents' slack a pause may use up.
    pub slack_quantile: f64,
    /// How much dearer mixed steps are believed to be before one was measured.
    pub mixed_penalty_start: f64,
    /// Every so many slices are mixed all the same, to learn it.
    pub probe_every: u32,
    /// Longest slice of a worker labelled decode that nobody runs at: it must soon hear of new
    /// ones.
    pub idle_slice_max: Micros,
}

impl Default for StepPolicy {
    fn default() -> Self {
        Self {
            mode: StepMode::default(),
            chunk_tokens: Tokens(512),
            tpot: Micros::from_millis(80),
            mixed_step_ratio: 0.85,
            pace_ratio: 0.95,
            pause_max: Micros::from_millis(100),
            pause_min: Micros::from_millis(50),
            slack_quantile: 0.05,
            mixed_penalty_start: 0.2,
            probe_every: 50,
            idle_slice_max: Micros::from_millis(60),
        }
    }
}

impl StepPolicy {
    /// Time per token that sequences with this target are to keep.
    pub fn pace_us(&self, tpot: Micros) -> u64 {
        whole_us(self.pace_ratio * tpot.0 as f64)
    }

    /// Longest mixed step beside sequences with this target.
    pub fn tau_us(&self, tpot: Micros) -> u64 {
        whole_us(self.mixed_step_ratio * tpot.0 as f64)
    }
}

/// Nearest whole number, halves up; what is below 0 or no number is 0.
pub(crate) fn whole_us(value: f64) -> u64 {
    floor_us(value + 0.5)
}

/// Largest whole number not above; what is below 0 or no number is 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and takes no number for 0"
)]
pub(crate) fn floor_us(value: f64) -> u64 {
    // Towards zero, which is down for all that is not 0 anyway.
    value as u64
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepChoice {
    /// Nothing to compute.
    Idle,
    /// All that run, one token each.
    Decode,
    /// So many prompt tokens, in the order of the prompts, and nobody who runs: a pause if there
    /// are such.
    Prefill(Tokens),
    /// Both.
    Mixed(Tokens),
}

impl StepChoice {
    /// Prompt tokens that the step computes.
    pub const fn prompt_tokens(self) -> Tokens {
        match self {
            Self::Idle | Self::Decode => Tokens(0),
            Self::Prefill(tokens) | Self::Mixed(tokens) => tokens,
        }
    }

    /// Whether those that run make a token in it.
    pub const fn has_decodes(self) -> bool {
        matches!(self, Self::Decode | Self::Mixed(_))
    }
}
