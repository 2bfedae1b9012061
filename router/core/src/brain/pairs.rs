//! Breakers of pairs of workers: the way from one to the other may be cut while both are well.
//!
//! A pair's breaker is remembered from its first failed hand-off until nothing of it matters any
//! more, and that pages went this way before, until one of its workers goes.

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
    /// Source -> destinations that a hand-off of its arrived at: at most all pairs of the fleet.
    met: BTreeMap<usize, BTreeSet<usize>>,
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
        if outcome == Outcome::Succeeded {
            self.met.entry(pair.0).or_default().insert(pair.1);
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
        self.met.remove(&worker);
        for destinations in self.met.values_mut() {
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

    /// Pages went from the one to the other before: what joins them is made.
    pub(super) fn have_met(&self, pair: Pair) -> bool {
        let met = self.met.get(&pair.0);
        met.is_some_and(|destinations| destinations.contains(&pair.1))
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
