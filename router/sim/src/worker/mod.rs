//! A simulated worker: seats, pages, steps, hand-offs, reports, as the hand-off's tables say.
//!
//! It obeys commands when they come, as the Rust mock does; who comes in the middle of a step takes
//! part from the next one on. Step times are those of [`dopd_core::cost::Timings`]; pages are
//! counted, not kept. What is left out: links that break, fences (pages of a closed import are free
//! at once), checksums. Called by `engine`.
//!
//! | file | what |
//! |---|---|
//! | `mod` | commands, seats that end, pages |
//! | `step` | what a step computes, how long it takes, what comes of it |
//! | `decoding` | all that decode, as one |
//! | `handoff` | what a source sends, and what arrives |
//! | `prefix`, `sharing` | prefixes that are kept, and who holds them |
//! | `report` | what the router hears |

mod choice;
mod decoding;
mod handoff;
mod prefix;
mod report;
mod seat;
mod sharing;
mod step;

use std::sync::Arc;

use dopd_core::{
    event::{CloseReason, ClosedSeat},
    fleet::WorkerFacts,
    ids::SlotId,
    step::{Belief, StepPolicy},
    units::Micros,
};

use self::{decoding::Decoding, prefix::Prefixes, report::Said, seat::Seat, step::Step};
pub(crate) use self::{
    handoff::Landing,
    prefix::marks,
    seat::{Opening, Phase, SeatRef},
};
use crate::{
    outcome::WorkerOutcome,
    scenario::{Trace, WorkerSpec},
};

/// What the router says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    Open {
        slot: u32,
        opening: Opening,
    },
    Send {
        slot: u32,
        to: Option<SeatRef>,
        /// Positions that the destination has already.
        skip: u32,
    },
    Close {
        slot: u32,
    },
}

/// How the simulation treats workers; the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) policy: StepPolicy,
    /// Tokens of those that go on are told at least so often.
    pub(crate) tell_every: Micros,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) facts: WorkerFacts,
    spec: WorkerSpec,
    trace: Arc<Trace>,
    terms: Terms,
    index: u32,
    /// Times of its steps, over those of its timings; `None`: the same.
    slowness: Option<f64>,
    seats: Vec<Option<Seat>>,
    /// Slots that compute prompts, oldest first.
    prompts: Vec<u32>,
    /// Tokens that these have left.
    queued: u64,
    /// Slots that decode from the next boundary on.
    joining: Vec<u32>,
    /// Slots that were told to send and decode meanwhile.
    shipping: Vec<u32>,
    decoding: Decoding,
    belief: Belief,
    /// Of seats. Those of kept prefixes that nobody holds are free for whoever needs them.
    pages_owned: u32,
    prefixes: Prefixes,
    step: Option<Step>,
    /// Prompt parts of the step: slot, life, tokens.
    chunks: Vec<(u32, u32, u32)>,
    /// Prompts as the choice sees them; kept for its memory.
    shapes: Vec<(u32, u32)>,
    /// Steps of this process.
    steps: u64,
    /// Its link has sent everything by then.
    link_free: Micros,
    said: Said,
    told_at: Micros,
    landings: Vec<Landing>,
    pub(crate) outcome: WorkerOutcome,
}

impl Worker {
    pub(crate) fn new(
        index: u32,
        spec: &WorkerSpec,
        trace: &Arc<Trace>,
        terms: Terms,
        facts: WorkerFacts,
    ) -> Self {
        Self {
            facts,
            spec: spec.clone(),
            trace: Arc::clone(trace),
            terms,
            index,
            slowness: other_than_one(spec.slowness_ratio),
            seats: Vec::new(),
            prompts: Vec::new(),
            queued: 0,
            joining: Vec::new(),
            shipping: Vec::new(),
            decoding: Decoding::new(spec.page_tokens, terms.policy),
            belief: Belief::new(&terms.policy),
            pages_owned: 0,
            prefixes: Prefixes::default(),
            step: None,
            chunks: Vec::new(),
            shapes: Vec::new(),
            steps: 0,
            link_free: Micros(0),
            said: Said::default(),
            told_at: Micros(0),
            landings: Vec::new(),
            outcome: WorkerOutcome::default(),
        }
    }

    /// Its steps take so many times as long as its timings say, from the next one on.
    pub(crate) const fn slow_down(&mut self, ratio: f64) {
        self.slowness = other_than_one(self.spec.slowness_ratio * ratio);
    }

    /// When the step under way ends.
    pub(crate) fn boundary(&self) -> Option<Micros> {
        self.step.as_ref().map(|step| step.ends)
    }

    /// Shipments that left since the last call.
    pub(crate) fn take_landings(&mut self) -> std::vec::Drain<'_, Landing> {
        self.landings.drain(..)
    }

    pub(crate) fn obey(&mut self, now: Micros, command: Command) {
        self.settle(now);
        match command {
            Command::Open { slot, opening } => self.open(slot, &opening),
            Command::Send { slot, to, skip } => self.send(slot, to, skip),
            // Its `closed` is on the way if it is gone.
            Command::Close { slot } => self.close(slot, CloseReason::Asked),
        }
    }

    fn open(&mut self, slot: u32, opening: &Opening) {
        let place = slot as usize;
        if self.seats.len() <= place {
            self.seats.resize(place + 1, None);
        }
        let mut seat = Seat::new(opening);
        if !self.share(slot, &mut seat) {
            self.said.closed.push(ClosedSeat {
                slot: SlotId(slot),
                why: CloseReason::Refused,
                retry_after: Micros(0),
            });
            self.said.is_urgent = true;
            return;
        }
        if opening.is_import {
            self.said.opened.push(SlotId(slot));
            self.said.is_urgent = true;
        } else {
            self.prompts.push(slot);
            self.queued += u64::from(seat.left());
        }
        self.seats[place] = Some(seat);
    }

    /// The seat of a slot, if it is still in this life.
    pub(crate) fn seat(&self, slot: u32, life: u32) -> Option<&Seat> {
        let seat = self.seats.get(slot as usize)?.as_ref()?;
        (seat.life == life).then_some(seat)
    }

    fn seat_mut(&mut self, slot: u32) -> Option<&mut Seat> {
        self.seats.get_mut(slot as usize)?.as_mut()
    }

    /// A seat ends: its pages are free, its tokens are told.
    fn close(&mut self, slot: u32, why: CloseReason) {
        let Some(mut seat) = self.seats.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let pages = self.pages_of(&seat) - seat.shared_pages;
        match seat.phase {
            Phase::Decode => self.leave(&mut seat),
            Phase::Prefill => {
                self.queued -= u64::from(seat.left());
                self.prompts.retain(|&other| other != slot);
            }
            Phase::Joining => self.joining.retain(|&other| other != slot),
            Phase::Reserved | Phase::Frozen => {}
        }
        if seat.shipment.is_some() {
            self.shipping.retain(|&other| other != slot);
        }
        self.pages_owned -= pages;
        self.let_go(&seat);
        if why != CloseReason::Asked {
            let pos = self.pos(&seat);
            self.said.tokens_of(slot, &mut seat, pos);
        }
        self.said.closed.push(ClosedSeat {
            slot: SlotId(slot),
            why,
            retry_after: Micros(0),
        });
        self.said.is_urgent |= self.step.is_none() || why != CloseReason::Asked;
    }

    /// Out of the batch, with what it has made there.
    fn leave(&mut self, seat: &mut Seat) {
        seat.pages = self.pages_of(seat);
        seat.pos = self.pos(seat);
        seat.computed = self.computed(seat);
        self.decoding.leave(&seat.resident);
        seat.phase = Phase::Frozen;
    }

    /// Answer tokens made.
    fn pos(&self, seat: &Seat) -> u32 {
        match seat.phase {
            Phase::Decode => seat.pos + self.decoding.made(&seat.resident),
            _ => seat.pos,
        }
    }

    /// Positions with KV.
    fn computed(&self, seat: &Seat) -> u32 {
        match seat.phase {
            Phase::Decode => self.decoding.computed(&seat.resident),
            _ => seat.computed,
        }
    }

    /// Pages that it holds, one for the step under way included.
    fn pages_of(&self, seat: &Seat) -> u32 {
        if seat.phase != Phase::Decode {
            return seat.pages;
        }
        let is_stepping = self.step.as_ref().is_some_and(|step| step.decode_seqs > 0);
        let positions = self.decoding.computed(&seat.resident) + u32::from(is_stepping);
        positions.div_ceil(self.spec.page_tokens).max(seat.pages)
    }

    /// Pages that can be had.
    const fn pages_free(&self) -> u32 {
        self.spec.pages_total - self.pages_owned
    }

    fn own(&mut self, pages: u32) {
        let free = self.pages_free() - self.prefixes.pages_idle;
        if pages > free {
            self.prefixes.evict(pages - free);
        }
        self.pages_owned += pages;
        self.outcome.pages_peak = self.outcome.pages_peak.max(self.pages_owned);
    }

    /// Takes the pages of who came last, the lowest in priority first: of whoever needs some
    /// itself, if it is that one. What only waits for its link or the router is spared.
    fn preempt(&mut self) {
        let seats = (0..).zip(&self.seats);
        let last = seats
            .filter_map(|(slot, seat)| Some((slot, seat.as_ref()?)))
            .filter(|(_, seat)| seat.phase != Phase::Frozen)
            .max_by_key(|(_, seat)| (seat.priority, seat.life));
        if let Some((slot, _)) = last {
            self.close(slot, CloseReason::Preempted);
        }
    }

    /// Ends the steps that are over; nothing comes after this.
    pub(crate) fn last_words(&mut self, now: Micros) {
        self.settle(now);
        self.tell_residents(now);
    }

    /// The process is gone, with all that it held.
    pub(crate) fn die(&mut self) {
        self.seats.clear();
        self.pages_owned = 0;
        self.prefixes = Prefixes::default();
        self.step = None;
    }

    /// Pages that are not free.
    pub(crate) fn pages_held(&self) -> u64 {
        u64::from(self.pages_owned)
    }
}

const fn other_than_one(ratio: f64) -> Option<f64> {
    match ratio {
        1.0 => None,
        other => Some(other),
    }
}
