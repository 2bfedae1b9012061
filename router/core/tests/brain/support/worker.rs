//! A well-behaved worker, as small as the protocol allows: obeys commands in order, says everything
//! once. What a step does beyond that (stop, preempt, fail an import) is the caller's choice.

use std::collections::{BTreeMap, VecDeque};

use dopd_core::{
    cost::StepShape,
    event::{CloseReason, StepReport},
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::{SeatId, SessionId, SlotId},
    units::{Pages, Tokens},
};

use super::{PAGE_SIZE, closed, report};

/// A ticket: the import seat, and a number that no other import ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) seat: SeatId,
    pub(crate) nonce: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Command {
    Open {
        slot: SlotId,
        prompt: u32,
        pages: u32,
        max: u32,
        body: Body,
    },
    Send {
        slot: SlotId,
        grant: Option<Grant>,
    },
    Close {
        slot: SlotId,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Compute {
        prefill_left: u32,
        pos: u32,
        ship: Ship,
    },
    Import {
        nonce: u64,
        is_exposed: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ship {
    No,
    Going(Grant),
    /// End is on the way or lost: frozen until told.
    Sent,
}

#[derive(Clone, Debug)]
struct Seat {
    prompt: u32,
    pages: u32,
    max: u32,
    body: Body,
    /// Counts seats of its worker.
    number: u64,
}

impl Seat {
    /// Pages with the next token.
    fn pages_next(&self) -> u32 {
        let held = match self.body {
            Body::Compute { pos, .. } => (pos + 1).min(self.max),
            Body::Import { .. } => 0,
        };
        (self.prompt + held).div_ceil(PAGE_SIZE).max(self.pages)
    }
}

/// What a step computes: prompt tokens on top of others, and sequences with their KV.
#[derive(Debug, Default)]
struct Work {
    prefill: Vec<(u32, u32)>,
    seqs: u32,
    context: u64,
}

impl Work {
    /// A seat takes part: with tokens of its prompt, or with one of its answer.
    fn add(&mut self, prompt: u32, held: u32) {
        if prompt > 0 {
            self.prefill.push((prompt, held));
        } else {
            self.seqs += 1;
            self.context += u64::from(held);
        }
    }
}

/// The last word of a source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) to: Grant,
    pub(crate) pos: u32,
}

/// A report with what the wire implies: answer tokens made per seat, and grants of opened seats.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) step: StepReport,
    pub(crate) positions: BTreeMap<SlotId, u32>,
    pub(crate) grants: Vec<Grant>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) session: SessionId,
    pub(crate) facts: WorkerFacts,
    pub(crate) role: Role,
    pub(crate) role_epoch: u64,
    pub(crate) is_draining: bool,
    /// Its step does not end; it goes on reporting.
    pub(crate) is_stuck: bool,
    /// Pages that another router uses.
    pub(crate) pages_foreign: u32,
    /// Its steps take so much of what it says that they take.
    pub(crate) slowness_percent: u32,
    /// Seats are opened for less than their longest answer.
    pub(crate) grows: bool,
    pub(crate) inbox: VecDeque<Command>,
    pub(crate) outbox: VecDeque<Report>,
    seats: BTreeMap<SlotId, Seat>,
    fences: Vec<u32>,
    next: Report,
    steps: u64,
    seats_ever: u64,
    /// What the last step computed, and what it took.
    load: WorkerLoad,
}

impl Worker {
    pub(crate) fn new(session: SessionId, facts: WorkerFacts, grows: bool) -> Self {
        let next = Report {
            step: report(session.0, facts.role),
            positions: BTreeMap::new(),
            grants: Vec::new(),
        };
        Self {
            session,
            role: facts.role,
            facts,
            role_epoch: 0,
            is_draining: false,
            is_stuck: false,
            pages_foreign: 0,
            slowness_percent: 100,
            grows,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            seats: BTreeMap::new(),
            fences: Vec::new(),
            next,
            steps: 0,
            seats_ever: 0,
            load: WorkerLoad::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seats.is_empty() && self.inbox.is_empty() && self.outbox.is_empty()
    }

    fn pages_free(&self) -> u32 {
        let owned: u32 = self.seats.values().map(|seat| seat.pages).sum();
        let fenced: u32 = self.fences.iter().sum();
        self.facts.pages_total.0 - owned - fenced - self.pages_foreign
    }

    /// Takes what another router leaves, at most so many.
    pub(crate) fn take_foreign(&mut self, pages: u32) {
        self.pages_foreign += pages.min(self.pages_free());
    }

    /// It has a prefix cached, it says.
    pub(crate) fn stores(&mut self, hash: u64) {
        self.next.step.stored.push(hash);
    }

    /// It has not, any more.
    pub(crate) fn evicts(&mut self, hash: u64) {
        self.next.step.evicted.push(hash);
    }

    pub(crate) fn free_fences(&mut self) {
        self.fences.clear();
    }

    /// Obeys the next command.
    pub(crate) fn obey(&mut self, nonce: u64) {
        if self.is_stuck {
            return;
        }
        match self.inbox.pop_front() {
            Some(Command::Open {
                slot,
                prompt,
                pages,
                max,
                mut body,
            }) => {
                assert!(!self.seats.contains_key(&slot), "open of a slot in use");
                let has_seat = self.seats.len() < self.facts.num_seqs_max as usize;
                let fits = pages <= self.pages_free() && has_seat;
                if !fits || self.is_draining {
                    let is_excused = self.is_draining || self.pages_foreign > 0 || self.grows;
                    assert!(is_excused, "the account promised room that is not there");
                    self.next
                        .step
                        .closed
                        .push(closed(slot.0, CloseReason::Refused));
                    return;
                }
                if let Body::Import {
                    nonce: seat_nonce, ..
                } = &mut body
                {
                    *seat_nonce = nonce;
                    let seat = SeatId {
                        session: self.session,
                        slot,
                    };
                    self.next.step.opened.push(slot);
                    self.next.grants.push(Grant { seat, nonce });
                }
                self.seats_ever += 1;
                let seat = Seat {
                    prompt,
                    pages,
                    max,
                    body,
                    number: self.seats_ever,
                };
                self.seats.insert(slot, seat);
            }
            Some(Command::Send { slot, grant }) => {
                if let Some(Seat {
                    body: Body::Compute { ship, .. },
                    ..
                }) = self.seats.get_mut(&slot)
                {
                    *ship = grant.map_or(Ship::No, Ship::Going);
                }
            }
            Some(Command::Close { slot }) => self.end_seat(slot, CloseReason::Asked),
            None => {}
        }
    }

    /// Frees the seat's pages, or fences them if a peer may write, and says closed.
    fn end_seat(&mut self, slot: SlotId, why: CloseReason) {
        let Some(seat) = self.seats.remove(&slot) else {
            return;
        };
        if let Body::Import {
            is_exposed: true, ..
        } = seat.body
        {
            self.fences.push(seat.pages);
        }
        self.next.step.closed.push(closed(slot.0, why));
    }

    /// One engine step: computes prompts, makes tokens, freezes sources that ship.
    pub(crate) fn step(&mut self, may_freeze: bool, stops: Option<u32>) -> Vec<End> {
        let mut ends = Vec::new();
        if self.is_stuck {
            self.flush();
            return ends;
        }
        let mut budget = self.facts.batch_tokens_max.0;
        let slots: Vec<SlotId> = self.seats.keys().copied().collect();
        let mut work = Work::default();
        for slot in slots {
            if !self.grow(slot) {
                continue;
            }
            let Some(Seat {
                prompt,
                max,
                body:
                    Body::Compute {
                        prefill_left,
                        pos,
                        ship,
                    },
                ..
            }) = self.seats.get_mut(&slot)
            else {
                continue;
            };
            if *prefill_left == 0
                && may_freeze
                && *pos > 0
                && let Ship::Going(to) = *ship
            {
                ends.push(End { to, pos: *pos });
                *ship = Ship::Sent;
            }
            let chunk = budget.min(*prefill_left);
            budget -= chunk;
            *prefill_left -= chunk;
            work.add(chunk, *prompt + *pos - *prefill_left - chunk);
            if *prefill_left > 0 || *ship == Ship::Sent {
                continue;
            }
            *pos += 1;
            self.next.step.tokens.push((slot, Tokens(1)));
            self.next.positions.insert(slot, *pos);
            let (is_full, is_stopped) = (pos == max, Some(slot.0) == stops);
            if is_full || is_stopped {
                let why = if is_full {
                    CloseReason::Length
                } else {
                    CloseReason::Stop
                };
                self.end_seat(slot, why);
            }
        }
        self.steps += 1;
        self.measure(&work);
        self.flush();
        ends
    }

    /// A page for the next token of a seat, if it needs one: the newest go until there is one.
    fn grow(&mut self, slot: SlotId) -> bool {
        while let Some(seat) = self.seats.get(&slot) {
            let more = seat.pages_next() - seat.pages;
            if more <= self.pages_free() {
                self.seats.entry(slot).and_modify(|seat| seat.pages += more);
                return true;
            }
            let frozen = |seat: &Seat| {
                matches!(
                    seat.body,
                    Body::Compute {
                        ship: Ship::Sent,
                        ..
                    }
                )
            };
            let newest = self.seats.iter().filter(|(_, seat)| !frozen(seat));
            let newest = newest.max_by_key(|(_, seat)| seat.number);
            let Some((&slot, _)) = newest else { break };
            self.end_seat(slot, CloseReason::Preempted);
        }
        false
    }

    /// What the step took, and what was expected of it.
    fn measure(&mut self, work: &Work) {
        let timings = &self.facts.timings;
        let shape = StepShape {
            prefill: &work.prefill,
            decode_seqs: work.seqs,
            decode_context_sum: work.context,
        };
        let decode = StepShape {
            prefill: &[],
            ..shape
        };
        let short = |us: u64| u32::try_from(us).expect("small prompts");
        let tokens = work.prefill.iter().map(|(tokens, _)| tokens).sum();
        let expected_us = short(timings.step_us(shape));
        let is_idle = tokens == 0 && work.seqs == 0;
        // Who cannot tell takes a tenth of a millisecond.
        let takes_us = if is_idle { 0 } else { expected_us.max(100) };
        self.load = WorkerLoad {
            step_us: takes_us * self.slowness_percent / 100,
            step_prefill_tokens: Tokens(tokens),
            step_decode_seqs: work.seqs,
            step_expected_us: expected_us,
            decode_step_us: short(timings.step_us(decode)),
            mixed_penalty_permille: self.slowness_percent,
            ..WorkerLoad::default()
        };
    }

    /// A peer begins to write into this seat.
    pub(crate) fn expose(&mut self, to: Grant) {
        if let Some(Seat {
            body: Body::Import { nonce, is_exposed },
            ..
        }) = self.seats.get_mut(&to.seat.slot)
        {
            *is_exposed |= *nonce == to.nonce;
        }
    }

    /// The last word of a source comes in; the check of what it wrote may fail.
    pub(crate) fn end_arrives(&mut self, end: End, is_good: bool) {
        let slot = end.to.seat.slot;
        let Some(seat) = self.seats.get_mut(&slot) else {
            return;
        };
        match seat.body {
            Body::Import { nonce, .. } if nonce == end.to.nonce => {}
            _ => return,
        }
        if is_good {
            seat.body = Body::Compute {
                prefill_left: 0,
                pos: end.pos,
                ship: Ship::No,
            };
            self.next.step.arrived.push((slot, Tokens(end.pos)));
        } else {
            seat.body = Body::Import {
                nonce: 0,
                is_exposed: false,
            };
            self.end_seat(slot, CloseReason::Lost);
        }
    }

    /// Its pages are needed, or the engine failed under it; never a frozen source.
    pub(crate) fn evict(&mut self, index: usize, why: CloseReason) {
        let chosen = |seat: &Seat| {
            !matches!(
                seat.body,
                Body::Compute {
                    ship: Ship::Sent,
                    ..
                }
            )
        };
        let slots: Vec<SlotId> = self
            .seats
            .iter()
            .filter(|(_, seat)| chosen(seat))
            .map(|(&slot, _)| slot)
            .collect();
        if !slots.is_empty() {
            self.end_seat(slots[index % slots.len()], why);
        }
    }

    /// Sends what there is to say.
    pub(crate) fn flush(&mut self) {
        let queued = self.seats.values().map(|seat| match seat.body {
            Body::Compute { prefill_left, .. } => prefill_left,
            Body::Import { .. } => 0,
        });
        self.next.step.load = WorkerLoad {
            step: self.steps,
            pages_free: Pages(self.pages_free()),
            pages_cached: Pages(0),
            pages_fenced: Pages(self.fences.iter().sum()),
            pages_owned: Pages(0),
            running: u32::try_from(self.seats.len()).expect("few seats"),
            prefill_tokens_queued: Tokens(queued.sum()),
            ..self.load
        };
        self.next.step.role = self.role;
        self.next.step.role_epoch = self.role_epoch;
        self.next.step.draining = self.is_draining;
        self.next.step.is_stuck = self.is_stuck;
        let empty = Report {
            step: report(self.session.0, self.role),
            positions: BTreeMap::new(),
            grants: Vec::new(),
        };
        self.outbox
            .push_back(std::mem::replace(&mut self.next, empty));
    }

    /// Grants whose source is writing.
    pub(crate) fn shipments(&self) -> Vec<Grant> {
        let going = |seat: &Seat| match seat.body {
            Body::Compute {
                ship: Ship::Going(to),
                ..
            } => Some(to),
            _ => None,
        };
        self.seats.values().filter_map(going).collect()
    }
}
