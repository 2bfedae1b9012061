//! Who gets a place in the queue, and who waits in vain.

use super::{Brain, queue::Lane, sequences::Sequence};
use crate::{
    request::{RejectReason, RequestFacts},
    units::Micros,
};

impl Brain {
    /// Why a request is not even queued.
    pub(super) fn refusal(&self, facts: &RequestFacts) -> Option<(RejectReason, Micros)> {
        if self.is_draining {
            return Some((RejectReason::Draining, self.config.retry_after_min));
        }
        let tokens = u64::from(facts.prompt_tokens.0) + u64::from(facts.choices.max(1)) - 1;
        let has_place = self.sequences.requests_waiting() < self.config.queue_requests_max;
        let has_tokens = self.queue.tokens().saturating_add(tokens) <= self.config.queue_tokens_max;
        let has_room = has_place && (has_tokens || self.queue.is_empty());
        if has_room && !self.would_wait_too_long(facts) {
            return None;
        }
        Some((RejectReason::QueueFull, self.retry_after()))
    }

    /// Behind all that wait it could not be answered in its time, but on its own it could. One that
    /// goes before others is never judged by them: how many it goes before is not counted.
    fn would_wait_too_long(&self, facts: &RequestFacts) -> bool {
        if self.queue.lowest() > Some(facts.priority) {
            return false;
        }
        let wait = self.pace.wait(self.queue.len());
        let service = self.pace.service(facts.prompt_tokens, facts.max_tokens);
        let (Some(wait), Some(service)) = (wait, service) else {
            return false;
        };
        let alone = self.now.plus(service);
        alone <= facts.deadline && alone.plus(wait) > facts.deadline
    }

    /// When the queue will be worked off: as fast as it was of late, or as prefill can be.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast stops at the ends of u64, and the result is clamped"
    )]
    fn retry_after(&self) -> Micros {
        let prefill_s = self.queue.tokens() as f64 / self.workers.prefill_tokens_per_s().max(1.0);
        let seen = self.pace.wait(self.queue.len()).unwrap_or_default();
        let wait = seen.max(Micros((prefill_s * 1e6) as u64));
        wait.min(self.config.retry_after_max)
            .max(self.config.retry_after_min)
    }

    /// Why nothing is to be computed for a sequence that waits.
    pub(super) fn is_in_vain(&self, sequence: &Sequence) -> Option<RejectReason> {
        let staying = self.workers.staying();
        if sequence.deadline <= self.now || self.comes_too_late(sequence) {
            // If its time is over, its timer is due and comes next.
            Some(RejectReason::DeadlineExceeded)
        } else if staying.workers > 0 && staying.len_max < sequence.len() {
            Some(RejectReason::TooLarge)
        } else {
            None
        }
    }

    /// It has waited so long that its answer cannot be complete in time; when it came it could.
    /// Never so if it ran before: its client has a part of the answer.
    fn comes_too_late(&self, sequence: &Sequence) -> bool {
        let service = self.pace.service(sequence.prompt, sequence.max_tokens);
        let is_fresh = sequence.queue_key.lane == Lane::Fresh;
        service.is_some_and(|service| {
            is_fresh
                && sequence.arrived.plus(service) <= sequence.deadline
                && self.now.plus(service) > sequence.deadline
        })
    }
}
