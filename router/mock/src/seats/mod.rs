//! The seat table: a pure state machine, events in, effects out.
//!
//! Implements the tables "Seat at a worker", "Page", "Link end" and "Session" of handoff.md, cell
//! by cell; no clock, no socket, no randomness. Owns the page pool. `worker` drives it; the tests
//! drive two of them over a network that reorders. Parts: [`types`] the words, `command` the
//! router's side, `import` the receiving side of a hand-off, `source` the sending side, `link`
//! connections and fences, `plan` what a step computes, `room` the pages that it needs, `batch`
//! what comes of it, `strike` faults in it.

mod batch;
mod check;
mod command;
mod import;
mod link;
mod plan;
mod room;
mod source;
mod strike;
pub mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dopd_core::{
    step::{Belief, Residents},
    units::Micros,
};
use dopd_router::wire::worker::{CloseReason, Report};

pub use batch::{Batch, Row};
pub use types::{
    AbortReason, Effect, Event, Label, LinkId, LinkMessage, PeerKey, SeatsConfig, Terms,
};
use types::{Phase, Seat};

use crate::pages::Pool;
use link::{Fence, Peer};

/// Slots are small numbers; a greater one is a protocol error.
pub const SLOTS_MAX: u32 = 65_536;
/// Hint with a refusal: about one step.
const RETRY_MS: u32 = 20;

/// All seats of a worker and the pages they live in.
#[derive(Debug)]
pub struct Seats {
    config: SeatsConfig,
    session: Option<Terms>,
    label: Label,
    pool: Pool,
    by_slot: Vec<Option<Box<Seat>>>,
    /// Open seats.
    live: u32,
    /// Lives begun.
    lives: u64,
    /// Slot and life of every seat that computes or may compute again, oldest first. Dead entries
    /// leave at the next step.
    active: Vec<(u32, u64)>,
    /// Ticket -> slot, for imports that are reserved or exposed.
    imports: HashMap<u64, u32>,
    /// Ticket -> pages that outlived their seat. Ordered, so that equal runs act alike.
    fences: BTreeMap<u64, Fence>,
    /// Ticket -> slot, for source seats.
    shipments: HashMap<u64, u32>,
    /// Tickets minted.
    nonces: u64,
    /// Link ends on which peers ship to us, up.
    links_in: BTreeSet<u64>,
    /// Peers that we ship to.
    peers: BTreeMap<u64, Peer>,
    peers_seen: u64,
    links_out: u64,
    /// Peers whose links are up, as the router was told.
    links_told: Vec<String>,
    /// Columns of the next report.
    columns: Report,
    is_dirty: bool,
    /// Steps ended.
    steps: u64,
    /// What mixed steps cost; from the first session on.
    belief: Option<Belief>,
    /// Those that decode.
    residents: Residents,
    /// Seats that lost their pages to others, ever.
    preempted: u64,
    /// The time that was told last.
    now: Micros,
    effects: Vec<Effect>,
}

impl Seats {
    /// An empty table.
    pub fn new(config: SeatsConfig) -> Self {
        Self {
            session: None,
            label: Label {
                role: config.role,
                drain: false,
                epoch: 0,
            },
            pool: Pool::new(config.pages_total),
            by_slot: Vec::new(),
            live: 0,
            lives: 0,
            active: Vec::new(),
            imports: HashMap::new(),
            fences: BTreeMap::new(),
            shipments: HashMap::new(),
            nonces: 0,
            links_in: BTreeSet::new(),
            peers: BTreeMap::new(),
            peers_seen: 0,
            links_out: 0,
            links_told: Vec::new(),
            columns: Report::default(),
            is_dirty: false,
            steps: 0,
            belief: None,
            residents: Residents::new(),
            preempted: 0,
            now: Micros(0),
            effects: Vec::new(),
            config,
        }
    }

    /// Takes one event. Effects and report columns pile up until they are taken.
    pub fn handle(&mut self, now: Micros, event: Event) {
        self.now = now;
        match event {
            Event::SessionUp(terms) => {
                self.session_lost(now);
                self.session = Some(terms);
                // What was learnt is of the device, not of the router.
                self.belief.get_or_insert_with(|| Belief::new(&terms.step));
            }
            Event::SessionLost => self.session_lost(now),
            Event::Command(session, command) => {
                // A command of another session is void: its slots are not ours.
                if self.session() == Some(session) {
                    self.command(now, command);
                }
            }
            Event::Accepted(generation) => {
                self.links_in.insert(generation);
            }
            Event::LinkUp(link) => self.link_up(link),
            Event::LinkDown(LinkId::In(link)) => self.link_in_down(link),
            Event::LinkDown(LinkId::Out(link)) => self.link_out_down(link),
            Event::Frame(link, message) => self.frame(now, link, message),
            Event::Drained(link, bytes) => self.drained(link, bytes),
            Event::Preempt(slot) => {
                if self.is_preemptible(slot) {
                    self.preempt(now, slot);
                }
            }
            Event::Drain => {
                self.label.drain = true;
                self.is_dirty = true;
            }
            Event::Tick => self.tick(now),
        }
    }

    /// What is to be done, oldest first.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether there is something to do.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// The columns changed since the last report.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// The next report: columns since the last one, and the head as of now. `None` without a
    /// session.
    pub fn take_report(&mut self, next_step_us: u32) -> Option<Report> {
        let session = self.session()?;
        self.is_dirty = false;
        let queued = self.prefill_queued();
        let mut report = std::mem::take(&mut self.columns);
        report.session = session;
        report.step = self.steps;
        report.next_step_us = next_step_us;
        report.role_epoch = self.label.epoch;
        report.set_role(self.label.role);
        report.draining = self.label.drain;
        report.pages_free = self.pool.free();
        report.pages_fenced = self.pool.fenced();
        report.pages_owned = self.pool.owned();
        report.running = types::count(self.stepping().count());
        report.prefill_tokens_queued = queued;
        self.add_outlook(&mut report);
        self.add_links(&mut report);
        Some(report)
    }

    /// Session, if one is live.
    pub fn session(&self) -> Option<u64> {
        self.session.map(|terms| terms.session)
    }

    /// The label obeyed.
    pub fn label(&self) -> Label {
        self.label
    }

    /// Open seats.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// The page pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The seat of a slot.
    pub fn seat(&self, slot: u32) -> Option<&Seat> {
        self.by_slot.get(slot as usize)?.as_deref()
    }

    fn seat_mut(&mut self, slot: u32) -> Option<&mut Seat> {
        self.by_slot.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Seats that take part in steps.
    fn stepping(&self) -> impl Iterator<Item = (u32, &Seat)> {
        self.active.iter().filter_map(|&(slot, life)| {
            let seat = self.seat(slot)?;
            (seat.life == life && seat.phase.is_stepping()).then_some((slot, seat))
        })
    }

    fn prefill_queued(&self) -> u32 {
        let waiting = |seat: &Seat| types::count(seat.todo.len()).saturating_sub(seat.computed);
        self.stepping().map(|(_, seat)| waiting(seat)).sum()
    }

    /// Ends a seat and says so: the one `closed` of its Open.
    fn close(&mut self, now: Micros, slot: u32, reason: CloseReason, message: &str) {
        self.free_seat(now, slot, Landing::Possible);
        self.say_closed(slot, reason, message);
    }

    /// Ends an import into which nothing can be written any more.
    fn lose_import(&mut self, slot: u32, message: &str) {
        self.free_seat(Micros(0), slot, Landing::Over);
        self.say_closed(slot, CloseReason::Lost, message);
    }

    fn say_closed(&mut self, slot: u32, reason: CloseReason, message: &str) {
        let retry_ms = if reason == CloseReason::Refused {
            RETRY_MS
        } else {
            0
        };
        self.columns.closed_slots.push(slot);
        self.columns.closed_reasons.push(reason.into());
        self.columns.closed_retry_ms.push(retry_ms);
        self.columns.closed_messages.push(message.to_owned());
        self.is_dirty = true;
    }

    /// Ends a seat silently. Pages that a peer may still write are fenced, all others are free at
    /// once, even if a transport still reads them: without End nobody attends to what arrives.
    fn free_seat(&mut self, now: Micros, slot: u32, landing: Landing) {
        self.unship(slot);
        let Some(seat) = self.by_slot.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.live -= 1;
        if let Some(stay) = seat.stay {
            self.residents.leave(stay);
        }
        match (seat.phase, landing) {
            (Phase::Exposed { nonce, link, .. }, Landing::Possible) => {
                self.imports.remove(&nonce);
                self.pool.fence(&seat.pages);
                let fence = Fence {
                    pages: seat.pages,
                    link,
                    since: now,
                };
                self.fences.insert(nonce, fence);
            }
            (Phase::Exposed { nonce, .. } | Phase::Reserved { nonce }, _) => {
                self.imports.remove(&nonce);
                self.pool.release(&seat.pages);
            }
            _ => self.pool.release(&seat.pages),
        }
    }

    /// Every seat ends silently; the columns speak of slots that mean nothing any more.
    fn session_lost(&mut self, now: Micros) {
        self.session = None;
        for slot in 0..types::count(self.by_slot.len()) {
            self.free_seat(now, slot, Landing::Possible);
        }
        self.active.clear();
        self.columns = Report::default();
        self.links_told.clear();
        self.is_dirty = false;
    }
}

/// Whether a peer's write may still land on the pages of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    /// It may: fence.
    Possible,
    /// End was heard, or the link is down and synchronised.
    Over,
}
