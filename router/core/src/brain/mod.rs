//! The state machine: events in, actions out. Wiring only.
//!
//! | file | what |
//! |---|---|
//! | `table` | "Request at the router", cell by cell: decides |
//! | `act`, `seats` | carry the cells out |
//! | `slots` | "Slot at the router" and the account of pages |
//! | `peak`, `lengths` | pages that residents will need, by the lengths of answers of late |
//! | `report` | what workers say |
//! | `eject` | workers that are silent, stuck, on their way out or gone |
//! | `replay` | what is computed again, how often, and when |
//! | `arrive` | requests that come, time that passes |
//! | `admit`, `pace` | who gets a place in the queue, and who is too late |
//! | `assign`, `place` | which sequence goes next, and where |
//! | `steal` | what decode workers compute themselves |
//! | `breaker`, `pairs`, `judge` | workers and pairs of workers that fail get no work for a while |
//! | `prefixes` | who holds which prefix |
//! | `explain` | why, for people |
//! | `queue`, `sequences`, `workers`, `timers`, `random` | what the brain remembers |

mod act;
mod admit;
mod arrive;
mod assign;
mod breaker;
mod config;
mod eject;
mod explain;
mod fair;
mod judge;
mod late;
mod lengths;
mod order;
mod pace;
mod pairs;
mod peak;
mod place;
mod prefixes;
mod queue;
mod random;
mod replay;
mod report;
mod seats;
mod sequences;
mod share;
mod slots;
mod status;
mod steal;
mod table;
mod timers;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

pub use self::{
    config::BrainConfig,
    explain::{
        ALTERNATIVES_MAX, Alternative, Chosen, Decision, ExplainRing, Explanation, Kept, Saw, Task,
        Verdict,
    },
    status::{BrainStatus, BreakerState, SessionStatus},
};
use self::{
    explain::Explain, fair::Fair, lengths::Lengths, pace::Pace, pairs::Pairs, prefixes::Prefixes,
    queue::WaitQueue, random::Random, sequences::Sequences, timers::Timers, workers::Workers,
};
use crate::{
    action::Action,
    event::{Event, StepReport},
    units::Micros,
};

/// dopd's scheduler. Deterministic: the same configuration and events give the same actions.
#[derive(Debug)]
pub struct Brain {
    config: BrainConfig,
    random: Random,
    workers: Workers,
    sequences: Sequences,
    /// Fed by `report`.
    prefixes: Prefixes,
    queue: WaitQueue,
    fair: Fair,
    timers: Timers,
    /// Time of the event at hand; never falls.
    now: Micros,
    /// Sequences that ever arrived.
    arrivals: u64,
    is_draining: bool,
    /// Since when no worker can take anything.
    no_worker_since: Option<Micros>,
    /// A worker died just now: since when and until when replays wait.
    settling: Option<(Micros, Micros)>,
    /// Sequences that were placed again and have made no token since.
    retries_running: usize,
    /// Workers that died or got stuck.
    incidents: u64,
    ejections_by: BTreeMap<&'static str, u64>,
    /// Breakers between workers.
    pairs: Pairs,
    breaker_openings_by: BTreeMap<&'static str, u64>,
    poison_total: u64,
    pace: Pace,
    lengths: Lengths,
    explain: Explain,
    /// Sequences that were placed.
    places: u64,
    /// Prompts that workers labelled decode took.
    stolen_total: u64,
    /// At the front of the queue are more for whom nothing is to be computed.
    has_more_in_vain: bool,
    /// Sequences that are to move on to a decode worker.
    leaving: BTreeSet<usize>,
    /// Which of them is looked at next, in turn.
    leaving_next: usize,
    /// Whose report the event at hand is.
    reporter: Option<usize>,
    hopeless_total: u64,
    /// Sequences refused long after their target.
    late_total: u64,
    /// Sequences that made room in a full queue for other tenants or for who is in time.
    evicted_total: u64,
    demotions_total: u64,
    handoffs_total: u64,
    replays_total: u64,
    replay_tokens_total: u64,
    /// Placed again, by the word of the fault; refusals too.
    replays_by: BTreeMap<&'static str, u64>,
    violations_total: u64,
    /// What the event at hand led to so far.
    actions: Vec<Action>,
}

impl Brain {
    /// With no worker and no request.
    pub fn new(config: BrainConfig) -> Self {
        Self {
            random: Random::new(config.seed),
            explain: Explain::new(config.explain_decisions_max),
            workers: Workers::new(&config.policy),
            sequences: Sequences::default(),
            prefixes: Prefixes::default(),
            queue: WaitQueue::new(&config.policy),
            fair: Fair::new(config.policy.fair_ratio),
            timers: Timers::default(),
            now: Micros(0),
            arrivals: 0,
            is_draining: false,
            no_worker_since: None,
            settling: None,
            retries_running: 0,
            incidents: 0,
            ejections_by: BTreeMap::new(),
            pairs: Pairs::default(),
            breaker_openings_by: BTreeMap::new(),
            poison_total: 0,
            pace: Pace::default(),
            lengths: Lengths::new(),
            places: 0,
            stolen_total: 0,
            has_more_in_vain: false,
            leaving: BTreeSet::new(),
            leaving_next: 0,
            reporter: None,
            hopeless_total: 0,
            late_total: 0,
            evicted_total: 0,
            demotions_total: 0,
            handoffs_total: 0,
            replays_total: 0,
            replay_tokens_total: 0,
            replays_by: BTreeMap::new(),
            violations_total: 0,
            actions: Vec::new(),
            config,
        }
    }

    /// What is to be done about an event, in order.
    pub fn handle(&mut self, now: Micros, event: Event) -> Vec<Action> {
        self.begin(now);
        match event {
            Event::RequestArrived(facts) => self.arrive(&facts),
            Event::RequestCancelled { request } => self.cancel(request),
            Event::SequenceStopped { sequence } => self.stop(sequence),
            Event::WorkerJoined { session, worker } => self.join(session, *worker),
            Event::SessionLost { session } => self.lost(session),
            Event::SessionBroken { session } => self.broke(session),
            Event::WorkerSuspected { session, why } => self.eject(session, why),
            Event::StepReported(report) => self.report(&report),
            Event::MoveRequested { sequence, to } => self.move_to(sequence, to),
            Event::DrainStarted => self.is_draining = true,
            Event::Woke => self.wake(),
        }
        self.finish()
    }

    /// [`Event::StepReported`], of a report that stays the caller's.
    pub fn handle_report(&mut self, now: Micros, report: &StepReport) -> Vec<Action> {
        self.begin(now);
        self.report(report);
        self.finish()
    }

    /// Memory of actions that were carried out, for those to come.
    pub fn give_back(&mut self, mut actions: Vec<Action>) {
        actions.clear();
        self.actions = actions;
    }

    fn begin(&mut self, now: Micros) {
        self.now = self.now.max(now);
        self.queue.tick(self.now);
        self.workers.tick(self.now);
        if self.queue.is_empty() {
            // Whoever comes finds all that are free by now. While others wait, these are first, and
            // what time makes due is a wake's business: no event places what many workers take.
            self.workers.advance(self.now);
        }
    }

    fn finish(&mut self) -> Vec<Action> {
        self.place_waiting();
        self.note_demoted();
        self.watch_workers();
        if !self.queue.is_empty() {
            // For `next_wake`.
            self.workers.settle();
        }
        std::mem::take(&mut self.actions)
    }

    /// When the brain wants an [`Event::Woke`] at the latest. A wake does a part of what is due:
    /// the time may have passed already, and the caller goes on at once, before it sleeps.
    pub fn next_wake(&self) -> Option<Micros> {
        if self.is_cut_short() {
            return Some(self.now);
        }
        // While something waits, workers that are about to be free are given more in time.
        let is_waiting = !self.queue.is_empty();
        let due = self.workers.next_due().filter(|_| is_waiting);
        match (self.timers.next(), due) {
            (Some(timer), Some(due)) => Some(timer.min(due)),
            (timer, due) => timer.or(due),
        }
    }
}
