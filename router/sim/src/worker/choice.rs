//! What a worker computes next, and what it believes that it takes. Called by `step` and `report`.

use dopd_core::{
    cost::StepShape,
    step::StepChoice,
    units::{Micros, Tokens},
};

use super::Worker;

impl Worker {
    pub(super) fn choose(&self, _now: Micros) -> StepChoice {
        let seqs = self.decoding.seqs;
        let budget = self.spec.batch_tokens_max.saturating_sub(seqs);
        let queued = u32::try_from(self.queued).unwrap_or(u32::MAX).min(budget);
        match (queued, seqs) {
            (0, 0) => StepChoice::Idle,
            (0, _) => StepChoice::Decode,
            (tokens, 0) => StepChoice::Prefill(Tokens(tokens)),
            (tokens, _) => StepChoice::Mixed(Tokens(tokens)),
        }
    }

    /// What the worker expects of a step.
    pub(super) fn expected_us(&self, shape: StepShape<'_>) -> u64 {
        self.facts.timings.step_us(shape)
    }

    pub(super) fn penalty_permille(&self) -> u32 {
        u32::try_from(super::whole(
            self.facts.timings.mixed_penalty_ratio * 1_000.0,
        ))
        .unwrap_or(0)
    }
}
