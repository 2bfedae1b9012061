//! What a prompt is worth of the queue's order: its targets and its rank. And what becomes of it,
//! for those who learn from that.

use super::{
    Brain,
    explain::Chosen,
    queue::{Item, Lane, OpenLanes, QueueKey},
    timers::Timer,
};
use crate::{
    policy::Order,
    request::{RejectReason, RequestFacts},
    units::{Micros, Tokens},
};

/// What is asked of a request's first and later tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Targets {
    /// Predicted prefill.
    pub(super) prefill: Micros,
    /// When its first token is due.
    pub(super) ttft_due: Micros,
    /// Mean time per later token.
    pub(super) tpot: Micros,
}

impl Brain {
    /// The request's own targets; the policy's where nobody asked for any.
    pub(super) fn targets(&self, facts: &RequestFacts) -> Targets {
        let policy = &self.config.policy;
        let prefill = self.expected_prefill(facts);
        let ttft = facts.slo.ttft.unwrap_or_else(|| {
            let scaled = prefill.times(policy.ttft_prefill_ratio);
            policy.ttft.max(scaled)
        });
        Targets {
            prefill,
            ttft_due: self.now.plus(ttft),
            tpot: facts.slo.tpot.unwrap_or(policy.tpot),
        }
    }

    /// Time that its prompt takes the fastest worker, less what some worker has cached of it.
    pub(super) fn expected_prefill(&self, facts: &RequestFacts) -> Micros {
        let prefill = self.workers.prefill_us(facts.prompt_tokens);
        let cached = self.cached_anywhere(facts);
        if cached == Tokens(0) {
            return prefill;
        }
        // What is left attends to what is cached, and costs a step of its own.
        let left = prefill.since(self.workers.prefill_us(cached));
        left.plus(self.workers.prefill_us(Tokens(1))).min(prefill)
    }

    /// Most of its prompt that one worker has cached.
    pub(super) fn cached_anywhere(&self, facts: &RequestFacts) -> Tokens {
        if !self.config.policy.use_prefixes || facts.prefix.is_empty() {
            return Tokens(0);
        }
        let (pages, sessions) = self.prefixes.best(&facts.prefix);
        let page_size = sessions.first().and_then(|&session| {
            let worker = self.workers.get(self.workers.key_of(session)?)?;
            Some(worker.facts.page_size)
        });
        let cached = page_size.map_or(0, |size| pages.0.saturating_mul(size));
        Tokens(cached).min(facts.prompt_tokens)
    }

    /// Who stepped behind at this event: it missed its target, whenever it is served.
    pub(super) fn note_demoted(&mut self) {
        for key in self.queue.take_demoted() {
            self.demotions_total += 1;
            self.judge_target(key, false);
            self.note_plain(key, Chosen::Demote);
        }
    }

    /// Rank of a prompt that arrived then, the lowest first.
    pub(super) fn rank(&self, arrived: Micros, prefill: Micros, due: Micros, is_long: bool) -> i64 {
        let policy = &self.config.policy;
        match policy.order {
            Order::Fcfs => 0,
            Order::Sjf => whole(prefill),
            Order::Edf => whole(due),
            Order::Aged => {
                let ageing = policy.ageing_ratio * self.fair.weight(is_long);
                whole(arrived).saturating_add(rounded(prefill.0 as f64 * ageing))
            }
        }
    }

    /// Lanes from which may be placed now.
    pub(super) fn open_lanes(&self) -> OpenLanes {
        OpenLanes([Lane::Replay, Lane::Retry, Lane::Fresh].map(|lane| self.is_open(lane)))
    }

    /// Into the queue, by what has to be computed now.
    pub(super) fn enqueue(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        let has_begun = sequence.answer > Tokens(0);
        let prefill = if has_begun {
            self.workers.prefill_us(sequence.to_prefill())
        } else {
            sequence.prefill
        };
        let (arrived, due) = (sequence.arrived, sequence.ttft_due);
        let tokens = sequence.queued();
        let item = Item {
            sequence: key,
            tokens,
            prefill: self.workers.prefill_us(tokens),
            start_by: if has_begun {
                Micros(u64::MAX)
            } else {
                due.since(prefill)
            },
        };
        let queue_key = QueueKey {
            rank: sequence
                .order_key
                .unwrap_or_else(|| self.rank(arrived, prefill, due, sequence.is_long)),
            ..sequence.queue_key
        };
        if let Some(at) = self.late_at(sequence) {
            self.timers.set(at, Timer::Late(key));
        }
        self.queue.push(queue_key, item, arrived);
        if let Some(sequence) = self.sequences.get_mut(key) {
            sequence.queue_key = queue_key;
        }
    }

    /// Out of the queue.
    pub(super) fn dequeue(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        if let Some(at) = self.late_at(sequence) {
            self.timers.clear(at, Timer::Late(key));
        }
        self.queue.remove(sequence.queue_key);
    }

    /// A sequence that was taken out of the queue has its place. Its tenant pays for its prompt
    /// once: what is computed again is nobody's doing.
    pub(super) fn was_placed(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        let (queue_key, tokens) = (sequence.queue_key, sequence.queued());
        self.queue.placed(queue_key, sequence.arrived, tokens);
        if !std::mem::replace(&mut sequence.is_paid, true) {
            self.queue.share.placed(queue_key.account, tokens);
        }
    }

    /// A sequence is about to have so many tokens more.
    pub(super) fn answers(&mut self, key: usize, tokens: Tokens) {
        let sequence = self.sequences.get(key);
        let Some(sequence) = sequence.filter(|_| tokens > Tokens(0)) else {
            return;
        };
        let account = sequence.queue_key.account;
        let is_in_time = self.now <= sequence.ttft_due;
        if sequence.is_of_many && sequence.answer == Tokens(0) {
            self.sequences.begins(key);
        }
        self.queue.share.answered(account, tokens);
        self.judge_target(key, is_in_time);
    }

    /// A sequence met the target for its first token or missed it; what is said first counts.
    fn judge_target(&mut self, key: usize, has_passed: bool) {
        if let Some(sequence) = self.sequences.get_mut(key)
            && !std::mem::replace(&mut sequence.is_judged, true)
        {
            self.fair.heard(sequence.is_long, has_passed);
        }
    }

    /// A sequence ends with an error: if that is the time that it waited, it missed its target.
    pub(super) fn is_refused(&mut self, key: usize, why: RejectReason) {
        use RejectReason::{DeadlineExceeded, Late, QueueFull};
        if matches!(why, DeadlineExceeded | Late | QueueFull) {
            self.judge_target(key, false);
        }
    }

    /// A request is refused as it comes. For want of room that is a miss like any in the queue:
    /// another order would have let it in. A target that no order meets, and a drain, are not.
    pub(super) fn is_turned_away(&mut self, facts: &RequestFacts, why: RejectReason) {
        if why == RejectReason::QueueFull {
            let is_long = self.fair.arrived(facts.prompt_tokens);
            (0..facts.choices.max(1)).for_each(|_| self.fair.heard(is_long, false));
        }
    }

    /// A sequence is about to be forgotten.
    pub(super) fn leaves(&mut self, key: usize) {
        if let Some(sequence) = self.sequences.get(key) {
            self.queue.share.leave(sequence.queue_key.account);
        }
    }
}

fn whole(time: Micros) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a float cast stops at the ends of i64, and takes NaN for 0"
)]
const fn rounded(value: f64) -> i64 {
    value as i64
}
