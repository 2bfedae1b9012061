//! Who gets a place in the queue, and who waits in vain.

use std::collections::BTreeSet;

use super::{Brain, queue::Lane, sequences::Sequence, table::PhaseKind};
use crate::{
    action::Action,
    ids::{RequestId, SequenceId},
    policy::Refuse,
    request::{MissedTarget, RejectReason, RequestFacts},
    units::Micros,
};

/// Why a sequence ends without its answer, and what its client is told besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub(super) why: RejectReason,
    /// Zero: no hint.
    retry_after: Micros,
    missed: Option<MissedTarget>,
}

impl Refusal {
    /// Without a hint when to try again.
    pub(super) const fn of(why: RejectReason) -> Self {
        Self::later(why, Micros(0))
    }

    pub(super) const fn later(why: RejectReason, retry_after: Micros) -> Self {
        Self {
            why,
            retry_after,
            missed: None,
        }
    }

    pub(super) const fn for_target(self, target: Micros, wait: Micros) -> Self {
        Self {
            missed: Some(MissedTarget { target, wait }),
            ..self
        }
    }

    /// Ends that one.
    pub(super) const fn of_sequence(self, sequence: SequenceId) -> Action {
        Action::Reject {
            sequence,
            why: self.why,
            retry_after: self.retry_after,
            missed: self.missed,
        }
    }
}

impl Brain {
    /// Why a request is not even queued. If the queue is full others may end for it.
    pub(super) fn refusal(&mut self, facts: &RequestFacts) -> Option<Refusal> {
        self.workers.settle();
        if self.is_draining {
            let retry_after = self.config.retry_after_min;
            return Some(Refusal::later(RejectReason::Draining, retry_after));
        }
        if let Some((target, least)) = self.unmeetable(facts) {
            let refusal = Refusal::later(RejectReason::Unmeetable, self.retry_after());
            return Some(refusal.for_target(target, least));
        }
        if !self.would_wait_too_long(facts) && (self.has_room(facts) || self.make_room(facts)) {
            return None;
        }
        Some(Refusal::later(RejectReason::QueueFull, self.retry_after()))
    }

    fn has_room(&self, facts: &RequestFacts) -> bool {
        let has_place = self.sequences.requests_waiting() < self.config.queue_requests_max;
        let tokens = self.queue.tokens().saturating_add(tokens_of(facts));
        has_place && (tokens <= self.config.queue_tokens_max || self.queue.is_empty())
    }

    /// Even if it went first, to the worker that is through with it soonest if nobody decoded, its
    /// first token would come after the target that was asked for: that target, and the least time.
    /// O(workers).
    fn unmeetable(&self, facts: &RequestFacts) -> Option<(Micros, Micros)> {
        let policy = &self.config.policy;
        let ttft = (facts.slo.ttft).filter(|_| policy.refuse == Refuse::Early)?;
        let cached = self.cached_anywhere(facts);
        let staying = self.workers.iter().filter(|worker| !worker.is_draining);
        let first = staying
            .map(|worker| worker.least_us(facts.prompt_tokens, cached, self.now))
            .min()?;
        (first > ttft).then_some((ttft, first))
    }

    /// Behind all of its tenant that wait it could not be answered in its time, but on its own it
    /// could. One that goes before others is never judged by them: how many it goes before is not
    /// counted.
    fn would_wait_too_long(&self, facts: &RequestFacts) -> bool {
        let Some(service) = self.pace.service(facts.prompt_tokens, facts.max_tokens) else {
            return false;
        };
        let alone = self.now.plus(service);
        let spare = facts.deadline.since(alone);
        // All that wait are before it at most.
        let longest = self.pace.wait(self.queue.len()).unwrap_or_default();
        if alone > facts.deadline || longest <= spare {
            return false;
        }
        let targets = self.targets(facts);
        let is_long = self.fair.is_long(facts.prompt_tokens);
        let rank = facts
            .order_key
            .unwrap_or_else(|| self.rank(self.now, targets.prefill, targets.ttft_due, is_long));
        let account = self.queue.share.find(facts.tenant);
        let ahead = account.and_then(|account| self.queue.ahead(account, facts.priority, rank));
        let wait = ahead.and_then(|ahead| self.pace.wait(ahead));
        wait.is_some_and(|wait| wait > spare)
    }

    /// The queue is full: the tenant that has most waiting for its share makes room, as long as it
    /// has more than the newcomer's tenant. If that is the newcomer's own, those make room that are
    /// late already, for one that is not. They are told so, with a hint when to try again. Who is
    /// next of those that waited too long is spared.
    fn make_room(&mut self, facts: &RequestFacts) -> bool {
        /// For one newcomer.
        const REQUESTS_MAX: usize = 16;
        /// Times that some of those at the front step behind.
        const ROUNDS_MAX: usize = 32;
        // Noted now: who ends here leaves its key to the newcomer.
        for _ in 0..ROUNDS_MAX {
            self.queue.first(|_| true);
            self.note_demoted();
            if !self.queue.has_more_late() {
                break;
            }
        }
        let share = &self.queue.share;
        let Some(largest) = share.largest_backlog() else {
            return false;
        };
        let is_own = share.find(facts.tenant) == Some(largest);
        let own = share.backlog_with(facts.tenant, facts.weight, tokens_of(facts));
        let targets = self.targets(facts);
        if is_own && self.now.plus(targets.prefill) > targets.ttft_due {
            return false;
        }
        let tokens = self.queue.tokens().saturating_add(tokens_of(facts));
        let too_many = tokens.saturating_sub(self.config.queue_tokens_max);
        let is_full = self.sequences.requests_waiting() >= self.config.queue_requests_max;
        let overdue = self.queue.overdue().and_then(|key| self.sequences.get(key));
        let spared = overdue.map(|sequence| sequence.id.request);
        let (mut freed, mut chosen) = (0_u64, BTreeSet::new());
        for (key, item) in self.queue.last_of(largest, is_own) {
            if freed >= too_many && chosen.len() >= usize::from(is_full) {
                break;
            }
            let request = self.sequences.get(key).map(|sequence| sequence.id.request);
            if spared.is_some() && request == spared {
                continue;
            }
            freed += u64::from(item.tokens.0);
            if !is_own && share.backlog_without(largest, freed) < own {
                return false;
            }
            let Some(request) = request.filter(|&request| self.never_ran(request)) else {
                return false;
            };
            chosen.insert(request);
            if chosen.len() > REQUESTS_MAX {
                return false;
            }
        }
        if freed < too_many || chosen.len() < usize::from(is_full) {
            return false;
        }
        let refusal = Refusal::later(RejectReason::QueueFull, self.retry_after());
        for key in chosen
            .into_iter()
            .flat_map(|one| self.sequences.of_request(one))
            .collect::<Vec<_>>()
        {
            self.evicted_total += 1;
            self.end(key, Some(refusal));
        }
        true
    }

    /// All choices of a request wait, and none ever ran.
    fn never_ran(&self, request: RequestId) -> bool {
        let keys = self.sequences.of_request(request);
        keys.into_iter().all(|key| {
            let sequence = self.sequences.get(key);
            sequence.is_some_and(|one| {
                one.phase.kind() == PhaseKind::Wait && one.queue_key.lane == Lane::Fresh
            })
        })
    }

    /// When the queue will be worked off: as fast as it was of late, or as prefill can be.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast stops at the ends of u64, and the result is clamped"
    )]
    pub(super) fn retry_after(&self) -> Micros {
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
        if sequence.deadline == Micros(u64::MAX) {
            return false;
        }
        let service = self.pace.service(sequence.prompt, sequence.max_tokens);
        let is_fresh = sequence.queue_key.lane == Lane::Fresh;
        service.is_some_and(|service| {
            is_fresh
                && sequence.arrived.plus(service) <= sequence.deadline
                && self.now.plus(service) > sequence.deadline
        })
    }
}

/// That a request adds to the queue: its choices share the prompt.
fn tokens_of(facts: &RequestFacts) -> u64 {
    u64::from(facts.prompt_tokens.0) + u64::from(facts.choices.max(1)) - 1
}
