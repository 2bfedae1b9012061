//! What the workers of a group can do together, and whose breakers count. Worked out anew when a
//! worker comes, goes, or changes what it takes: O(workers), on no event of a request.

use std::cmp::Reverse;

use super::{Group, Worker, Workers};
use crate::{
    brain::{breaker::Breaker, status::BreakerState},
    units::Tokens,
};

/// What the usable workers of one group could hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::brain) struct GroupTotals {
    pub(in crate::brain) workers: usize,
    /// Longest sequence that one of them holds when empty.
    pub(in crate::brain) len_max: Tokens,
    /// Prompt tokens that they compute together.
    pub(in crate::brain) prefill_tokens_per_s: f64,
}

impl Workers {
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
            if let Some(worker) = self.by_key.get_mut(key) {
                worker.is_limited = is_limited;
            }
            self.refresh(key);
        }
    }

    /// Counts anew. Only when a worker comes, goes or changes what it takes.
    pub(super) fn count(&mut self) {
        self.limit(Group::Prompts);
        self.limit(Group::Decode);
        self.totals = [GroupTotals::default(); 2];
        self.staying = GroupTotals::default();
        for (_, worker) in &self.by_key {
            if !worker.is_draining {
                self.staying.add(worker);
            }
            if worker.is_usable() {
                self.totals[Group::of(worker.role) as usize].add(worker);
            }
        }
        self.fastest = [Group::Prompts, Group::Decode].map(|group| self.fastest(group));
    }
}

impl Workers {
    /// The fastest usable worker of a group, of equals the one that attached first.
    fn fastest(&self, group: Group) -> Option<usize> {
        /// Long enough that computing outweighs what a step costs in any case.
        const PROMPT: Tokens = Tokens(4_096);
        let of_group = |worker: &Worker| worker.is_usable() && Group::of(worker.role) == group;
        let keys = self.by_session.values().copied();
        let timed = keys.filter_map(|key| {
            let worker = self.by_key.get(key).filter(|&worker| of_group(worker))?;
            Some((worker.facts.timings.prefill_us(PROMPT), key))
        });
        timed
            .min_by_key(|&(prefill, _)| prefill)
            .map(|(_, key)| key)
    }
}

impl GroupTotals {
    pub(super) fn add(&mut self, worker: &Worker) {
        let batch = worker.facts.batch_tokens_max;
        let batch_us = worker.facts.timings.prefill_us(batch).0.max(1) as f64;
        self.workers += 1;
        self.len_max = self.len_max.max(worker.len_max());
        self.prefill_tokens_per_s += f64::from(batch.0) * 1e6 / batch_us;
    }
}
