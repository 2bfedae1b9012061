//! What is computed again: how often, how much, and when. And what is never computed at all.

use std::collections::BTreeMap;

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role,
    ids::{SeatId, SequenceId, SessionId},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::support::{closed, joined, plain, report, request, said, worker};

/// A worker with room and places for everybody.
fn large() -> dopd_core::fleet::WorkerFacts {
    let mut facts = worker(Role::Mixed, 10_000);
    (facts.num_seqs_max, facts.batch_tokens_max) = (1_000, Tokens(100_000));
    facts
}

fn fleet(config: BrainConfig, workers: u64) -> Brain {
    let mut brain = Brain::new(config);
    for session in 1..=workers {
        brain.handle(Micros(0), joined(session, large()));
    }
    brain
}

fn arrive(brain: &mut Brain, ids: std::ops::RangeInclusive<u64>) -> Vec<Action> {
    let events = ids.map(|id| Event::RequestArrived(request(id, 8, 8)));
    events
        .flat_map(|event| brain.handle(Micros(0), event))
        .collect()
}

fn opens(actions: &[Action]) -> BTreeMap<SequenceId, SeatId> {
    let open = |action: &Action| match *action {
        Action::Open { seat, sequence, .. } => Some((sequence, seat)),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

fn rejects(actions: &[Action]) -> Vec<RejectReason> {
    let why = |action: &Action| match *action {
        Action::Reject { why, .. } => Some(why),
        _ => None,
    };
    actions.iter().filter_map(why).collect()
}

/// Every seat makes a token.
fn tokens<'a>(seats: impl IntoIterator<Item = &'a SeatId>) -> Vec<Event> {
    let mut reports = BTreeMap::new();
    for seat in seats {
        let empty = || report(seat.session.0, Role::Mixed);
        let step = reports.entry(seat.session).or_insert_with(empty);
        step.tokens.push((seat.slot, Tokens(1)));
    }
    reports.into_values().map(said).collect()
}

fn lost(session: u64) -> Event {
    Event::SessionLost {
        session: SessionId(session),
    }
}

fn silent(session: u64) -> Event {
    Event::WorkerSuspected {
        session: SessionId(session),
        why: Suspicion::Silent,
    }
}

const SETTLED: Micros = Micros::from_millis(50);

#[test]
fn one_death_costs_no_answer_however_many_it_held() {
    let mut brain = fleet(plain(), 2);
    let seats = opens(&arrive(&mut brain, 1..=400));
    let at_first = seats.values().filter(|seat| seat.session.0 == 1).count();
    assert!(at_first >= 100, "{at_first}");
    for event in tokens(seats.values()) {
        brain.handle(Micros(1), event);
    }
    assert_eq!(brain.handle(Micros(2), lost(1)), []);
    let again = brain.handle(SETTLED, Event::Woke);
    assert_eq!(opens(&again).len(), at_first);
    assert_eq!(rejects(&again), []);
}

#[test]
fn who_made_no_token_shares_the_budget_and_waits() {
    let mut brain = fleet(plain(), 2);
    let seats = opens(&arrive(&mut brain, 1..=200));
    let held: Vec<&SeatId> = seats.values().filter(|seat| seat.session.0 == 1).collect();
    let staying: Vec<&SeatId> = seats.values().filter(|seat| seat.session.0 == 2).collect();
    assert_eq!((held.len(), staying.len()), (100, 100));
    // A fifth of what runs, which grows as they come: 24 of 124.
    let first = opens(&brain.handle(Micros(1), silent(1)));
    assert_eq!(first.len(), 24);
    assert_eq!(brain.status().retries_running, 24);
    // A token gives the place in the budget to the next; now it is 25 of 126.
    let one = brain.handle(SETTLED, tokens(first.values().take(1)).remove(0));
    let mut running = opens(&one);
    assert_eq!(running.len(), 2);
    // So does an end.
    let ended = first.values().skip(1).take(1);
    let done = StepReport {
        closed: ended
            .map(|seat| closed(seat.slot.0, CloseReason::Stop))
            .collect(),
        ..report(2, Role::Mixed)
    };
    let one = opens(&brain.handle(SETTLED, said(done)));
    assert_eq!(one.len(), 1);
    running.extend(one);
    // New requests do not wait for them.
    let new = opens(&arrive(&mut brain, 500..=500));
    assert!(new.contains_key(&crate::support::sequence(500, 0)));
    // In the end all have run.
    let mut seats: Vec<SeatId> = first
        .values()
        .skip(2)
        .chain(running.values())
        .copied()
        .collect();
    while !seats.is_empty() {
        let events = tokens(&seats).into_iter();
        let actions: Vec<Action> = events
            .flat_map(|event| brain.handle(SETTLED, event))
            .collect();
        seats = opens(&actions).into_values().collect();
    }
    assert_eq!(brain.status().requests_waiting, 0);
    assert_eq!(brain.status().replays_total, 100);
}

#[test]
fn some_may_be_tried_again_however_little_runs() {
    let mut brain = fleet(plain(), 1);
    arrive(&mut brain, 1..=10);
    brain.handle(Micros(1), silent(1));
    let again = brain.handle(SETTLED, joined(2, large()));
    assert_eq!(opens(&again).len(), 3);
}

#[test]
fn workers_that_die_together_are_one_incident() {
    let mut brain = fleet(plain(), 4);
    let seats = opens(&arrive(&mut brain, 1..=40));
    for event in tokens(seats.values()) {
        brain.handle(Micros(1), event);
    }
    // 15 ms between one and the next, 30 ms in all: nothing goes to who dies next.
    for (at, session) in [(10, 1), (25, 2), (40, 3)] {
        assert_eq!(brain.handle(Micros::from_millis(at), lost(session)), []);
    }
    assert_eq!(brain.next_wake(), Some(Micros::from_millis(50)));
    let again = brain.handle(Micros::from_millis(50), Event::Woke);
    assert_eq!(opens(&again).len(), 30);
    assert_eq!(brain.status().poison_total, 0);
    // New requests were not held up, nor are ejections.
    brain.handle(Micros::from_millis(60), joined(5, large()));
    brain.handle(Micros::from_millis(61), lost(4));
    assert_eq!(opens(&arrive(&mut brain, 100..=100)).len(), 1);
}

#[test]
fn total_outage_costs_a_fifth_more_work_at_most() {
    let mut brain = Brain::new(plain());
    let (mut session, mut id, mut now) = (0, 0, Micros(0));
    let (mut fresh, mut again) = (0_u32, 0_u32);
    let mut seen = std::collections::BTreeSet::new();
    // For ten seconds nobody makes a token: all four workers die of whatever they get, come back,
    // and requests go on arriving.
    for _ in 0..100 {
        let mut actions = Vec::new();
        for _ in 0..4 {
            session += 1;
            let mut facts = worker(Role::Mixed, 400);
            facts.name = format!("worker {}", session % 4);
            actions.extend(brain.handle(now, joined(session, facts)));
        }
        for _ in 0..20 {
            id += 1;
            actions.extend(brain.handle(now, Event::RequestArrived(request(id, 4, 8))));
        }
        for session in session - 3..=session {
            now = now.plus(Micros::from_millis(5));
            actions.extend(brain.handle(now, lost(session)));
        }
        now = now.plus(Micros::from_millis(80));
        actions.extend(brain.handle(now, Event::Woke));
        for (sequence, _) in opens(&actions) {
            let is_fresh = seen.insert(sequence);
            fresh += u32::from(is_fresh);
            again += u32::from(!is_fresh);
        }
    }
    assert!(fresh > 500, "{fresh}");
    assert!(again > 0 && again * 5 <= fresh, "{again} of {fresh}");
}

#[test]
fn first_replay_is_free_of_the_token_budget_the_next_are_not() {
    let config = || BrainConfig {
        replay_tokens_max: 20,
        ..plain()
    };
    for (prompt, allowed) in [(30, 1), (10, 2), (4, 3)] {
        let mut brain = fleet(config(), 1);
        brain.handle(Micros(0), Event::RequestArrived(request(1, prompt, 8)));
        for replay in 0..=allowed {
            let lost = StepReport {
                closed: vec![closed(0, CloseReason::Lost)],
                ..report(1, Role::Mixed)
            };
            let again = brain.handle(Micros(1), said(lost));
            let expected = if replay < allowed {
                vec![]
            } else {
                vec![RejectReason::WorkerFailed]
            };
            assert_eq!(rejects(&again), expected, "{prompt} {replay}");
        }
    }
}

#[test]
fn refusals_and_drains_take_nothing_from_the_token_budget() {
    let config = BrainConfig {
        replay_tokens_max: 0,
        replays_max: 1,
        ..plain()
    };
    let mut brain = fleet(config, 1);
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    for round in 1..9_u64 {
        let now = Micros::from_millis(2_000 * round);
        let refused = StepReport {
            closed: vec![closed(0, CloseReason::Refused)],
            ..report(round, Role::Mixed)
        };
        brain.handle(now, said(refused));
        let later = now.plus(Micros::from_millis(1_000));
        assert_eq!(opens(&brain.handle(later, Event::Woke)).len(), 1);
        brain.handle(later, joined(round + 1, large()));
        let drains = StepReport {
            draining: true,
            ..report(round, Role::Mixed)
        };
        brain.handle(later, said(drains));
        assert_eq!(opens(&brain.handle(later, lost(round))).len(), 1);
    }
}

#[test]
fn request_that_is_dead_in_the_queue_is_never_placed() {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Mixed, 4)));
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    let deadline = Micros::from_millis(100);
    let mut facts = request(2, 8, 8);
    facts.deadline = deadline;
    assert_eq!(brain.handle(Micros(0), Event::RequestArrived(facts)), []);
    assert_eq!(brain.next_wake(), Some(deadline));
    // The place gets free in the instant of its deadline, before its timer's event.
    let done = StepReport {
        closed: vec![closed(0, CloseReason::Stop)],
        ..report(1, Role::Mixed)
    };
    let actions = brain.handle(deadline, said(done));
    assert_eq!(rejects(&actions), [RejectReason::DeadlineExceeded]);
    assert_eq!(opens(&actions).len(), 0);
    // One that is dead when it comes is not placed either.
    let mut facts = request(3, 8, 8);
    facts.deadline = deadline;
    let actions = brain.handle(deadline, Event::RequestArrived(facts));
    assert_eq!(rejects(&actions), [RejectReason::DeadlineExceeded]);
    assert_eq!(brain.handle(deadline, Event::Woke), []);
    assert_eq!(brain.next_wake(), None);
}

#[test]
fn queue_outlives_an_outage_and_goes_on_with_the_first_worker() {
    for is_dead in [true, false] {
        let mut brain = fleet(plain(), 2);
        let seats = opens(&arrive(&mut brain, 1..=4));
        for event in tokens(seats.values()) {
            brain.handle(Micros(1), event);
        }
        for session in 1..=2 {
            let gone = if is_dead {
                lost(session)
            } else {
                silent(session)
            };
            brain.handle(Micros(2), gone);
        }
        let back = Micros::from_millis(9_000);
        assert_eq!(rejects(&brain.handle(back, Event::Woke)), []);
        let placed = if is_dead {
            brain.handle(back, joined(3, large()))
        } else {
            brain.handle(back, said(report(2, Role::Mixed)))
        };
        assert_eq!(opens(&placed).len(), 4);
    }
}
