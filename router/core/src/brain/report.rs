//! What workers say: sessions that begin and end, and their reports, column by column.

use std::collections::BTreeSet;

use super::{
    Brain,
    breaker::Outcome,
    sequences::Seat,
    table::{Input, Loss},
    timers::Timer,
};
use crate::{
    action::{Action, Violation},
    event::{CloseReason, ClosedSeat, StepReport},
    fleet::WorkerFacts,
    ids::{SessionId, SlotId},
    units::Micros,
};

impl Brain {
    pub(super) fn join(&mut self, session: SessionId, facts: WorkerFacts) {
        if self.workers.key_of(session).is_none() {
            self.attach(session, facts);
        }
    }

    /// The front ended its session, because it broke the protocol.
    pub(super) fn broke(&mut self, session: SessionId) {
        self.lose(session, Loss::Broken);
    }

    /// One report. A worker that breaks the protocol loses its session; the rest of the report is
    /// not read.
    pub(super) fn report(&mut self, report: &StepReport) {
        let Some(worker) = self.workers.key_of(report.session) else {
            return;
        };
        let begins_to_drain = self.workers.update(worker, |worker| {
            let was_draining = std::mem::replace(&mut worker.is_draining, report.draining);
            worker.heard(report.load);
            if !report.is_stuck {
                worker.ejected = None;
            }
            if report.role_epoch >= worker.role_epoch {
                worker.role_epoch = report.role_epoch;
                worker.role = report.role;
            }
            if !report.opened.is_empty() || !report.tokens.is_empty() {
                worker.refusals = 0;
            }
            report.draining && !was_draining
        });
        self.prefixes
            .reported(report.session, &report.stored, &report.evicted);
        self.reporter = Some(worker);
        if let Err(why) = self.columns(worker, report) {
            self.violations_total += 1;
            self.actions.push(Action::Break {
                session: report.session,
                why,
            });
            self.lose(report.session, Loss::Broken);
        } else if begins_to_drain == Some(true) {
            self.drains(worker);
        }
        let now = self.now;
        self.workers.work(worker, |worker| worker.correct(now));
    }

    fn columns(&mut self, worker: usize, report: &StepReport) -> Result<(), Violation> {
        for slot in granted(report) {
            self.said(Seat { worker, slot }, |part| match part {
                Part::Next => Some(Input::Opened),
                Part::Current | Part::None => None,
            })?;
        }
        for &(slot, pos) in &report.arrived {
            self.said(Seat { worker, slot }, |part| match part {
                Part::Next => Some(Input::Arrived(pos)),
                Part::Current | Part::None => None,
            })?;
        }
        for &(slot, tokens) in &report.tokens {
            self.said(Seat { worker, slot }, |part| match part {
                Part::Current => Some(Input::TokensCurrent(tokens)),
                Part::Next | Part::None => Some(Input::TokensOther),
            })?;
        }
        report
            .closed
            .iter()
            .try_for_each(|closed| self.closed(worker, closed))
    }

    /// Hands what was said of a seat to its sequence.
    fn said(
        &mut self,
        seat: Seat,
        input: impl FnOnce(Part) -> Option<Input>,
    ) -> Result<(), Violation> {
        let Some(worker) = self.workers.get(seat.worker) else {
            return Ok(());
        };
        let Some(sequence) = worker.slots.said(seat.slot)? else {
            return Ok(());
        };
        let Some(input) = input(self.part(sequence, seat)) else {
            return Ok(());
        };
        self.apply(sequence, input).map_or(Ok(()), Err)
    }

    fn closed(&mut self, worker: usize, closed: &ClosedSeat) -> Result<(), Violation> {
        let slot = closed.slot;
        let owner = self.workers.work(worker, |worker| worker.closed(slot));
        let Some(owner) = owner.transpose()? else {
            return Ok(());
        };
        match closed.why {
            CloseReason::Refused => self.back_off(worker, closed.retry_after),
            CloseReason::Error => self.judge(worker, Outcome::Failed),
            CloseReason::Stop | CloseReason::Length => self.judge(worker, Outcome::Succeeded),
            CloseReason::Asked | CloseReason::Lost | CloseReason::Preempted => {}
        }
        let Some(sequence) = owner else { return Ok(()) };
        let part = self.part(sequence, Seat { worker, slot });
        if (part, closed.why) == (Part::Next, CloseReason::Lost) {
            self.judge_handoff(sequence, Outcome::Failed);
        }
        let input = match (part, closed.why) {
            (Part::Current, CloseReason::Stop | CloseReason::Length) => Input::Finished,
            (Part::Current, why) => Input::ClosedCurrent(why),
            (Part::Next, _) => Input::ClosedNext,
            (Part::None, _) => return Ok(()),
        };
        self.apply(sequence, input).map_or(Ok(()), Err)
    }

    /// Leaves a worker that refused alone for a while: random, so that two routers do not refuse
    /// each other in lockstep.
    fn back_off(&mut self, key: usize, hint: Micros) {
        /// Doublings of the first wait; the limit in the settings is reached before.
        const DOUBLINGS_MAX: u32 = 16;
        let config = &self.config;
        let Some(worker) = self
            .workers
            .get(key)
            .filter(|worker| worker.backoff.is_none())
        else {
            return;
        };
        let doublings = worker.refusals.saturating_add(1).min(DOUBLINGS_MAX);
        let longest = Micros(config.refused_wait_min.0.saturating_mul(1 << doublings));
        let wait = self.random.between(
            config.refused_wait_min,
            longest.min(config.refused_wait_max),
        );
        let at = self.now.plus(wait.max(hint.min(config.refused_hint_max)));
        self.timers.set(at, Timer::Backoff(key));
        self.workers.update(key, |worker| {
            worker.refusals = doublings;
            worker.backoff = Some(at);
        });
    }

    pub(super) fn part(&self, sequence: usize, seat: Seat) -> Part {
        let Some(phase) = self.sequences.get(sequence).map(|sequence| sequence.phase) else {
            return Part::None;
        };
        if phase.cur() == Some(seat) {
            Part::Current
        } else if phase.nxt() == Some(seat) {
            Part::Next
        } else {
            Part::None
        }
    }
}

/// Seats that were opened and did not end in the same report: nothing would come of such a grant,
/// and no action is to name a seat that is gone.
fn granted(report: &StepReport) -> impl Iterator<Item = SlotId> {
    let ended: BTreeSet<SlotId> = if report.opened.is_empty() {
        BTreeSet::new()
    } else {
        report.closed.iter().map(|closed| closed.slot).collect()
    };
    report
        .opened
        .iter()
        .copied()
        .filter(move |slot| !ended.contains(slot))
}

/// What a seat is to its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Current,
    Next,
    None,
}
