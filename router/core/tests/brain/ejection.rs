//! Workers that are silent, stuck or on their way out: what they held goes on elsewhere at once,
//! what they still say is nobody's, and who is blamed. Columns and words as in `cells`.

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role,
    ids::{SessionId, SlotId},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::{
    cells::{At, D, E, P, arrived, brain, cell, ended, lost, of, opened, shown, token},
    support::{joined, report, request, said, worker},
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
    let mut brain = Brain::new(BrainConfig::default());
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
    let mut brain = Brain::new(BrainConfig::default());
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

/// In round `at`: who has the request makes a token, then `event` comes of it, then its session
/// ends. Reasons of what is rejected.
fn strike(brain: &mut Brain, at: u64, event: &dyn Fn(SessionId) -> Event) -> Vec<RejectReason> {
    let now = Micros::from_millis(100 * at);
    let Some(session) = holder(brain) else {
        return Vec::new();
    };
    let made = StepReport {
        tokens: vec![(SlotId(0), Tokens(1))],
        ..report(session.0, Role::Mixed)
    };
    brain.handle(now, said(made));
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
