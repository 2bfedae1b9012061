//! How long a step, a prefill and a hand-off take on a worker.
//!
//! One [`Timings`] is one model on one device. The brain predicts hand-offs with it, mock workers
//! sleep by it, planner and simulator calculate with it: one formula, so that they cannot drift
//! apart.
//!
//! ```text
//! step = t0 + max(w + b*n, f*n) + c2*pairs + c1*context + cb*batch
//! n    = new prompt tokens + decoding sequences
//! ```
//!
//! A step that does both costs `1 + mixed_penalty_ratio` times as much. Only plain IEEE operations,
//! so every machine gets the same microseconds.

mod builtin;
mod learned;
mod load;

use serde::{Deserialize, Serialize};

pub use self::{
    learned::{Learned, RATIO_MAX, RATIO_MIN},
    load::{JSON_BYTES_MAX, TimingsError, VALUE_MAX},
};
use crate::{
    step::StepWork,
    units::{Micros, Tokens},
};

/// Step times of one model on one device. Microseconds, tokens, bytes; every value finite and at
/// least 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timings {
    /// Name of the calibration.
    pub name: String,
    /// `t0` of a step that computes prompt tokens: launch and host work.
    pub step_prefill_us: f64,
    /// `t0` of a step that only decodes.
    pub step_decode_us: f64,
    /// `w`: reading the weights once.
    pub weights_us: f64,
    /// `b`: per token, on top of the weights, while memory is the limit.
    pub memory_us_per_token: f64,
    /// `f`: per token while arithmetic is the limit.
    pub compute_us_per_token: f64,
    /// `c2`: per pair of a new prompt token and a token that it attends to.
    pub attention_us_per_pair: f64,
    /// `c1`: per token of KV that a decoding sequence reads.
    pub context_us_per_token: f64,
    /// `cb`: per decoding sequence, sampling and bookkeeping.
    pub batch_us_per_seq: f64,
    /// How much dearer a step is that prefills and decodes; 0.2: a fifth more than the sum.
    pub mixed_penalty_ratio: f64,
    /// Bandwidth of a hand-off; 0: bytes cost nothing.
    pub handoff_bytes_per_s: f64,
    /// Fixed time of a hand-off.
    pub handoff_fixed_us: f64,
}

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape<'a> {
    /// One pair per prompt in the step: new tokens, and tokens of it that were computed before.
    pub prefill: &'a [(u32, u32)],
    /// Sequences that decode one token.
    pub decode_seqs: u32,
    /// Tokens of KV that they read together.
    pub decode_context_sum: u64,
}

impl Timings {
    /// Time of one step; 0 for an empty one.
    pub fn step_us(&self, step: StepShape<'_>) -> u64 {
        self.work_us(StepWork::of(step))
    }

    /// The same of a step's sums.
    pub fn work_us(&self, work: StepWork) -> u64 {
        let sum_us = self.sum_us(work);
        whole_us(if work.is_mixed() {
            sum_us * (1.0 + self.mixed_penalty_ratio)
        } else {
            sum_us
        })
    }

    /// Time of one step as if mixing cost nothing on top; 0 for an empty one.
    pub fn plain_us(&self, work: StepWork) -> u64 {
        whole_us(self.sum_us(work))
    }

    #[inline]
    fn sum_us(&self, work: StepWork) -> f64 {
        let seqs = f64::from(work.decode_seqs);
        let tokens = f64::from(work.prefill_tokens) + seqs;
        if tokens == 0.0 {
            return 0.0;
        }
        let start_us = if work.prefill_tokens > 0 {
            self.step_prefill_us
        } else {
            self.step_decode_us
        };
        let memory_us = self.weights_us + self.memory_us_per_token * tokens;
        let compute_us = self.compute_us_per_token * tokens;
        start_us
            + if memory_us > compute_us {
                memory_us
            } else {
                compute_us
            }
            + self.attention_us_per_pair * work.prefill_pairs as f64
            + self.context_us_per_token * work.decode_context as f64
            + self.batch_us_per_seq * seqs
    }

    /// Steps take no time: those of a worker that measured nothing, or of an instant mock.
    pub const fn is_instant(&self) -> bool {
        self.step_prefill_us + self.step_decode_us == 0.0
            && self.weights_us + self.memory_us_per_token == 0.0
            && self.compute_us_per_token + self.attention_us_per_pair == 0.0
            && self.context_us_per_token + self.batch_us_per_seq == 0.0
    }

    /// Time of one step that computes a prompt of so many tokens and nothing else.
    pub fn prefill_us(&self, tokens: Tokens) -> Micros {
        Micros(self.plain_us(StepWork::prompt(tokens.0)))
    }

    /// Time from the first to the last byte of a hand-off of so many bytes.
    pub fn handoff_us(&self, bytes: u64) -> Micros {
        let bytes_us = if self.handoff_bytes_per_s > 0.0 {
            bytes as f64 / self.handoff_bytes_per_s * 1e6
        } else {
            0.0
        };
        Micros(whole_us(self.handoff_fixed_us + bytes_us))
    }
}

impl Default for Timings {
    /// `instant`: of a worker that measured nothing.
    fn default() -> Self {
        Self::instant()
    }
}

/// Nearest whole microsecond; stops at 2^53, the last that `f64` counts exactly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0 ..= 2^53 just before"
)]
pub fn whole_us(us: f64) -> u64 {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    let us = us.clamp(0.0, LARGEST);
    // Signed, as processors convert that both ways at once.
    let whole = us as i64;
    // The difference is exact below 2^53.
    (whole + i64::from(us - whole as f64 >= 0.5)) as u64
}
