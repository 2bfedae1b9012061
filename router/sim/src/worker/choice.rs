//! What a worker computes next, and what it believes that it takes: the very code that real workers
//! use, fed with what this one sees. Called by `step` and `report`.

use dopd_core::{
    fleet::Role,
    step::{StepChoice, StepView, StepWork, choose},
    units::Micros,
};

use super::Worker;

impl Worker {
    pub(super) fn choose(&mut self, now: Micros) -> StepChoice {
        if self.prompts.is_empty() {
            return if self.decoding.seqs > 0 {
                StepChoice::Decode
            } else {
                StepChoice::Idle
            };
        }
        let mut prompts = std::mem::take(&mut self.shapes);
        prompts.clear();
        let seats = self.prompts.iter();
        let seats = seats.filter_map(|&slot| self.seats.get(slot as usize)?.as_ref());
        prompts.extend(seats.map(|seat| (seat.left(), seat.computed)));
        let view = StepView {
            now,
            is_decode: self.spec.role == Role::Decode,
            tokens_max: self.spec.batch_tokens_max,
            residents: &self.decoding.residents,
            decode_seqs: self.decoding.seqs,
            decode_context: self.decoding.context,
            prompts: &prompts,
        };
        let (policy, cost) = (&self.terms.policy, &self.facts.timings);
        let choice = choose(policy, &self.belief, &view, cost);
        self.shapes = prompts;
        choice
    }

    /// What the worker predicts of a step, without what mixing costs.
    pub(super) fn plain_us(&self, work: StepWork) -> u64 {
        self.facts.timings.plain_us(work)
    }
}
