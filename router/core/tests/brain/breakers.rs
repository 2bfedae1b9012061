//! Breakers: who gets no new work for a while, who gets it all the same, and what is not delayed.
//! Sessions are numbered from 1; pages tell who would be chosen.
#![expect(
    clippy::expect_used,
    reason = "the lint knows test functions only, not their helpers"
)]

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BreakerState},
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role::{self, Decode, Mixed, Prefill},
    ids::{SeatId, SessionId, SlotId},
    units::{Micros, Tokens},
};

use crate::support::{closed, joined, plain, report, request, said, worker};

/// Brain, clock and names of requests.
struct Bench {
    brain: Brain,
    now: Micros,
    requests: u64,
    roles: Vec<Role>,
}

impl Bench {
    fn new(workers: &[(Role, u32)]) -> Self {
        let mut bench = Self {
            brain: Brain::new(plain()),
            now: Micros::from_millis(1_000),
            requests: 0,
            roles: Vec::new(),
        };
        for &(role, pages) in workers {
            bench.join(role, pages, "");
        }
        bench
    }

    /// Session of the worker that joins; without a name it has one of its own.
    fn join(&mut self, role: Role, pages: u32, name: &str) -> u64 {
        self.roles.push(role);
        let session = self.roles.len() as u64;
        let mut facts = worker(role, pages);
        facts.name = if name.is_empty() {
            format!("worker-{session}")
        } else {
            name.to_owned()
        };
        self.tell(joined(session, facts));
        session
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.brain.handle(self.now, event)
    }

    fn report(&mut self, session: u64, change: impl FnOnce(&mut StepReport)) -> Vec<Action> {
        let index = usize::try_from(session).unwrap_or(0) - 1;
        let mut step = report(session, self.roles[index]);
        change(&mut step);
        self.tell(said(step))
    }

    fn close(&mut self, seat: SeatId, why: CloseReason) -> Vec<Action> {
        self.report(seat.session.0, |step| {
            step.closed.push(closed(seat.slot.0, why));
        })
    }

    /// The seats that a new request of 8 + 8 tokens opens.
    fn ask(&mut self) -> Vec<(SeatId, OpenKind)> {
        self.requests += 1;
        let actions = self.tell(Event::RequestArrived(request(self.requests, 8, 8)));
        opens(&actions)
    }

    /// Where a new request goes, which then ends well.
    fn served_by(&mut self) -> Option<u64> {
        let (seat, _) = *self.ask().first()?;
        self.close(seat, CloseReason::Stop);
        Some(seat.session.0)
    }

    /// New requests fail at whoever gets them, until so many have failed at this one.
    fn fail(&mut self, session: u64, times: usize) {
        let mut failed = 0;
        while failed < times {
            let asked = self.ask();
            let seat = asked.first().map(|&(seat, _)| seat);
            let seat = seat.expect("somebody takes a request");
            let is_meant = seat.session.0 == session;
            failed += usize::from(is_meant);
            let why = if is_meant {
                CloseReason::Error
            } else {
                CloseReason::Stop
            };
            self.close(seat, why);
        }
    }

    fn wait(&mut self, ms: u64) -> Vec<Action> {
        self.now = self.now.plus(Micros::from_millis(ms));
        self.tell(Event::Woke)
    }

    fn state(&self, session: u64) -> Option<BreakerState> {
        let sessions = self.brain.status().sessions;
        let one = sessions.iter().find(|one| one.session.0 == session);
        one.map(|one| one.breaker)
    }
}

fn opens(actions: &[Action]) -> Vec<(SeatId, OpenKind)> {
    let open = |action: &Action| match *action {
        Action::Open { seat, kind, .. } => Some((seat, kind)),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

/// A worker that fails gets work first: it is empty.
fn two() -> Bench {
    Bench::new(&[(Mixed, 40), (Mixed, 40)])
}

#[test]
fn worker_that_fails_gets_nothing_then_one_then_all() {
    let mut bench = two();
    bench.fail(1, 5);
    assert_eq!(bench.state(1), Some(BreakerState::Open));
    let openings = bench.brain.status().breaker_openings_by;
    assert_eq!(openings.get("worker"), Some(&1));
    for _ in 0..9 {
        assert_eq!(bench.served_by(), Some(2));
    }
    bench.wait(1_000);
    assert_eq!(bench.state(1), Some(BreakerState::HalfOpen));
    let probe = bench.ask();
    assert_eq!(probe[0].0.session, SessionId(1));
    // One at a time.
    for _ in 0..9 {
        assert_eq!(bench.served_by(), Some(2));
    }
    let slot = probe[0].0.slot;
    bench.report(1, |step| step.tokens.push((slot, Tokens(1))));
    assert_eq!(bench.state(1), Some(BreakerState::Closed));
    bench.close(probe[0].0, CloseReason::Stop);
    assert_eq!(bench.served_by(), Some(1));
}

#[test]
fn failing_probe_opens_it_again_for_longer() {
    let mut bench = two();
    bench.fail(1, 5);
    bench.wait(1_000);
    bench.fail(1, 1);
    assert_eq!(bench.state(1), Some(BreakerState::Open));
    bench.wait(1_000);
    assert_eq!(bench.state(1), Some(BreakerState::Open));
    bench.wait(1_000);
    assert_eq!(bench.state(1), Some(BreakerState::HalfOpen));
    // A probe that ends without a verdict is followed by another one.
    let probe = bench.ask();
    assert_eq!(probe[0].0.session, SessionId(1));
    bench.close(probe[0].0, CloseReason::Preempted);
    assert_eq!(bench.served_by(), Some(2));
    bench.wait(5_000);
    assert_eq!(bench.served_by(), Some(1));
}

#[test]
fn refusals_and_preemptions_are_no_failures() {
    let mut bench = two();
    for _ in 0..30 {
        for why in [CloseReason::Refused, CloseReason::Preempted] {
            let seats = bench.ask();
            let mut again = opens(&bench.close(seats[0].0, why));
            again.extend(opens(&bench.wait(1_000)));
            bench.close(again[0].0, CloseReason::Stop);
        }
    }
    // Nor are many in a row.
    for _ in 0..6 {
        let mut seats = bench.ask();
        while let Some(&(seat, _)) = seats.first() {
            seats = opens(&bench.close(seat, CloseReason::Preempted));
        }
    }
    assert_eq!(bench.state(1), Some(BreakerState::Closed));
    assert_eq!(bench.state(2), Some(BreakerState::Closed));
}

#[test]
fn half_of_a_group_at_most_and_never_the_last() {
    let mut bench = Bench::new(&[(Mixed, 40); 4]);
    for session in [1, 2] {
        bench.fail(session, 5);
    }
    let served = |bench: &mut Bench| {
        let seats: Vec<_> = (0..4)
            .filter_map(|_| bench.ask().first().copied())
            .collect();
        let mut sessions: Vec<u64> = seats.iter().map(|(seat, _)| seat.session.0).collect();
        for (seat, _) in seats {
            bench.close(seat, CloseReason::Stop);
        }
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    };
    assert_eq!(served(&mut bench), [3, 4]);
    // A third breaker opens, but the one that was first to open counts no longer.
    bench.wait(10);
    bench.fail(3, 5);
    assert_eq!(bench.state(3), Some(BreakerState::Open));
    assert_eq!(served(&mut bench).len(), 2);
    // The others go: whoever is left works, at once.
    for session in [4, 2, 1] {
        bench.tell(Event::SessionLost {
            session: SessionId(session),
        });
    }
    assert_eq!(bench.state(3), Some(BreakerState::Open));
    assert_eq!(served(&mut bench), [3]);
    assert!(bench.brain.is_ready());
}

#[test]
fn only_one_who_could_hold_a_long_sequence_keeps_its_work() {
    let mut bench = Bench::new(&[(Mixed, 40), (Mixed, 12), (Mixed, 12)]);
    bench.fail(1, 5);
    assert_eq!(bench.state(1), Some(BreakerState::Open));
    let actions = bench.tell(Event::RequestArrived(request(99, 100, 8)));
    assert_eq!(opens(&actions)[0].0.session, SessionId(1));
}

#[test]
fn open_breaker_holds_nothing_that_runs_and_delays_no_death() {
    let mut bench = two();
    let seats = [bench.ask(), bench.ask()].concat();
    assert_eq!(seats[0].0.session, SessionId(1));
    for _ in 0..5 {
        bench.fail(1, 1);
    }
    assert_eq!(bench.state(1), Some(BreakerState::Open));
    let token = bench.report(1, |step| step.tokens.push((seats[0].0.slot, Tokens(1))));
    assert_eq!(token, []);
    let ejected = bench.tell(Event::WorkerSuspected {
        session: SessionId(1),
        why: Suspicion::Silent,
    });
    assert!(
        matches!(ejected[..], [Action::Close { .. }, Action::Open { .. }]),
        "{ejected:?}"
    );
}

#[test]
fn worker_that_comes_and_goes_is_held_down_under_its_name() {
    let mut bench = Bench::new(&[(Mixed, 40)]);
    for round in 0..2 {
        let session = bench.join(Mixed, 400, "flaps");
        let seats = bench.ask();
        assert!(!seats.is_empty(), "{round}");
        bench.tell(Event::SessionLost {
            session: SessionId(session),
        });
        bench.wait(100);
    }
    let session = bench.join(Mixed, 400, "flaps");
    assert_eq!(bench.state(session), Some(BreakerState::Open));
    bench.tell(Event::SessionLost {
        session: SessionId(session),
    });
    let session = bench.join(Mixed, 400, "flaps");
    bench.wait(1_000);
    assert_eq!(bench.state(session), Some(BreakerState::HalfOpen));
    // Ejection and end of one session are one loss, leaving is none.
    for loss in [Some(Suspicion::Silent), None, None, None] {
        let name = format!("{loss:?}");
        let session = bench.join(Mixed, 400, &name);
        assert_eq!(bench.state(session), Some(BreakerState::Closed));
        if let Some(why) = loss {
            let session = SessionId(session);
            bench.tell(Event::WorkerSuspected { session, why });
        } else {
            bench.report(session, |step| step.draining = true);
        }
        bench.tell(Event::SessionLost {
            session: SessionId(session),
        });
        if loss.is_some() {
            let session = bench.join(Mixed, 400, &name);
            assert_eq!(bench.state(session), Some(BreakerState::Closed));
        }
    }
}

/// The next hand-off from P (1) is not over in time; nxt's session, or none if there was none.
fn slow_handoff(bench: &mut Bench) -> Option<u64> {
    let (nxt, kind) = *bench.ask().first()?;
    if kind != OpenKind::Import {
        bench.close(nxt, CloseReason::Stop);
        return None;
    }
    let opened = bench.report(nxt.session.0, |step| step.opened.push(nxt.slot));
    let (cur, _) = opens(&opened)[0];
    bench.report(cur.session.0, |step| {
        step.tokens.push((cur.slot, Tokens(1)));
    });
    let over = bench.wait(6_000);
    assert!(
        matches!(over[..], [Action::Close { seat }, Action::Send { to: None, .. }] if seat == nxt),
        "{over:?}"
    );
    bench.close(nxt, CloseReason::Asked);
    bench.close(cur, CloseReason::Stop);
    Some(nxt.session.0)
}

#[test]
fn pair_that_fails_is_left_alone_and_the_others_are_used() {
    let mut bench = Bench::new(&[(Prefill, 60), (Decode, 50), (Decode, 40)]);
    for _ in 0..5 {
        assert_eq!(slow_handoff(&mut bench), Some(2));
    }
    let status = bench.brain.status();
    assert_eq!(status.pairs_open, 1);
    assert_eq!(status.breaker_openings_by.get("pair"), Some(&1));
    assert_eq!(bench.state(1), Some(BreakerState::Closed));
    assert_eq!(bench.state(2), Some(BreakerState::Closed));
    // D's breaker is closed, yet E is chosen, which has less room.
    assert_eq!(bench.ask()[0], (seat(3, 0), OpenKind::Import));
    // Nobody moves to D from P.
    let opened = bench.report(3, |step| step.opened.push(SlotId(0)));
    assert_eq!(opens(&opened)[0].0.session, SessionId(1));
    bench.close(seat(3, 0), CloseReason::Lost);
    let ask = Event::MoveRequested {
        sequence: crate::support::sequence(bench.requests, 0),
        to: SessionId(2),
    };
    assert_eq!(bench.tell(ask), []);
}

fn seat(session: u64, slot: u32) -> SeatId {
    SeatId {
        session: SessionId(session),
        slot: SlotId(slot),
    }
}

#[test]
fn prefill_worker_that_reaches_nobody_keeps() {
    // The third would fill more than half of the pool.
    let mut bench = Bench::new(&[(Prefill, 16), (Decode, 40)]);
    for _ in 0..5 {
        assert_eq!(slow_handoff(&mut bench), Some(2));
    }
    for _ in 0..2 {
        assert_eq!(bench.ask()[0].1, OpenKind::Compute);
        assert_eq!(bench.brain.status().requests_waiting, 0);
    }
    bench.report(1, |_| {});
    bench.report(1, |_| {});
    assert_eq!(bench.ask()[0].1, OpenKind::Compute);
}

#[test]
fn other_prefill_worker_hands_to_the_one_that_is_cut_off_from_the_first() {
    let mut bench = Bench::new(&[(Prefill, 60), (Decode, 40)]);
    for _ in 0..5 {
        assert_eq!(slow_handoff(&mut bench), Some(2));
    }
    bench.join(Prefill, 60, "");
    assert_eq!(bench.ask()[0], (seat(2, 0), OpenKind::Import));
    let opened = bench.report(2, |step| step.opened.push(SlotId(0)));
    assert_eq!(opens(&opened)[0].0.session, SessionId(3));
}

#[test]
fn pair_is_tried_again_with_one_hand_off() {
    let mut bench = Bench::new(&[(Prefill, 60), (Decode, 40)]);
    for _ in 0..5 {
        slow_handoff(&mut bench);
    }
    assert_eq!(slow_handoff(&mut bench), None);
    bench.wait(1_000);
    let probe = bench.ask();
    assert_eq!(probe[0].1, OpenKind::Import);
    assert_eq!(bench.ask()[0].1, OpenKind::Compute, "one at a time");
    bench.report(2, |step| step.opened.push(probe[0].0.slot));
    bench.report(2, |step| step.arrived.push((probe[0].0.slot, Tokens(0))));
    assert_eq!(bench.brain.status().pairs_open, 0);
    assert_eq!(bench.ask()[0].1, OpenKind::Import);
}

#[test]
fn import_that_is_lost_is_a_failure_of_its_pair_and_the_pair_goes_with_its_worker() {
    let mut bench = Bench::new(&[(Prefill, 600), (Decode, 50)]);
    let mut last = Vec::new();
    for _ in 0..5 {
        let (nxt, kind) = bench.ask()[0];
        assert_eq!(kind, OpenKind::Import);
        bench.report(2, |step| step.opened.push(nxt.slot));
        last = bench.close(nxt, CloseReason::Lost);
        bench.tell(Event::RequestCancelled {
            request: dopd_core::ids::RequestId(bench.requests),
        });
    }
    assert!(
        matches!(last[..], [Action::Send { to: None, .. }]),
        "{last:?}"
    );
    assert_eq!(bench.brain.status().pairs_open, 1);
    bench.tell(Event::SessionLost {
        session: SessionId(2),
    });
    assert_eq!(bench.brain.status().pairs_open, 0);
    assert_eq!(bench.brain.next_wake(), None);
}
