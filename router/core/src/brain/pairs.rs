//! Breakers of pairs of workers: the way from one to the other may be cut while both are well.
//!
//! A pair's breaker is remembered from its first failed hand-off until nothing of it matters any
//! more; that a hand-off was tried, until one of its workers goes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BrainConfig,
    breaker::{Breaker, Outcome},
    random::Random,
    status::BreakerState,
};
use crate::units::Micros;

/// Pairs that are remembered; failures of more are not counted.
const PAIRS_MAX: usize = 1_024;

/// Keys of the source's worker and the destination's.
pub(super) type Pair = (usize, usize);

#[derive(Debug, Default)]
pub(super) struct Pairs {
    breakers: BTreeMap<Pair, Breaker>,
    /// Source -> destinations of hand-offs that ended, well or not: at most all pairs of the fleet.
    tried: BTreeMap<usize, BTreeSet<usize>>,
}

impl Pairs {
    /// Takes an outcome in. When the timer of the pair was due and is now; true: it opened.
    pub(super) fn hear(
        &mut self,
        pair: Pair,
        outcome: Outcome,
        now: Micros,
        config: &BrainConfig,
        random: &mut Random,
    ) -> (Option<Micros>, Option<Micros>, bool) {
        if matches!(outcome, Outcome::Succeeded | Outcome::Failed) {
            self.note_tried(pair);
        }
        if outcome == Outcome::Failed
            && !self.breakers.contains_key(&pair)
            && self.has_place(now, config)
        {
            self.breakers.insert(pair, Breaker::new());
        }
        let Some(breaker) = self.breakers.get_mut(&pair) else {
            return (None, None, false);
        };
        let before = breaker.due();
        let opened = breaker.hear(outcome, now, config, random);
        let after = breaker.due();
        if outcome == Outcome::Succeeded && breaker.is_quiet(now, config) {
            self.breakers.remove(&pair);
        }
        (before, after, opened)
    }

    /// A hand-off from the one to the other has ended, or had its time.
    pub(super) fn note_tried(&mut self, pair: Pair) {
        self.tried.entry(pair.0).or_default().insert(pair.1);
    }

    /// There is a place for one more, once those that do not matter are forgotten.
    fn has_place(&mut self, now: Micros, config: &BrainConfig) -> bool {
        if self.breakers.len() >= PAIRS_MAX {
            self.breakers
                .retain(|_, breaker| !breaker.is_quiet(now, config));
        }
        self.breakers.len() < PAIRS_MAX
    }

    /// Forgets a worker. Timers to clear.
    pub(super) fn remove(&mut self, worker: usize) -> Vec<(Micros, Pair)> {
        self.tried.remove(&worker);
        for destinations in self.tried.values_mut() {
            destinations.remove(&worker);
        }
        let mut timers = Vec::new();
        self.breakers.retain(|&pair, breaker| {
            let stays = pair.0 != worker && pair.1 != worker;
            if !stays && let Some(at) = breaker.due() {
                timers.push((at, pair));
            }
            stays
        });
        timers
    }

    /// A hand-off from the one to the other has ended: what joins them is made, or does not come.
    pub(super) fn is_tried(&self, pair: Pair) -> bool {
        let tried = self.tried.get(&pair.0);
        tried.is_some_and(|destinations| destinations.contains(&pair.1))
    }

    /// Nothing is to be handed from the one to the other now.
    pub(super) fn is_shut(&self, pair: Pair) -> bool {
        self.breakers.get(&pair).is_some_and(Breaker::is_shut)
    }

    /// To how many nothing is to be handed from there.
    pub(super) fn shut(&self, source: usize) -> usize {
        self.of(source).filter(|breaker| breaker.is_shut()).count()
    }

    fn of(&self, source: usize) -> impl Iterator<Item = &Breaker> {
        let range = self.breakers.range((source, 0)..=(source, usize::MAX));
        range.map(|(_, breaker)| breaker)
    }

    /// Pairs whose breaker is open; for people.
    pub(super) fn open(&self) -> usize {
        let is_open = |breaker: &&Breaker| breaker.state() != BreakerState::Closed;
        self.breakers.values().filter(is_open).count()
    }
}
