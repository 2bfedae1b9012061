//! What must hold of a whole simulation: every request ends, in time, with its answer or an error
//! that has a ground; and when all is over nothing is left anywhere.

use std::sync::atomic::Ordering;

use dopd_core::units::Micros;
use dopd_router::error::Reason;

use crate::{
    client::State,
    plan::{FAULTS_END, Fault},
    world::World,
};

/// Past its deadline a request ends within this.
const LATE: Micros = Micros::from_millis(1_000);
/// Once faults are over every request ends within this.
const CALM: Micros = Micros::from_millis(40_000);
/// Once everything is over nothing is left within this: lease, fence, redial.
const CLEAN: Micros = Micros::from_millis(6_000);

/// The brain may see of a request with so little time that it cannot be done in it.
const HASTE: Micros = Micros::from_millis(3_000);

/// What a simulation reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events that happened.
    pub events: u64,
    /// Choices that got their whole answer.
    pub finished: u64,
    /// Choices that got an error.
    pub failed: u64,
    /// Choices that their client or its router left.
    pub left: u64,
    /// Hand-offs that arrived.
    pub handoffs: u64,
    /// Sequences computed again.
    pub replays: u64,
    /// Looks at a worker with a fence.
    pub fences: u64,
    /// Writes that landed while a fence stood.
    pub late_writes: u64,
    /// Links aborted by the fence timer.
    pub aborts: u64,
    /// Leases that ran out, on either side.
    pub leases_over: u64,
    /// Messages of an old session that were put on a new stream.
    pub old_messages: u64,
    /// Pages with a wrong bit.
    pub flips: u64,
    /// Seats whose pages went to others.
    pub preempted: u64,
    /// Steps that computed prompts beside those that decode.
    pub mixed: u64,
    /// Steps that computed prompts while those that decode waited.
    pub pauses: u64,
}

impl Counts {
    /// The sum.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.finished += other.finished;
        self.failed += other.failed;
        self.left += other.left;
        self.handoffs += other.handoffs;
        self.replays += other.replays;
        self.fences += other.fences;
        self.late_writes += other.late_writes;
        self.aborts += other.aborts;
        self.leases_over += other.leases_over;
        self.old_messages += other.old_messages;
        self.flips += other.flips;
        self.preempted += other.preempted;
        self.mixed += other.mixed;
        self.pauses += other.pauses;
    }
}

impl World {
    /// No answer of a request with this deadline, on the router's clock, may be open after.
    pub(crate) fn bound(&self, deadline: Micros) -> Micros {
        let stalls = self.plan.faults.iter().map(|(_, fault, _)| match fault {
            Fault::StallRouter { time } => time.0,
            _ => 0,
        });
        let late = LATE.plus(Micros(stalls.sum()));
        let by_deadline = self.router.when(deadline).plus(late);
        let by_calm = self.clock.now().max(FAULTS_END).plus(CALM);
        by_deadline.min(by_calm)
    }

    /// Looks at bounds; once all is over, at what is left.
    pub(crate) fn check(&mut self) {
        let now = self.clock.now();
        for (index, client) in self.clients.iter().enumerate() {
            if now > client.bound && client.states().any(|state| state == State::Open) {
                let bound = client.bound;
                self.clock.broken(format!(
                    "every_fault_free_run_ends_clean: r{index} hangs past {bound:?}"
                ));
                return;
            }
        }
        let is_calm = self.plan.is_calm() || now > FAULTS_END;
        if self.board.open.load(Ordering::Relaxed) > 0 || !is_calm {
            return;
        }
        let over = *self.over.get_or_insert(now);
        match self.left_over() {
            None => {
                self.is_done = true;
                self.judge();
            }
            Some(what) if now > over.plus(CLEAN) => {
                self.clock
                    .broken(format!("terminal_state_is_clean: {what}"));
            }
            Some(_) => {}
        }
    }

    /// What is not as it was before the first request.
    fn left_over(&self) -> Option<String> {
        for (index, process) in self.processes.iter().enumerate() {
            if !process.is_up || process.stream.is_none() || process.seats.session().is_none() {
                return Some(format!("w{index} is not attached"));
            }
            if !process.seats.is_clean() {
                let (live, pool) = (process.seats.live(), process.seats.pool());
                let (free, fenced) = (pool.free(), pool.fenced());
                return Some(format!(
                    "w{index} has {live} seats, {free} free and {fenced} fenced pages"
                ));
            }
        }
        let status = self.router.sim.status();
        if status.sessions.len() != self.processes.len() {
            return Some(format!("the brain has {} sessions", status.sessions.len()));
        }
        for session in &status.sessions {
            if session.seats_open > 0 || session.pages_used > 0 || session.ejected.is_some() {
                return Some(format!("the brain's account of {session:?}"));
            }
        }
        if status.requests_waiting + status.sequences_running > 0 {
            return Some("sequences at the brain".to_owned());
        }
        if let Some(wake) = self.router.sim.next_wake() {
            return Some(format!("a timer of the brain at {wake:?}"));
        }
        for &index in &self.attached {
            let seats = self.streams[index]
                .attachment
                .as_ref()
                .map_or(0, dopd_router::workers::sim::Attachment::seats);
            if seats > 0 {
                return Some(format!("{seats} slots of stream {index} at the router"));
            }
        }
        let streams: usize = self.router.fronts.iter().map(|f| f.streams.len()).sum();
        let active = self.board.active.get();
        let seats = self.router.sim.seats();
        (streams + seats + active > 0).then(|| {
            format!("{streams} streams, {active} requests and {seats} seats at the router")
        })
    }

    /// Every end had a ground.
    fn judge(&mut self) {
        let status = self.router.sim.status();
        self.counts.handoffs += status.handoffs_total;
        self.counts.replays += status.replays_total;
        for index in 0..self.clients.len() {
            let answers = self.clients[index].answers.clone();
            for answer in answers {
                let (state, ended) = match answer.lock() {
                    Ok(answer) => (answer.state, answer.ended),
                    Err(_) => continue,
                };
                match state {
                    State::Finished | State::Stopped => self.counts.finished += 1,
                    State::Failed(reason) => {
                        self.counts.failed += 1;
                        self.ground(index, reason, ended);
                    }
                    State::Cancelled | State::Cut => self.counts.left += 1,
                    State::Open => {}
                }
            }
        }
    }

    fn ground(&mut self, index: usize, reason: Reason, ended: Micros) {
        let ask = &self.clients[index].ask;
        let is_calm = self.plan.is_calm();
        let has_ground = match reason {
            Reason::DeadlineExceeded => {
                let waited = ended.since(ask.at).0 * self.plan.rates[0] / 1_000;
                waited + 1 >= ask.patience.0 || ask.patience <= HASTE
            }
            // What cannot be done in its time is not begun.
            Reason::QueueFull => ask.patience <= HASTE,
            Reason::NoWorker | Reason::WorkerFailed | Reason::PoisonSuspect => !is_calm,
            _ => false,
        };
        if !has_ground {
            let at = ended.0 / 1_000;
            self.clock.broken(format!(
                "r{index} failed with {reason:?} at {at} ms without a ground"
            ));
        }
    }
}
