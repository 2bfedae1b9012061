//! What the router hears of a worker, as a real one says it.
//!
//! At once: seats that opened, arrived, ended or made a first token, and every step that computed a
//! prompt. A decode step in which nothing of that happened is told with the next report; tokens of
//! those that go on at least every `tell_every`. A seat that closes because it was told to is told
//! at the end of the step.

use dopd_core::{
    event::{ClosedSeat, StepReport},
    fleet::WorkerLoad,
    ids::{SessionId, SlotId},
    units::{Micros, Pages, Tokens},
};

use super::{Phase, Worker, seat::Seat, step::Over};

/// What was not said yet.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) opened: Vec<SlotId>,
    pub(super) arrived: Vec<(SlotId, Tokens)>,
    pub(super) tokens: Vec<(SlotId, Tokens)>,
    pub(super) closed: Vec<ClosedSeat>,
    pub(super) reused: Vec<(SlotId, Tokens)>,
    /// It cannot wait for the end of the step.
    pub(super) is_urgent: bool,
    /// The last step.
    pub(super) over: Over,
}

impl Said {
    pub(super) const fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.opened.is_empty() && self.arrived.is_empty()
    }

    /// A seat has made so many tokens: those that were not told are.
    pub(super) fn tokens_of(&mut self, slot: u32, seat: &mut Seat, pos: u32) {
        let made = pos - seat.told;
        if made > 0 {
            seat.told = pos;
            self.tokens.push((SlotId(slot), Tokens(made)));
        }
    }
}

impl Worker {
    /// A report is due.
    pub(crate) const fn has_report(&self) -> bool {
        self.said.is_urgent || (self.step.is_none() && !self.said.is_empty())
    }

    /// It is said, on a report that was read before or never written.
    pub(crate) fn write_report(&mut self, session: SessionId, report: &mut StepReport) {
        report.session = session;
        report.role = self.facts.role;
        report.load = self.load();
        let said = &mut self.said;
        said.is_urgent = false;
        turn_over(&mut said.opened, &mut report.opened);
        turn_over(&mut said.arrived, &mut report.arrived);
        turn_over(&mut said.tokens, &mut report.tokens);
        turn_over(&mut said.closed, &mut report.closed);
        turn_over(&mut said.reused, &mut report.reused);
        turn_over(&mut self.prefixes.stored, &mut report.stored);
        turn_over(&mut self.prefixes.evicted, &mut report.evicted);
    }

    /// What all that decode have made is told.
    pub(crate) fn tell_residents(&mut self, now: Micros) {
        self.told_at = now;
        for (slot, seat) in (0..).zip(&mut self.seats) {
            if let Some(seat) = seat.as_mut().filter(|seat| seat.phase == Phase::Decode) {
                let pos = seat.pos + self.decoding.made(&seat.resident);
                self.said.tokens_of(slot, seat, pos);
            }
        }
        self.said.is_urgent |= !self.said.tokens.is_empty();
    }

    fn load(&self) -> WorkerLoad {
        let over = self.said.over;
        let decode_us = self.plain_us(self.decode_work(0));
        let queued = u32::try_from(self.queued).unwrap_or(u32::MAX);
        let prompts = u32::try_from(self.prompts.len()).unwrap_or(u32::MAX);
        WorkerLoad {
            step: self.steps,
            step_us: short(over.us),
            pages_free: Pages(self.pages_free() - self.prefixes.pages_idle),
            pages_cached: Pages(self.prefixes.pages_idle),
            pages_fenced: Pages(0),
            pages_owned: Pages(self.pages_owned),
            running: self.decoding.seqs + prompts,
            prefill_tokens_queued: Tokens(queued),
            step_prefill_tokens: Tokens(over.prefill),
            step_decode_seqs: over.decode_seqs,
            step_expected_us: short(over.expected_us),
            decode_step_us: short(decode_us),
            mixed_penalty_permille: self.belief.penalty_permille(),
            steps_mixed: self.belief.steps_mixed(),
            steps_paused: self.belief.steps_paused(),
            preempted: 0,
        }
    }
}

/// What was not said is on the report then, and nothing is left to say.
fn turn_over<T>(said: &mut Vec<T>, report: &mut Vec<T>) {
    report.clear();
    std::mem::swap(said, report);
}

/// As reports hold it.
fn short(us: u64) -> u32 {
    u32::try_from(us).unwrap_or(u32::MAX)
}
