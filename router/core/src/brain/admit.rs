//! Who gets a place in the queue, and who a place at a worker.

use super::{
    Brain,
    place::{Need, Place, choose},
    queue::Lane,
    sequences::{Risk, Sequence},
    table::Input,
};
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

    /// Places what can be placed, and notes how fast that goes.
    pub(super) fn place_waiting(&mut self) {
        let before = self.places;
        self.place_all();
        let count = u32::try_from(self.places - before).unwrap_or(u32::MAX);
        // Without workers nothing is to be seen of them.
        let is_waiting = !self.queue.is_empty() && self.workers.is_any_usable();
        self.pace.placed(self.now, count, is_waiting);
    }

    /// Places from the front of the queue until one does not fit: the order is kept, so nothing
    /// starves.
    fn place_all(&mut self) {
        let mut quarantined = Vec::new();
        while let Some(key) = self.next_to_place(&quarantined) {
            let Some(sequence) = self.sequences.get(key) else {
                return;
            };
            let (lane, risk) = (sequence.queue_key.lane, self.sequences.risk(sequence));
            let need = Need {
                len: sequence.len(),
                answer_left: sequence.max_tokens.minus(sequence.answer),
                risk,
            };
            if let Some(why) = self.is_in_vain(sequence) {
                let is_late = why == RejectReason::DeadlineExceeded && sequence.deadline > self.now;
                self.hopeless_total += u64::from(is_late);
                self.end(key, Some((why, Micros(0))));
                continue;
            }
            let anybody = Need {
                risk: Risk::None,
                ..need
            };
            if let Some(place) = self.choose(key, need) {
                self.apply(key, Input::Place(place));
                self.places += 1;
            } else if risk != Risk::None && self.choose(key, anybody).is_some() {
                // There is room, but not in its company.
                quarantined.push(lane);
            } else {
                return;
            }
        }
    }

    /// Why nothing is to be computed for a sequence that waits.
    fn is_in_vain(&self, sequence: &Sequence) -> Option<RejectReason> {
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

    fn next_to_place(&self, quarantined: &[Lane]) -> Option<usize> {
        let is_open = |lane| self.is_open(lane) && !quarantined.contains(&lane);
        self.queue.first(is_open)
    }

    fn choose(&self, key: usize, need: Need) -> Option<Place> {
        let sibling = self.siblings(key).next();
        let percent = self.config.keep_pool_percent;
        choose(&self.workers, &self.pairs, need, sibling, percent)
    }
}
