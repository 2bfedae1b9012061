//! The clock: takes what is next, tells the brain, does what it says.
//!
//! At one time things happen in this order: faults, arrivals, steps that end, hand-offs that land,
//! commands, reports, sessions that are lost, timers of the brain; each kind in the order in which
//! it was caused. So a run has one order, whatever computes it.

mod act;
mod faults;
mod requests;
mod setup;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
};

use dopd_core::{
    action::Action,
    brain::Brain,
    event::{Event, StepReport},
    ids::{RequestId, SequenceId, SessionId},
    request::{PrefixMark, RequestFacts, Slo},
    units::{Micros, Tokens},
};

use self::requests::{Requests, SeatView};
use crate::{
    calendar::Calendar,
    error::SimError,
    outcome::Outcome,
    run::{Options, Progress},
    scenario::{Scenario, TraceRequest},
    worker::{Command, Landing, Terms, Worker, marks},
};

/// Arrivals between two words of progress.
const PROGRESS_EVERY: usize = 1 << 14;

/// Nothing is ever due then.
const NEVER: Micros = Micros(u64::MAX);

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Fault,
    Arrival,
    Boundary(u32),
    Landing,
    Command,
    Report,
    Loss,
    Wake,
}

/// A hand-off on its way: when, in which order, what.
#[derive(Debug, PartialEq, Eq)]
struct Flight(Micros, u64, Landing);

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A place in the fleet.
#[derive(Debug)]
struct Post {
    /// The session of the process that is there; none: it is dead.
    session: Option<SessionId>,
    /// The session that the router still hears.
    heard: Option<SessionId>,
    worker: Worker,
    /// Open seats as the router sees them, by slot.
    seats: Vec<Option<SeatView>>,
    /// How much slower than its spec it is for now.
    slowness: f64,
}

/// A run under way.
pub(crate) struct Engine<'a> {
    scenario: &'a Scenario,
    options: Options,
    terms: Terms,
    brain: Brain,
    /// When the brain wants to be woken, since its last event.
    wake: Option<Micros>,
    now: Micros,
    posts: Vec<Post>,
    /// Post of each session, by number.
    sessions: Vec<u32>,
    requests: Requests,
    arrived: usize,
    faulted: usize,
    calendar: Calendar,
    commands: VecDeque<(Micros, u32, SessionId, Command)>,
    reports: VecDeque<(Micros, Box<StepReport>)>,
    /// For the next ones to be written on; as many as were ever on the way at once.
    #[expect(clippy::vec_box, reason = "the boxes of `reports`, to and fro")]
    reports_read: Vec<Box<StepReport>>,
    /// Sessions that are over, and the router does not know it yet.
    losses: VecDeque<(Micros, SessionId)>,
    flights: BinaryHeap<Reverse<Flight>>,
    flights_ever: u64,
    /// Workers that come back: when, which.
    returns: BinaryHeap<Reverse<(Micros, u32)>>,
    /// Longest prompt plus answer that any worker takes.
    len_max: u32,
    /// Tokens per page of workers that keep prefixes, if any does.
    mark_tokens: Option<u32>,
    /// Opens so far.
    lives: u32,
    events: u64,
    no_marks: Arc<[PrefixMark]>,
    /// Workers that the brain took for liars.
    breaks: u64,
}

impl Engine<'_> {
    pub(crate) fn run(
        mut self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Outcome, SimError> {
        let last = self.scenario.trace.requests.last();
        let last = last.map_or(Micros(0), |request| request.arrival);
        let end = last.plus(self.options.drain_max);
        let mut told = 0;
        while let Some((at, next)) = self.next() {
            if at > end {
                break;
            }
            self.now = at;
            self.handle(next);
            if self.arrived >= told + PROGRESS_EVERY {
                told = self.arrived;
                let seen = self.progress();
                if progress(seen).is_break() {
                    return Err(SimError::Stopped {
                        ended: seen.ended,
                        requests: seen.requests,
                    });
                }
            }
        }
        // Nothing is left to stop.
        let _ = progress(self.progress());
        Ok(self.outcome())
    }

    fn progress(&self) -> Progress {
        Progress {
            ended: self.arrived - self.requests.open,
            requests: self.scenario.trace.requests.len(),
            now: self.now,
        }
    }

    fn is_all_arrived(&self) -> bool {
        self.arrived == self.scenario.trace.requests.len()
    }

    fn next(&self) -> Option<(Micros, Next)> {
        // Once all is over, only what the fleet has before it, to its last page.
        let is_over = self.requests.open == 0 && self.is_all_arrived();
        let (mut at, mut first) = (NEVER, Next::Wake);
        // In the order of what happens at one time.
        let mut look = |due: Option<Micros>, next: Next| {
            let due = due.unwrap_or(NEVER);
            if due < at {
                (at, first) = (due, next);
            }
        };
        if !is_over {
            let fault = self.scenario.faults.get(self.faulted);
            look(fault.map(|fault| fault.at), Next::Fault);
            let back = self.returns.peek().map(|Reverse((at, _))| *at);
            look(back, Next::Fault);
            let arrival = self.scenario.trace.requests.get(self.arrived);
            look(arrival.map(|request| request.arrival), Next::Arrival);
        }
        if let Some((at, worker)) = self.calendar.first() {
            look(Some(at), Next::Boundary(worker));
        }
        let flight = self.flights.peek();
        look(flight.map(|Reverse(flight)| flight.0), Next::Landing);
        let command = self.commands.front();
        look(command.map(|command| command.0), Next::Command);
        look(self.reports.front().map(|report| report.0), Next::Report);
        if !is_over {
            look(self.losses.front().map(|loss| loss.0), Next::Loss);
            // What is overdue is due now.
            look(self.wake.map(|at| at.max(self.now)), Next::Wake);
        }
        (at < NEVER).then_some((at, first))
    }

    fn handle(&mut self, next: Next) {
        match next {
            Next::Fault => self.fault(),
            Next::Arrival => self.arrive(),
            Next::Boundary(index) => self.turn(index),
            Next::Landing => self.land(),
            Next::Command => self.command(),
            Next::Report => self.report(),
            Next::Loss => self.lose(),
            Next::Wake => self.tell(Event::Woke),
        }
    }

    fn arrive(&mut self) {
        let index = self.arrived;
        self.arrived += 1;
        let Some(request) = self.scenario.trace.requests.get(index) else {
            return;
        };
        let number = index as u64;
        let max_tokens = self.max_tokens(request);
        let facts = RequestFacts {
            id: RequestId(number),
            choices: 1,
            prompt_tokens: Tokens(request.prompt_tokens),
            max_tokens: Tokens(max_tokens),
            priority: request.priority,
            deadline: Micros(u64::MAX),
            slo: Slo {
                ttft: Some(self.requests.target(index)),
                tpot: Some(self.scenario.slo.tpot),
            },
            tenant: u64::from(request.tenant),
            weight: 1,
            prefix: self.prefix(request),
            order_key: request.key,
        };
        self.requests.open += 1;
        self.tell(Event::RequestArrived(facts));
    }

    fn prefix(&self, request: &TraceRequest) -> Arc<[PrefixMark]> {
        match self.mark_tokens {
            Some(page) if !request.blocks.is_empty() => {
                Arc::from(marks(&self.scenario.trace, request, page))
            }
            _ => Arc::clone(&self.no_marks),
        }
    }

    /// Steps on at one worker, and what comes of it.
    fn turn(&mut self, index: u32) {
        let now = self.now;
        let Some(post) = self.posts.get_mut(index as usize) else {
            return;
        };
        let Some(session) = post.session else { return };
        post.worker.turn(now);
        self.calendar.set(index, post.worker.boundary());
        for landing in post.worker.take_landings() {
            self.flights_ever += 1;
            let flight = Flight(landing.at, self.flights_ever, landing);
            self.flights.push(Reverse(flight));
        }
        self.say(index, session);
    }

    /// What a worker has to say is on its way.
    fn say(&mut self, index: u32, session: SessionId) {
        let worker = &mut self.posts[index as usize].worker;
        if worker.has_report() {
            let blank = || Box::new(StepReport::new(session, worker.facts.role));
            let mut report = self.reports_read.pop().unwrap_or_else(blank);
            worker.write_report(session, &mut report);
            let at = self.now.plus(self.scenario.network);
            self.reports.push_back((at, report));
        }
    }

    fn command(&mut self) {
        let Some((_, index, session, command)) = self.commands.pop_front() else {
            return;
        };
        self.obey(index, session, command);
        // What was sent together is obeyed together.
        while let Some(&(at, other, of, command)) = self.commands.front()
            && (at, other, of) == (self.now, index, session)
        {
            self.commands.pop_front();
            self.obey(index, of, command);
        }
        self.turn(index);
    }

    fn obey(&mut self, index: u32, session: SessionId, command: Command) {
        if let Some(post) = self.posts.get_mut(index as usize)
            && post.session == Some(session)
        {
            post.worker.obey(self.now, command);
        }
    }

    fn land(&mut self) {
        let Some(Reverse(Flight(_, _, landing))) = self.flights.pop() else {
            return;
        };
        let is_whole = self
            .posts
            .get(landing.from.worker as usize)
            .is_some_and(|post| post.session.is_some() && post.worker.has_sent(&landing));
        let to = landing.to.worker;
        if let Some(post) = self.posts.get_mut(to as usize)
            && post.session.is_some()
        {
            post.worker.land(self.now, &landing, is_whole);
            self.turn(to);
        }
    }

    /// One event of the brain, and what it wants done.
    fn tell(&mut self, event: Event) {
        let actions = self.brain.handle(self.now, event);
        self.carry_out(actions);
    }

    /// What the brain wants done about an event.
    fn carry_out(&mut self, mut actions: Vec<Action>) {
        self.events += 1;
        for action in actions.drain(..) {
            self.act(&action);
        }
        self.brain.give_back(actions);
        self.wake = self.brain.next_wake();
    }

    fn post_of(&self, session: SessionId) -> Option<u32> {
        let number = usize::try_from(session.0).ok()?;
        self.sessions.get(number).copied()
    }
}

/// The request of a sequence, by its place in the trace.
fn index_of(sequence: SequenceId) -> usize {
    usize::try_from(sequence.request.0).unwrap_or(usize::MAX)
}
