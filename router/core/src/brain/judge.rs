//! Which outcome is whose: tells the breakers of workers and pairs.
//!
//! A worker succeeds with each seat that it finishes, and fails with each that its engine fails
//! under, or when it is lost; a refusal is no failure. A pair succeeds with each hand-off that
//! arrives, and fails when the destination loses it or its time is over.

use super::{Brain, breaker::Outcome, pairs::Pair, timers::Timer, workers::Worker};
use crate::{
    fleet::WorkerFacts,
    ids::{SessionId, SlotId},
};

impl Brain {
    /// What became of work at a worker.
    pub(super) fn judge(&mut self, key: usize, outcome: Outcome) {
        let (now, config, random) = (self.now, &self.config, &mut self.random);
        let heard = self.workers.update(key, |worker| {
            let before = worker.breaker.due();
            let opened = worker.breaker.hear(outcome, now, config, random);
            if outcome == Outcome::Succeeded || opened {
                worker.probe = None;
            }
            (before, worker.breaker.due(), opened)
        });
        if let Some((before, after, opened)) = heard {
            self.timers.change(before, after, Timer::Breaker(key));
            self.count_opening("worker", opened);
        }
    }

    /// A seat was planned at a worker: if its breaker is half-open, this one shows how it is.
    pub(super) fn judge_probe(&mut self, key: usize, slot: SlotId) {
        let worker = self.workers.get(key);
        if worker.is_some_and(|worker| worker.breaker.is_half_open()) {
            self.judge(key, Outcome::Placed);
            self.workers.update(key, |worker| worker.probe = Some(slot));
        }
    }

    /// What became of a hand-off between two workers.
    pub(super) fn judge_pair(&mut self, pair: Pair, outcome: Outcome) {
        let (now, config, random) = (self.now, &self.config, &mut self.random);
        let (before, after, opened) = self.pairs.hear(pair, outcome, now, config, random);
        self.timers.change(before, after, Timer::Pair(pair));
        self.count_opening("pair", opened);
    }

    /// What became of the hand-off that a sequence is in.
    pub(super) fn judge_handoff(&mut self, key: usize, outcome: Outcome) {
        let phase = self.sequences.get(key).map(|sequence| sequence.phase);
        let ends = phase.and_then(|phase| Some((phase.cur()?, phase.nxt()?)));
        let Some((cur, nxt)) = ends else { return };
        self.judge_pair((cur.worker, nxt.worker), outcome);
        let is_probe = |worker: &Worker| worker.probe == Some(nxt.slot);
        if outcome == Outcome::Succeeded && self.workers.get(nxt.worker).is_some_and(is_probe) {
            self.judge(nxt.worker, outcome);
        }
    }

    /// A worker attached: with the breaker that it had, if it was here. If its process is the same,
    /// nobody killed it.
    pub(super) fn attach(&mut self, session: SessionId, facts: WorkerFacts) {
        self.explain.name(session, &facts.name);
        let (key, incident) = self.workers.add(session, facts);
        if let Some(incident) = incident {
            self.sequences.forgive(incident);
        }
        let due = self
            .workers
            .get(key)
            .and_then(|worker| worker.breaker.due());
        self.timers.change(None, due, Timer::Breaker(key));
    }

    /// A worker is gone; `incident` numbers its death if it was one.
    pub(super) fn detach(&mut self, key: usize, worker: Worker, incident: Option<u64>) {
        let (now, due) = (self.now, worker.breaker.due());
        self.timers.change(due, None, Timer::Breaker(key));
        for (at, pair) in self.pairs.remove(key) {
            self.timers.clear(at, Timer::Pair(pair));
        }
        self.workers.remember(worker, incident, now, &self.config);
    }

    fn count_opening(&mut self, of: &'static str, opened: bool) {
        if opened {
            *self.breaker_openings_by.entry(of).or_default() += 1;
        }
    }
}
