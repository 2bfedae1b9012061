//! What a worker computes next: decode those that run, a prompt, or both.
//!
//! Carried out by workers, who alone know their residents' slack at each step boundary; the brain
//! decides which prompts they have. Called by mock workers and the simulator; Python's batcher does
//! the same (`python/dopd/sched/choice.py`, compared by tests/contract). Source: policy study,
//! section 4, STEP.

use serde::{Deserialize, Serialize};

use crate::units::{Micros, Tokens};

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
    /// Longest slice of a worker labelled decode that nobody runs at: it must soon hear of new ones.
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

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepChoice {
    /// Nothing to compute.
    Idle,
    /// All that run, one token each.
    Decode,
    /// So many prompt tokens, in the order of the prompts, and nobody who runs: a pause if there are
    /// such.
    Prefill(Tokens),
    /// Both.
    Mixed(Tokens),
}
