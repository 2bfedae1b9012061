//! A brain with as many workers and waiting requests as one likes, and events that keep it so: what
//! workers say of what they are told, in the order of the protocol, and one arrival for each
//! request that waits no longer. It is woken when it wants to be, to a millisecond, as by a
//! runtime's timers: all wakes that a millisecond made due follow an arrival at once.

use std::collections::VecDeque;

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    cost::Timings,
    event::{CloseReason, ClosedSeat, Event, StepReport},
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::{RequestId, SeatId, SessionId},
    request::{PREFIX_MARKS_MAX, PrefixMark, RequestFacts, Slo},
    units::{Micros, Pages, Tokens},
};

use rustix::time::{ClockId, clock_gettime};

/// Time between requests.
const GAP: Micros = Micros(1_000);

/// Tenants that send them.
const TENANTS: u64 = 50;

/// Every fourth worker is labelled prefill.
const PREFILL: u64 = 4;

pub(crate) struct Desk {
    brain: Brain,
    now: Micros,
    next: u64,
    /// What workers are about to say.
    reports: VecDeque<StepReport>,
    roles: Vec<Role>,
    /// Every request asks for a target and has the longest prefix.
    is_heavy: bool,
    /// Which of all that ever came wait, and how many.
    waits: Vec<bool>,
    waiting: usize,
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request came.
    Arrival,
    /// Time made something due.
    Wake,
    /// A worker said something.
    Report,
}

/// What an event took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) kind: Kind,
    pub(crate) ns: u64,
    /// Prompts that got their place.
    pub(crate) placed: u64,
}

impl Desk {
    /// `is_heavy`: what a waiting request can cost at most.
    pub(crate) fn new(workers: u64, is_heavy: bool) -> Self {
        let config = BrainConfig {
            queue_requests_max: usize::MAX,
            queue_tokens_max: u64::MAX,
            ..BrainConfig::default()
        };
        let mut desk = Self {
            brain: Brain::new(config),
            now: Micros(0),
            next: 0,
            reports: VecDeque::new(),
            roles: Vec::new(),
            is_heavy,
            waits: vec![false],
            waiting: 0,
        };
        desk.attach(workers);
        desk
    }

    /// So many workers attach. A function of its own, so that its instructions can be counted.
    #[inline(never)]
    pub(crate) fn counted_joins(&mut self, workers: u64) {
        self.attach(workers);
    }

    fn attach(&mut self, workers: u64) {
        let first = self.roles.len() as u64;
        for number in first..first + workers {
            let role = if number % PREFILL == 0 {
                Role::Prefill
            } else {
                Role::Decode
            };
            self.roles.push(role);
            self.brain.handle(self.now, joined(number, role));
        }
    }

    /// Lets requests come until so many wait, and nobody answers.
    pub(crate) fn fill(&mut self, waiting: usize) {
        while self.waiting < waiting {
            self.arrive(|| 0, &mut |_| {});
        }
    }

    /// So many requests come, and nobody answers. A function of its own, so that its instructions
    /// can be counted.
    #[inline(never)]
    pub(crate) fn counted_arrivals(&mut self, times: usize) {
        for _ in 0..times {
            self.arrive(|| 0, &mut |_| {});
        }
    }

    /// So many times: a request comes, and workers say things until no more wait than before; all
    /// they have to say, if nobody did. `clock` counts nanoseconds; `record` hears of each event.
    pub(crate) fn run(&mut self, times: usize, clock: fn() -> u64, record: &mut impl FnMut(Told)) {
        let waiting = self.waiting;
        for _ in 0..times {
            self.arrive(clock, record);
            while (waiting == 0 || self.waiting > waiting)
                && let Some(report) = self.reports.pop_front()
            {
                let report = Event::StepReported(Box::new(report));
                record(self.tell(Kind::Report, report, clock));
                self.wake(clock, record);
            }
        }
    }

    fn arrive(&mut self, clock: fn() -> u64, record: &mut impl FnMut(Told)) {
        let event = self.arrival();
        self.waits.push(true);
        self.waiting += 1;
        record(self.tell(Kind::Arrival, event, clock));
        self.wake(clock, record);
    }

    fn wake(&mut self, clock: fn() -> u64, record: &mut impl FnMut(Told)) {
        while self.brain.next_wake().is_some_and(|at| at <= self.now) {
            record(self.tell(Kind::Wake, Event::Woke, clock));
        }
    }

    fn arrival(&mut self) -> Event {
        self.now = self.now.plus(GAP);
        self.next += 1;
        let id = self.next;
        // Lengths as of chats: most short, some long. Any mixing function does.
        let random = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let prompt = 64
            + u32::try_from(random % 1_000).unwrap_or(0)
                * if id.is_multiple_of(10) { 8 } else { 1 };
        let mark = |pages| PrefixMark {
            pages,
            hash: random ^ u64::from(pages),
        };
        let marks = if self.is_heavy { PREFIX_MARKS_MAX } else { 0 };
        // Who waits longer than 13 s is refused, unless the longest wait is what counts.
        let ttft = if self.is_heavy { 3_000_000 } else { 3_000 };
        let is_asked = self.is_heavy || id.is_multiple_of(2);
        let ttft = is_asked.then_some(Micros::from_millis(ttft));
        Event::RequestArrived(RequestFacts {
            deadline: self.now.plus(Micros::from_millis(3_600_000)),
            tenant: random % TENANTS,
            slo: Slo { ttft, tpot: None },
            prefix: (1..=u32::try_from(marks).unwrap_or(0)).map(mark).collect(),
            ..RequestFacts::of(RequestId(id), Tokens(prompt), Tokens(256))
        })
    }

    fn tell(&mut self, kind: Kind, event: Event, clock: fn() -> u64) -> Told {
        let begun = clock();
        let actions = self.brain.handle(self.now, event);
        let ns = clock().saturating_sub(begun);
        let mut placed = 0;
        for action in actions {
            match &action {
                Action::Open { sequence, .. } => {
                    placed += u64::from(self.waits_no_longer(sequence.request));
                }
                Action::Reject { sequence, .. } => {
                    self.waits_no_longer(sequence.request);
                }
                _ => {}
            }
            self.answer(&action);
        }
        Told { kind, ns, placed }
    }

    fn waits_no_longer(&mut self, id: RequestId) -> bool {
        let waits = usize::try_from(id.0)
            .ok()
            .and_then(|id| self.waits.get_mut(id));
        let did = waits.is_some_and(std::mem::take);
        self.waiting -= usize::from(did);
        did
    }

    /// What a worker says next of what it was told.
    fn answer(&mut self, action: &Action) {
        match *action {
            Action::Open { seat, kind, .. } => {
                let mut report = self.report(seat);
                match kind {
                    OpenKind::Import => report.opened.push(seat.slot),
                    OpenKind::Compute => report.tokens.push((seat.slot, Tokens(1))),
                }
                self.reports.push_back(report);
            }
            Action::Send { to: Some(to), .. } => {
                let mut report = self.report(to);
                report.arrived.push((to.slot, Tokens(1)));
                self.reports.push_back(report);
            }
            Action::Switch { seat, .. } => {
                let mut report = self.report(seat);
                report.tokens.push((seat.slot, Tokens(1)));
                report.closed.push(ended(seat, CloseReason::Stop));
                self.reports.push_back(report);
            }
            Action::Close { seat } => {
                let mut report = self.report(seat);
                report.closed.push(ended(seat, CloseReason::Asked));
                self.reports.push_back(report);
            }
            Action::Send { to: None, .. } | Action::Reject { .. } | Action::Break { .. } => {}
        }
    }

    fn report(&self, seat: SeatId) -> StepReport {
        let role = usize::try_from(seat.session.0).ok();
        let role = role.and_then(|at| self.roles.get(at)).copied();
        StepReport {
            load: WorkerLoad {
                pages_free: Pages(25_000),
                ..WorkerLoad::default()
            },
            ..StepReport::new(seat.session, role.unwrap_or(Role::Mixed))
        }
    }
}

/// CPU time of this thread.
pub(crate) fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    u64::try_from(ns).unwrap_or_default()
}

const fn ended(seat: SeatId, why: CloseReason) -> ClosedSeat {
    ClosedSeat {
        slot: seat.slot,
        why,
        retry_after: Micros(0),
    }
}

fn joined(session: u64, role: Role) -> Event {
    Event::WorkerJoined {
        session: SessionId(session),
        worker: Box::new(WorkerFacts {
            name: format!("worker-{session}"),
            incarnation: session + 1,
            role,
            page_size: 16,
            page_bytes: 16 * 131_072,
            pages_total: Pages(25_000),
            num_seqs_max: 512,
            batch_tokens_max: Tokens(8_192),
            model_len_max: Tokens(131_072),
            timings: Timings::h100_8b(),
        }),
    }
}
