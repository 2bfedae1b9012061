//! What the workers of a group can do together, and whose breakers count. Every worker stands in
//! the sums as it was when it was last counted; [`Workers::count`] takes that out and puts in what
//! it is now, when it comes, goes or changes what it takes: O(log n), so that n workers can attach
//! one after the other. While a breaker of its group is open, O(workers).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{Group, Worker, Workers};
use crate::{
    brain::{breaker::Breaker, status::BreakerState},
    ids::SessionId,
    units::{Micros, Tokens},
};

/// Long enough that computing outweighs what a step costs in any case.
const PROMPT: Tokens = Tokens(4_096);

/// What some workers could hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::brain) struct GroupTotals {
    pub(in crate::brain) workers: usize,
    /// Longest sequence that one of them holds when empty.
    pub(in crate::brain) len_max: Tokens,
}

/// What a worker was counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    group: Group,
    is_usable: bool,
    is_staying: bool,
    /// It would take work, and its breaker is not closed.
    is_broken: bool,
    len_max: Tokens,
    /// Prompt tokens that it computes, in thousandths: whole numbers, so that what was added can be
    /// taken off again.
    tokens_per_ks: u64,
    /// Time of [`PROMPT`], and of equals the one that attached first.
    speed: Speed,
}

type Speed = (Micros, SessionId, usize);

/// Sums over some workers.
#[derive(Debug, Default)]
pub(super) struct Tally {
    totals: GroupTotals,
    tokens_per_ks: u64,
    /// How many are of each length.
    lens: BTreeMap<Tokens, usize>,
    speeds: BTreeSet<Speed>,
}

impl Tally {
    fn add(&mut self, one: &Counted) {
        self.totals.workers += 1;
        self.tokens_per_ks += one.tokens_per_ks;
        *self.lens.entry(one.len_max).or_default() += 1;
        self.speeds.insert(one.speed);
        self.measure();
    }

    fn remove(&mut self, one: &Counted) {
        self.totals.workers -= 1;
        self.tokens_per_ks -= one.tokens_per_ks;
        if let Some(count) = self.lens.get_mut(&one.len_max) {
            *count -= 1;
            if *count == 0 {
                self.lens.remove(&one.len_max);
            }
        }
        self.speeds.remove(&one.speed);
        self.measure();
    }

    fn measure(&mut self) {
        let longest = self.lens.last_key_value();
        self.totals.len_max = longest.map_or(Tokens(0), |(&len, _)| len);
    }

    const fn totals(&self) -> GroupTotals {
        self.totals
    }

    /// Prompt tokens that they compute together.
    const fn tokens_per_s(&self) -> f64 {
        self.tokens_per_ks as f64 / 1e3
    }

    fn fastest(&self) -> Option<usize> {
        self.speeds.first().map(|&(_, _, key)| key)
    }
}

impl Worker {
    fn counted(&self, key: usize) -> Counted {
        let batch = self.facts.batch_tokens_max;
        let batch_us = self.facts.timings.prefill_us(batch).0.max(1);
        let is_closed = self.breaker.state() == BreakerState::Closed;
        Counted {
            group: Group::of(self.role),
            is_usable: self.is_usable(),
            is_staying: !self.is_draining,
            is_broken: self.is_standing() && !is_closed,
            len_max: self.len_max(),
            tokens_per_ks: u64::from(batch.0) * 1_000_000_000 / batch_us,
            speed: (self.facts.timings.prefill_us(PROMPT), self.session, key),
        }
    }
}

impl Workers {
    /// Counts a worker anew that came, went or changed what it takes.
    pub(super) fn count(&mut self, key: usize) {
        let before = self.broken;
        self.tally(key);
        for group in [Group::Prompts, Group::Decode] {
            if before[group as usize] > 0 || self.broken[group as usize] > 0 {
                self.limit(group);
            }
        }
    }

    /// A worker stands in the sums as it is now.
    fn tally(&mut self, key: usize) {
        if let Some(worker) = self.by_key.get_mut(key) {
            let new = worker.counted(key);
            let old = worker.counted.replace(new);
            self.put(old, Tally::remove);
            self.put(Some(new), Tally::add);
            self.broken[new.group as usize] += usize::from(new.is_broken);
            if let Some(old) = old {
                self.broken[old.group as usize] -= usize::from(old.is_broken);
            }
        }
    }

    /// A worker that went stands in no sum.
    pub(super) fn uncount(&mut self, old: Option<Counted>) {
        self.put(old, Tally::remove);
        let Some(old) = old else { return };
        let before = self.broken[old.group as usize];
        self.broken[old.group as usize] -= usize::from(old.is_broken);
        if before > 0 {
            self.limit(old.group);
        }
    }

    fn put(&mut self, one: Option<Counted>, change: impl Fn(&mut Tally, &Counted)) {
        let Some(one) = one else { return };
        if one.is_staying {
            change(&mut self.staying, &one);
        }
        if one.is_usable {
            change(&mut self.tallies[one.group as usize], &one);
        }
    }

    /// Which breakers count: those that are open longest, of at most half of the workers of a group
    /// that would take work, and of none that could hold what no other could.
    fn limit(&mut self, group: Group) {
        let of_group = |worker: &Worker| worker.is_standing() && Group::of(worker.role) == group;
        let mut standing: Vec<usize> = self
            .by_key
            .iter()
            .filter(|(_, worker)| of_group(worker))
            .map(|(key, _)| key)
            .collect();
        let half = standing.len() / 2;
        let opened = |key: usize| {
            let breaker = self.by_key.get(key).map(|worker| &worker.breaker);
            let broken = breaker.filter(|breaker| breaker.state() != BreakerState::Closed);
            broken.map(Breaker::due)
        };
        standing.sort_by_cached_key(|&key| Reverse(opened(key)));
        let broken = standing.iter().filter(|&&key| opened(key).is_some());
        let places = broken.count().min(half);
        let len_max = |key: usize| self.by_key.get(key).map_or(Tokens(0), Worker::len_max);
        let free = standing.iter().skip(places);
        let free_len = free.map(|&key| len_max(key)).max().unwrap_or_default();
        let limited: Vec<(usize, bool)> = (standing.iter().enumerate())
            .map(|(place, &key)| (key, place < places && len_max(key) <= free_len))
            .collect();
        for (key, is_limited) in limited {
            let worker = self.by_key.get_mut(key);
            let was_limited =
                worker.map(|worker| std::mem::replace(&mut worker.is_limited, is_limited));
            if was_limited != Some(is_limited) {
                self.tally(key);
                self.refresh(key);
            }
        }
    }

    /// The usable workers of a group.
    pub(in crate::brain) const fn totals(&self, group: Group) -> GroupTotals {
        self.tallies[group as usize].totals()
    }

    /// Workers that get new work or will get it again.
    pub(in crate::brain) const fn staying(&self) -> GroupTotals {
        self.staying.totals()
    }

    /// Whether any worker may get new work.
    pub(in crate::brain) const fn is_any_usable(&self) -> bool {
        self.usable() > 0
    }

    pub(super) const fn usable(&self) -> usize {
        self.totals(Group::Prompts).workers + self.totals(Group::Decode).workers
    }

    /// Prompt tokens per second of all usable workers that prompts go to.
    pub(in crate::brain) const fn prefill_tokens_per_s(&self) -> f64 {
        let [prompts, decode] = &self.tallies;
        if prompts.totals().workers > 0 {
            prompts.tokens_per_s()
        } else {
            decode.tokens_per_s()
        }
    }

    /// Predicted time of a prompt of so many tokens on a usable worker that prompts go to, a fast
    /// one; zero without any.
    pub(in crate::brain) fn prefill_us(&self, tokens: Tokens) -> Micros {
        let [prompts, decode] = &self.tallies;
        let fastest = prompts.fastest().or_else(|| decode.fastest());
        let worker = fastest.and_then(|key| self.get(key));
        worker.map_or(Micros(0), |worker| match &worker.facts.timings {
            // Nobody told: what it was seen to take.
            timings if timings.is_instant() => worker.prompt_us(tokens),
            timings => timings.prefill_us(tokens),
        })
    }
}

#[cfg(test)]
mod tests;
