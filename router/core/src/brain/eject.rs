//! Workers that do nothing for anybody any more: silent, stuck, on their way out, or gone.
//!
//! An ejected worker (silent or stuck) gets no new work, and what it held goes on elsewhere at
//! once. Its session lives on: its seats are CLOSING, so that late words of them mean nothing and
//! their pages count until it says `closed`. Nothing is told twice when the session then ends.

use super::{
    Brain,
    breaker::Outcome,
    report::Part,
    sequences::Seat,
    table::{Input, Loss},
    timers::Timer,
};
use crate::{
    event::Suspicion,
    ids::{SessionId, SlotId},
};

impl Brain {
    /// It is silent or stuck. The first word counts until it is back.
    pub(super) fn eject(&mut self, session: SessionId, why: Suspicion) {
        let Some(key) = self.workers.key_of(session) else {
            return;
        };
        let is_news = self.workers.update(key, |worker| {
            let is_news = worker.ejected.is_none();
            worker.ejected = Some(why);
            is_news
        });
        if is_news != Some(true) {
            return;
        }
        let word = match why {
            Suspicion::Silent => "silent",
            Suspicion::Stuck => "stuck",
        };
        *self.ejections_by.entry(word).or_default() += 1;
        let loss = Loss::Ejected(why);
        self.incidents += u64::from(loss.is_death());
        self.judge(key, Outcome::Lost);
        let seats = self.seats_of(key);
        self.tell(key, &seats, Input::LostCurrent(loss), Input::LostNext);
    }

    /// It takes no new seats from now on. Where nothing has begun, the place is given up at once;
    /// what runs there runs on.
    pub(super) fn drains(&mut self, key: usize) {
        let seats = self.seats_of(key);
        self.tell(key, &seats, Input::DrainsCurrent, Input::DrainsNext);
    }

    /// The stream of a worker ended, or its lease is over.
    pub(super) fn lost(&mut self, session: SessionId) {
        let worker = self.workers.key_of(session);
        let Some(worker) = worker.and_then(|key| self.workers.get(key)) else {
            return;
        };
        let loss = if worker.is_draining {
            Loss::Left
        } else {
            Loss::Died
        };
        self.lose(session, loss);
    }

    /// The session is over: every slot is FREE, every sequence that had one hears of it.
    pub(super) fn lose(&mut self, session: SessionId, loss: Loss) {
        let Some(key) = self.workers.key_of(session) else {
            return;
        };
        if loss != Loss::Left {
            // What was ejected is lost already.
            let is_ejected = self
                .workers
                .get(key)
                .is_some_and(|worker| worker.ejected.is_some());
            if !is_ejected {
                self.judge(key, Outcome::Lost);
            }
        }
        let Some(worker) = self.workers.remove(key) else {
            return;
        };
        self.prefixes.forget(session);
        if let Some(at) = worker.backoff {
            self.timers.clear(at, Timer::Backoff(key));
        }
        let seats: Vec<(SlotId, usize)> = worker.slots.owned().collect();
        if loss == Loss::Died && !seats.is_empty() {
            self.settle();
        }
        self.incidents += u64::from(loss.is_death());
        let incident = loss.is_death().then_some(self.incidents);
        self.detach(key, worker, incident);
        self.tell(key, &seats, Input::LostCurrent(loss), Input::LostNext);
    }

    fn seats_of(&self, key: usize) -> Vec<(SlotId, usize)> {
        let worker = self.workers.get(key);
        worker.map_or_else(Vec::new, |worker| worker.slots.owned().collect())
    }

    /// Tells the sequences of these seats.
    fn tell(&mut self, worker: usize, seats: &[(SlotId, usize)], current: Input, next: Input) {
        for &(slot, sequence) in seats {
            match self.part(sequence, Seat { worker, slot }) {
                Part::Current => self.apply(sequence, current),
                Part::Next => self.apply(sequence, next),
                Part::None => None,
            };
        }
    }
}
