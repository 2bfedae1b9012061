//! Who misses the target for its first token, and who waits too long.
//!
//! A prompt that cannot be in time any more steps behind all of its lane that can (`queue` does
//! that): the time it would take is better spent on one that still can. What is late is served when
//! nothing else waits; whoever asked for a target is refused `late_max` after it, unless another
//! choice of the request has begun.
//!
//! **Starvation bound.** Under demotion nobody waits for ever, whatever arrives. A sequence that
//! never ran is *overdue* once it has waited for `ttft + late_max` of the policy. From then on, of
//! every [`OWED`] + 1 prompt tokens that are placed, one is owed to those that are overdue, in
//! order of arrival: as soon as [`OWED`] times the tokens of the oldest were placed besides, it
//! goes first. So it is placed, at the latest, when others were given `OWED` times the prompt
//! tokens of itself and of all that waited before it, plus one prompt; whatever priorities,
//! tenants, lengths and targets those others have. Or it ended before. Replays and retries are not
//! counted: their lanes go first, and hold no more than what ran when a worker failed. Where the
//! one that is owed its turn finds no room, decode workers take nothing that stands behind it,
//! until it fits. The price: when everybody is late a part of 1 in 65 of prefill goes to the
//! oldest.
//!
//! Without demotion the order is the one that was asked for, starvation included: first come first
//! served and ageing have none within a priority, shortest first and strict priorities do.

use std::collections::BTreeMap;

use super::{
    Brain,
    admit::Refusal,
    queue::{Item, Lane, QueueKey},
    sequences::Sequence,
    table::PhaseKind,
};
use crate::{
    policy::{PolicyConfig, Refuse},
    request::RejectReason,
    units::{Micros, Tokens},
};

/// Tokens placed besides for each that is owed to the oldest.
pub(super) const OWED: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Aged {
    arrived: Micros,
    sequence: usize,
    tokens: Tokens,
}

/// What those are owed that wait too long.
#[derive(Debug)]
pub(super) struct Guard {
    is_on: bool,
    /// Overdue after so long.
    wait: Micros,
    /// Who never ran, by arrival.
    ages: BTreeMap<u64, Aged>,
    /// Tokens placed while somebody was overdue.
    tokens: u64,
}

impl Guard {
    pub(super) const fn new(policy: &PolicyConfig) -> Self {
        Self {
            is_on: policy.demote,
            wait: policy.ttft.plus(policy.late_max),
            ages: BTreeMap::new(),
            tokens: 0,
        }
    }

    pub(super) fn add(&mut self, key: QueueKey, item: Item, arrived: Micros) {
        if self.is_on {
            let aged = Aged {
                arrived,
                sequence: item.sequence,
                tokens: item.tokens,
            };
            self.ages.insert(key.arrival, aged);
        }
    }

    pub(super) fn remove(&mut self, key: QueueKey) {
        if key.lane == Lane::Fresh {
            self.ages.remove(&key.arrival);
        }
    }

    /// The oldest of all that never ran, if it is overdue and enough was placed since for it to be
    /// owed.
    pub(super) fn owed(&self, now: Micros) -> Option<usize> {
        if self.tokens == 0 {
            return None;
        }
        let (_, aged) = self.ages.first_key_value()?;
        let is_owed = self.is_overdue(aged.arrived, now) && self.affords(aged.tokens);
        is_owed.then_some(aged.sequence)
    }

    /// The oldest of all that never ran, if it is overdue: nobody else may cost it its turn.
    pub(super) fn overdue(&self, now: Micros) -> Option<usize> {
        let (_, aged) = self.ages.first_key_value()?;
        (self.is_overdue(aged.arrived, now)).then_some(aged.sequence)
    }

    fn is_overdue(&self, arrived: Micros, now: Micros) -> bool {
        now.since(arrived) > self.wait
    }

    const fn price(tokens: Tokens) -> u64 {
        (tokens.0 as u64) * OWED
    }

    /// Enough was placed for a prompt of so many tokens to be owed.
    const fn affords(&self, tokens: Tokens) -> bool {
        self.tokens >= Self::price(tokens)
    }

    /// One that never ran was placed, and waits no longer.
    pub(super) fn placed(&mut self, key: QueueKey, arrived: Micros, tokens: Tokens, now: Micros) {
        let oldest = self.ages.first_key_value();
        let oldest = oldest.map(|(&arrival, aged)| (arrival, aged.arrived));
        let was_oldest = oldest.is_none_or(|(arrival, _)| key.arrival < arrival);
        let was_owed = was_oldest && self.is_overdue(arrived, now) && self.affords(tokens);
        let is_anybody_overdue = oldest.is_some_and(|(_, at)| self.is_overdue(at, now));
        self.tokens = if !is_anybody_overdue {
            0
        } else if was_owed {
            self.tokens - Self::price(tokens)
        } else {
            self.tokens.saturating_add(u64::from(tokens.0.max(1)))
        };
    }
}

impl Brain {
    /// When a sequence that begins to wait is refused because nobody could place it in time: only
    /// if somebody asked for a target, and while it has made no token.
    pub(super) fn late_at(&self, sequence: &Sequence) -> Option<Micros> {
        let policy = &self.config.policy;
        let is_asked = sequence.is_asked && sequence.answer == Tokens(0);
        (is_asked && policy.refuse != Refuse::Never)
            .then(|| sequence.ttft_due.plus(policy.late_max))
    }

    /// A sequence still waits so long after its target that it is refused; not if another choice of
    /// its request answers already.
    pub(super) fn late(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        let has_begun = self.sequences.has_begun(sequence);
        if sequence.phase.kind() == PhaseKind::Wait && !has_begun {
            let target = sequence.ttft_due.since(sequence.arrived);
            let waited = self.now.since(sequence.arrived);
            let refusal = Refusal::later(RejectReason::Late, self.retry_after());
            self.late_total += 1;
            self.end(key, Some(refusal.for_target(target, waited)));
        }
    }
}
