//! Workers that are silent, stuck or on their way out: what they held goes on elsewhere at once,
//! what they still say is nobody's, and who is blamed. Columns and words as in `cells`.

use dopd_core::{
    action::Action,
    brain::Brain,
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role,
    ids::{SessionId, SlotId},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::{
    cells::{At, D, E, P, arrived, brain, cell, ended, lost, of, opened, shown, token},
    support::{joined, plain, report, request, said, worker},
};

fn suspected(session: u64, why: Suspicion) -> Event {
    Event::WorkerSuspected {
        session: SessionId(session),
        why,
    }
}

fn drains(session: u64) -> Event {
    said(StepReport {
        draining: true,
        ..of(session)
    })
}

#[test]
fn row_worker_of_cur_is_ejected() {
    for why in [Suspicion::Silent, Suspicion::Stuck] {
        let event = |session| suspected(session, why);
        cell(At::Placing, event(P), "close D.0; open E.0");
        cell(At::Run, event(D), "close D.0; open E.0 import");
        cell(
            At::Moving,
            event(D),
            "close D.0; close E.0; open E.1 import",
        );
        cell(At::Shipping, event(P), "close P.0; close D.0; open E.0");
    }
}

#[test]
fn row_worker_of_nxt_is_ejected() {
    for why in [Suspicion::Silent, Suspicion::Stuck] {
        let event = |session| suspected(session, why);
        cell(At::Placing, event(D), "close D.0; open E.0 import");
        cell(At::Moving, event(E), "close E.0");
        cell(At::Shipping, event(D), "close D.0; send P.0 stay");
    }
}

#[test]
fn row_worker_of_cur_drains() {
    cell(At::Placing, drains(P), "close D.0; open E.0");
    for (at, session) in [(At::Run, D), (At::Moving, D), (At::Shipping, P)] {
        cell(at, drains(session), "");
    }
}

#[test]
fn row_worker_of_nxt_drains() {
    cell(At::Placing, drains(D), "close D.0; open E.0 import");
    cell(At::Moving, drains(E), "close E.0");
    cell(At::Shipping, drains(D), "");
}

#[test]
fn late_words_of_an_ejected_worker_mean_nothing_and_its_pages_count() {
    let ejected = || {
        let mut brain = brain(At::Run);
        brain.handle(Micros(1), suspected(D, Suspicion::Silent));
        brain
    };
    for event in [opened(D, 0), arrived(D, 0, 3), token(D, 0)] {
        let mut brain = ejected();
        assert_eq!(shown(&brain.handle(Micros(2), event)), "");
        assert_eq!(brain.status().sessions[1].pages_used, 4);
    }
    for why in [CloseReason::Stop, CloseReason::Asked, CloseReason::Error] {
        let mut brain = ejected();
        assert_eq!(shown(&brain.handle(Micros(2), ended(D, 0, why))), "");
        assert_eq!(brain.status().sessions[1].pages_used, 0);
    }
}

#[test]
fn end_of_an_ejected_session_is_told_to_nobody_twice() {
    for why in [Suspicion::Silent, Suspicion::Stuck] {
        let mut brain = brain(At::Run);
        brain.handle(Micros(1), suspected(D, why));
        assert_eq!(shown(&brain.handle(Micros(2), suspected(D, why))), "");
        assert_eq!(shown(&brain.handle(Micros(3), lost(D))), "");
        let status = brain.status();
        assert_eq!(status.replays_total, 1);
        assert_eq!(status.ejections_by.values().sum::<u64>(), 1);
        assert_eq!(status.poison_total, 0);
    }
}

#[test]
fn silent_worker_is_back_with_its_next_report_a_stuck_one_when_it_moves() {
    let stuck = |is_stuck| {
        said(StepReport {
            is_stuck,
            ..report(1, Role::Mixed)
        })
    };
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Mixed, 40)));
    brain.handle(Micros(1), suspected(1, Suspicion::Stuck));
    assert_eq!(brain.status().sessions[0].ejected, Some(Suspicion::Stuck));
    assert_eq!(
        brain.handle(Micros(2), Event::RequestArrived(request(1, 8, 8))),
        []
    );
    assert_eq!(brain.handle(Micros(3), stuck(true)), []);
    assert_eq!(brain.handle(Micros(4), stuck(false)).len(), 1);
    brain.handle(Micros(5), suspected(1, Suspicion::Silent));
    assert!(!brain.is_ready());
    assert_eq!(brain.handle(Micros(6), stuck(false)).len(), 1);
    assert!(brain.is_ready());
}

/// Mixed workers 1 to 5 and one request that runs at the first.
fn five() -> Brain {
    let mut brain = Brain::new(plain());
    for session in 1..=5 {
        brain.handle(Micros(0), joined(session, worker(Role::Mixed, 40)));
    }
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    brain
}

/// Who has the request.
fn holder(brain: &Brain) -> Option<SessionId> {
    let sessions = brain.status().sessions;
    let held = sessions.iter().find(|one| one.seats_open > 0);
    held.map(|one| one.session)
}

/// In round `at`: `event` comes of who has the request, then its session ends. Reasons of what is
/// rejected.
fn strike(brain: &mut Brain, at: u64, event: &dyn Fn(SessionId) -> Event) -> Vec<RejectReason> {
    let now = Micros::from_millis(100 * at);
    let Some(session) = holder(brain) else {
        return Vec::new();
    };
    let mut actions = brain.handle(now, event(session));
    actions.extend(brain.handle(now, Event::SessionLost { session }));
    actions.extend(brain.handle(now.plus(Micros::from_millis(50)), Event::Woke));
    let why = |action: &Action| match *action {
        Action::Reject { why, .. } => Some(why),
        _ => None,
    };
    actions.iter().filter_map(why).collect()
}

#[test]
fn stuck_worker_counts_as_a_death_a_silent_one_as_a_replay() {
    let lose = |session| Event::SessionLost { session };
    let stuck = |session| Event::WorkerSuspected {
        session,
        why: Suspicion::Stuck,
    };
    let silent = |session| Event::WorkerSuspected {
        session,
        why: Suspicion::Silent,
    };
    let both: [&dyn Fn(SessionId) -> Event; 2] = [&lose, &stuck];
    for second in both {
        let mut brain = five();
        assert_eq!(strike(&mut brain, 1, &stuck), []);
        let why = strike(&mut brain, 2, second);
        assert_eq!(why, [RejectReason::PoisonSuspect]);
        assert_eq!(holder(&brain), None);
        assert_eq!(brain.status().poison_total, 1);
    }
    let mut brain = five();
    for at in 1..=3 {
        assert_eq!(strike(&mut brain, at, &silent), []);
    }
    let why = strike(&mut brain, 4, &silent);
    assert_eq!(why, [RejectReason::WorkerFailed]);
    assert_eq!(brain.status().poison_total, 0);
}

#[test]
fn worker_that_left_as_it_was_told_to_is_on_nobodys_account() {
    let mut brain = five();
    for round in 0..8 {
        let Some(SessionId(session)) = holder(&brain) else {
            break;
        };
        let draining = StepReport {
            draining: true,
            ..report(session, Role::Mixed)
        };
        brain.handle(Micros(10 * round), said(draining));
        let left = brain.handle(Micros(10 * round + 1), lost(session));
        // At once: nothing else died with it.
        assert_eq!(left.len(), 1, "{round}: {left:?}");
        brain.handle(
            Micros(10 * round + 2),
            joined(100 + round, worker(Role::Mixed, 40)),
        );
    }
    let status = brain.status();
    assert_eq!((status.replays_total, status.poison_total), (8, 0));
    assert_eq!(status.replays_by.get("worker_left"), Some(&8));
}

/// The stream of who has the request breaks; if `incarnation` is the same, its process is back.
fn break_stream(brain: &mut Brain, at: u64, incarnation: u64) -> Vec<RejectReason> {
    let Some(SessionId(session)) = holder(brain) else {
        return Vec::new();
    };
    let why = strike(brain, at, &|session| Event::SessionLost { session });
    let mut facts = worker(Role::Mixed, 40);
    (facts.name, facts.incarnation) = (format!("process {session}"), incarnation);
    brain.handle(
        Micros::from_millis(100 * at + 60),
        joined(session + 100, facts),
    );
    why
}

#[test]
fn broken_stream_of_a_process_that_lives_on_is_no_death() {
    for (incarnation, second) in [(7, vec![]), (8, vec![RejectReason::PoisonSuspect])] {
        let mut brain = Brain::new(plain());
        for session in 1..=5 {
            let mut facts = worker(Role::Mixed, 40);
            (facts.name, facts.incarnation) = (format!("process {session}"), 7);
            brain.handle(Micros(0), joined(session, facts));
        }
        brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
        assert_eq!(break_stream(&mut brain, 1, incarnation), []);
        assert_eq!(break_stream(&mut brain, 2, incarnation), second);
    }
}

#[test]
fn worker_that_dies_as_a_destination_is_blamed_on_nobody() {
    // P holds the request; D, then E, to which it is on its way, die.
    for at in [At::Placing, At::Shipping] {
        let mut brain = brain(at);
        brain.handle(Micros(1), lost(D));
        brain.handle(Micros(2), lost(E));
        // Now P dies, for the first time.
        brain.handle(Micros(3), lost(P));
        assert_eq!(brain.status().poison_total, 0);
        assert_eq!(brain.status().requests_waiting, 1, "{at:?}");
    }
    // Neither is one of a running request's two workers that dies without it.
    let mut brain = brain(At::Moving);
    brain.handle(Micros(1), lost(E));
    brain.handle(Micros(2), lost(P));
    brain.handle(Micros(3), lost(D));
    assert_eq!(brain.status().requests_waiting, 1);
}

#[test]
fn choices_of_a_request_are_condemned_together_others_survive() {
    // Seven pages each: two beside each other on ten pages do not fit.
    let mut brain = Brain::new(plain());
    for session in 1..=4 {
        brain.handle(Micros(0), joined(session, worker(Role::Mixed, 16)));
    }
    let mut facts = request(1, 20, 20);
    facts.choices = 3;
    let opens = brain.handle(Micros(0), Event::RequestArrived(facts));
    assert_eq!(opens.len(), 3);
    // Another request beside the first choice.
    assert_eq!(
        brain
            .handle(Micros(0), Event::RequestArrived(request(2, 8, 8)))
            .len(),
        1
    );
    assert_eq!(brain.handle(Micros(1), lost(1)), []);
    let condemned = brain.handle(Micros(2), lost(2));
    let rejects: Vec<_> = condemned
        .iter()
        .filter_map(|action| match action {
            Action::Reject { sequence, why, .. } => Some((sequence.request.0, *why)),
            _ => None,
        })
        .collect();
    assert_eq!(rejects, [(1, RejectReason::PoisonSuspect); 3]);
    let closes = condemned
        .iter()
        .filter(|action| matches!(action, Action::Close { .. }));
    assert_eq!(closes.count(), 1, "the choice on the third worker");
    let status = brain.status();
    assert_eq!(status.poison_total, 1);
    assert_eq!(status.requests_waiting + status.sequences_running, 1);
}

#[test]
fn one_worker_under_all_choices_is_one_death() {
    let mut brain = Brain::new(plain());
    for session in 1..=2 {
        brain.handle(Micros(0), joined(session, worker(Role::Mixed, 60)));
    }
    let mut facts = request(1, 8, 8);
    facts.choices = 3;
    brain.handle(Micros(0), Event::RequestArrived(facts));
    brain.handle(Micros(1), lost(1));
    let again = brain.handle(Micros::from_millis(50), Event::Woke);
    assert_eq!(again.len(), 3, "{again:?}");
    assert_eq!(brain.status().poison_total, 0);
}

#[test]
fn worker_that_broke_the_protocol_and_is_back_forgives_no_other_death() {
    let process = |number: u64| {
        let mut facts = worker(Role::Mixed, 40);
        (facts.name, facts.incarnation) = (format!("process {number}"), number);
        facts
    };
    let mut brain = Brain::new(plain());
    for session in 1..=4 {
        brain.handle(Micros(0), joined(session, process(session)));
    }
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    let lose = |session| Event::SessionLost { session };
    assert_eq!(strike(&mut brain, 1, &lose), []);
    let idle = (2..=4).find(|&session| holder(&brain) != Some(SessionId(session)));
    let idle = idle.unwrap_or(4);
    let lie = StepReport {
        opened: vec![SlotId(9)],
        ..report(idle, Role::Mixed)
    };
    brain.handle(Micros::from_millis(160), said(lie));
    brain.handle(Micros::from_millis(160), joined(100, process(idle)));
    assert_eq!(strike(&mut brain, 2, &lose), [RejectReason::PoisonSuspect]);
}

#[test]
fn who_makes_tokens_before_the_next_death_is_no_suspect_but_has_a_budget() {
    let lose = |session| Event::SessionLost { session };
    let mut brain = five();
    for at in 1..=4 {
        let Some(session) = holder(&brain) else {
            break;
        };
        let made = StepReport {
            tokens: vec![(SlotId(0), Tokens(1))],
            ..report(session.0, Role::Mixed)
        };
        brain.handle(Micros::from_millis(100 * at), said(made));
        let expected = if at < 4 {
            vec![]
        } else {
            vec![RejectReason::WorkerFailed]
        };
        assert_eq!(strike(&mut brain, at, &lose), expected);
    }
    assert_eq!(brain.status().poison_total, 0);
}

/// Sequences of requests that are opened, with their sessions.
fn placed(actions: &[Action]) -> Vec<(u64, u64)> {
    let open = |action: &Action| match *action {
        Action::Open { seat, sequence, .. } => Some((sequence.request.0, seat.session.0)),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

/// Tokens of a seat.
fn token_of(session: u64, slot: u32) -> Event {
    said(StepReport {
        tokens: vec![(SlotId(slot), Tokens(1))],
        ..report(session, Role::Mixed)
    })
}

/// The first worker has died under four requests, of which the first had made a token; the second
/// is there.
fn four_struck() -> Brain {
    let mut brain = Brain::new(plain());
    for session in 1..=2 {
        let mut facts = worker(Role::Mixed, 400);
        facts.batch_tokens_max = Tokens(1_000);
        brain.handle(Micros(0), joined(session, facts));
        if session == 1 {
            for id in 1..=4 {
                brain.handle(Micros(0), Event::RequestArrived(request(id, 8, 8)));
            }
        }
    }
    brain.handle(Micros(1), token_of(1, 0));
    brain.handle(Micros(2), lost(1));
    brain
}

#[test]
fn suspects_are_computed_one_by_one_after_the_others() {
    let mut brain = four_struck();
    let now = Micros::from_millis(50);
    assert_eq!(placed(&brain.handle(now, Event::Woke)), [(1, 2)]);
    // New ones do not wait for them.
    let new = brain.handle(now, Event::RequestArrived(request(5, 8, 8)));
    assert_eq!(placed(&new), [(5, 2)]);
    assert_eq!(placed(&brain.handle(now, token_of(2, 0))), [(2, 2)]);
    // The second kills this one as well, and dies alone of it: it was the only one in trial.
    let struck = brain.handle(now, lost(2));
    brain.handle(now, joined(3, worker(Role::Mixed, 400)));
    let reject = |action: &Action| matches!(action, Action::Reject { .. });
    assert_eq!(struck.iter().filter(|action| reject(action)).count(), 1);
    assert_eq!(brain.status().poison_total, 1);
    let later = now.plus(now);
    let again: Vec<u64> = placed(&brain.handle(later, Event::Woke))
        .iter()
        .map(|one| one.0)
        .collect();
    // The first had made a token; who was with the second for the first time is a suspect now.
    assert_eq!(again, [1]);
    assert_eq!(placed(&brain.handle(later, token_of(3, 0))), [(3, 3)]);
    assert_eq!(placed(&brain.handle(later, token_of(3, 1))), [(4, 3)]);
    assert_eq!(placed(&brain.handle(later, token_of(3, 2))), [(5, 3)]);
}

#[test]
fn who_runs_meets_no_suspect_in_trial() {
    let mut brain = four_struck();
    let now = Micros::from_millis(50);
    assert_eq!(placed(&brain.handle(now, Event::Woke)), [(1, 2)]);
    assert_eq!(placed(&brain.handle(now, token_of(2, 0))), [(2, 2)]);
    // A worker that comes gets the next suspect.
    let new = brain.handle(now, joined(3, worker(Role::Mixed, 400)));
    assert_eq!(placed(&new), [(3, 3)]);
    // The second kills its worker; who ran there waits until the third has made a token.
    brain.handle(now, lost(2));
    let later = now.plus(now);
    assert_eq!(brain.handle(later, Event::Woke), []);
    assert_eq!(placed(&brain.handle(later, token_of(3, 0))), [(1, 3)]);
}
