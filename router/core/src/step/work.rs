//! What a step computes, added up, and who knows how long that takes.

use crate::cost::{StepShape, Timings};

/// The sums of a step on which its time depends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    /// New prompt tokens.
    pub prefill_tokens: u32,
    /// Pairs of a new prompt token and a token that it attends to, itself included.
    pub prefill_pairs: u64,
    /// Sequences that decode one token.
    pub decode_seqs: u32,
    /// Tokens of KV that they read together.
    pub decode_context: u64,
}

impl StepWork {
    /// Only those that decode.
    pub const fn decode(decode_seqs: u32, decode_context: u64) -> Self {
        Self {
            prefill_tokens: 0,
            prefill_pairs: 0,
            decode_seqs,
            decode_context,
        }
    }

    /// Only a prompt of so many tokens.
    pub const fn prompt(tokens: u32) -> Self {
        let new = tokens as u64;
        Self {
            prefill_tokens: tokens,
            prefill_pairs: new * (new + 1) / 2,
            decode_seqs: 0,
            decode_context: 0,
        }
    }

    /// With the first `tokens` of these prompts, one after the other. Each is its tokens still to
    /// compute, and those computed before; all of them if there are fewer.
    #[must_use]
    pub fn with_prompts(mut self, prompts: &[(u32, u32)], tokens: u32) -> Self {
        let mut rest = tokens;
        for &(todo, computed) in prompts {
            if rest == 0 {
                break;
            }
            let new = todo.min(rest);
            rest -= new;
            self.prefill_tokens += new;
            let (new, computed) = (u64::from(new), u64::from(computed));
            let pairs = (new * computed).saturating_add(new * (new + 1) / 2);
            self.prefill_pairs = self.prefill_pairs.saturating_add(pairs);
        }
        self
    }

    /// Of a step's rows.
    pub fn of(shape: StepShape<'_>) -> Self {
        Self::decode(shape.decode_seqs, shape.decode_context_sum)
            .with_prompts(shape.prefill, u32::MAX)
    }

    /// Prompts, and sequences that decode.
    pub const fn is_mixed(&self) -> bool {
        self.prefill_tokens > 0 && self.decode_seqs > 0
    }
}

/// Who predicts steps: a calibration, or what a worker measured of its own.
pub trait StepCost {
    /// Microseconds of a step, a mixed one *without* what mixing costs on top; 0 for an empty one.
    /// Never less for more tokens.
    fn plain_us(&self, work: StepWork) -> u64;
}

impl StepCost for Timings {
    fn plain_us(&self, work: StepWork) -> u64 {
        Self::plain_us(self, work)
    }
}
