//! A brain with as many workers and waiting requests as one likes, and events that keep it so: what
//! workers say of what they are told, in the order of the protocol, and one arrival per prompt that
//! is placed.

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
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request came.
    Arrival,
    /// A worker said something, and a prompt got its place.
    Place,
    /// A worker said something else.
    Report,
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
        loop {
            let there = self.brain.status().requests_waiting;
            if there >= waiting {
                return;
            }
            self.arrive(waiting - there);
        }
    }

    /// So many requests come, and nobody answers. A function of its own, so that its instructions
    /// can be counted.
    #[inline(never)]
    pub(crate) fn counted_arrivals(&mut self, times: usize) {
        self.arrive(times);
    }

    fn arrive(&mut self, times: usize) {
        for _ in 0..times {
            let event = self.arrival();
            self.tell(event, || 0);
        }
    }

    /// So many times: a request comes, and workers say things until one was placed. `clock` counts
    /// nanoseconds; `record` hears what each event took, and how many seats it opened.
    pub(crate) fn run(
        &mut self,
        times: usize,
        clock: fn() -> u64,
        record: &mut impl FnMut(Kind, u64, u64),
    ) {
        for _ in 0..times {
            let event = self.arrival();
            let (_, took, opens) = self.tell(event, clock);
            record(Kind::Arrival, took, opens);
            while let Some(report) = self.reports.pop_front() {
                let report = Event::StepReported(Box::new(report));
                let (kind, took, opens) = self.tell(report, clock);
                record(kind, took, opens);
                if kind == Kind::Place {
                    break;
                }
            }
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
        let ttft = (self.is_heavy || id.is_multiple_of(2)).then_some(Micros::from_millis(3_000));
        Event::RequestArrived(RequestFacts {
            deadline: self.now.plus(Micros::from_millis(3_600_000)),
            tenant: random % TENANTS,
            slo: Slo { ttft, tpot: None },
            prefix: (1..=u32::try_from(marks).unwrap_or(0)).map(mark).collect(),
            ..RequestFacts::of(RequestId(id), Tokens(prompt), Tokens(256))
        })
    }

    /// One event, what it took, and how many seats it opened: at an arrival one for each prompt
    /// that got its place.
    fn tell(&mut self, event: Event, clock: fn() -> u64) -> (Kind, u64, u64) {
        let begun = clock();
        let actions = self.brain.handle(self.now, event);
        let took = clock().saturating_sub(begun);
        let (mut kind, mut opens) = (Kind::Report, 0);
        for action in actions {
            if let Action::Open { kind: opened, .. } = action {
                opens += 1;
                if opened == OpenKind::Import {
                    kind = Kind::Place;
                }
            }
            self.answer(&action);
        }
        (kind, took, opens)
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
