//! The tables "Request at the router" and "Slot at the router" of the hand-off's design, through
//! events. Rows and columns have the names of the table; what is expected stands in short:
//! `open D.0 import`, `send P.0>D.0`, `send P.0 stay`, `switch D.0`, `close P.0`, `break D ...`.
//! Cells that no event can reach (a waiting sequence has no seat) are in `brain/table/tests.rs`.

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport, Suspicion},
    fleet::Role,
    ids::{RequestId, SeatId, SessionId, SlotId},
    request::RequestFacts,
    units::{Micros, Tokens},
};

use crate::support::{NEVER, closed, joined, plain, report, request, said, sequence, worker};

/// Workers by session; D has more room than E, so a hand-off goes there first.
const NAMES: [(u64, &str, Role, u32); 3] = [
    (1, "P", Role::Prefill, 60),
    (2, "D", Role::Decode, 40),
    (3, "E", Role::Decode, 30),
];
pub(crate) const P: u64 = 1;
pub(crate) const D: u64 = 2;
pub(crate) const E: u64 = 3;

/// When the one request gives up.
const DEADLINE: Micros = Micros::from_millis(8_000);

/// Columns. cur and nxt: PLACING P.0 planned, D.0 | RUN D.0 | MOVING D.0, E.0 | SHIPPING P.0, D.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum At {
    Wait,
    Placing,
    Run,
    Moving,
    Shipping,
}

pub(crate) fn of(session: u64) -> StepReport {
    report(
        session,
        NAMES
            .iter()
            .find(|name| name.0 == session)
            .map_or(Role::Mixed, |name| name.2),
    )
}

pub(crate) fn opened(session: u64, slot: u32) -> Event {
    said(StepReport {
        opened: vec![SlotId(slot)],
        ..of(session)
    })
}

pub(crate) fn arrived(session: u64, slot: u32, pos: u32) -> Event {
    said(StepReport {
        arrived: vec![(SlotId(slot), Tokens(pos))],
        ..of(session)
    })
}

pub(crate) fn token(session: u64, slot: u32) -> Event {
    said(StepReport {
        tokens: vec![(SlotId(slot), Tokens(1))],
        ..of(session)
    })
}

pub(crate) fn ended(session: u64, slot: u32, why: CloseReason) -> Event {
    said(StepReport {
        closed: vec![closed(slot, why)],
        ..of(session)
    })
}

pub(crate) fn lost(session: u64) -> Event {
    Event::SessionLost {
        session: SessionId(session),
    }
}

/// A brain whose one sequence stands in that column. Its answer has one token from RUN on.
pub(crate) fn brain(at: At) -> Brain {
    brain_until(at, DEADLINE)
}

fn brain_until(at: At, deadline: Micros) -> Brain {
    let mut brain = Brain::new(BrainConfig {
        death_settle: Micros(0),
        ..plain()
    });
    let mut tell = |event| brain.handle(Micros(0), event);
    for (session, _, role, pages) in NAMES {
        tell(joined(session, worker(role, pages)));
        if at == At::Wait {
            tell(Event::WorkerSuspected {
                session: SessionId(session),
                why: Suspicion::Silent,
            });
        }
    }
    let facts = RequestFacts {
        deadline,
        ..request(1, 8, 8)
    };
    tell(Event::RequestArrived(facts));
    if matches!(at, At::Wait | At::Placing) {
        return brain;
    }
    tell(opened(D, 0));
    if at == At::Shipping {
        return brain;
    }
    tell(token(P, 0));
    tell(arrived(D, 0, 1));
    tell(ended(P, 0, CloseReason::Asked));
    if at == At::Moving {
        tell(Event::MoveRequested {
            sequence: sequence(1, 0),
            to: SessionId(E),
        });
    }
    brain
}

fn seat(seat: SeatId) -> String {
    let name = NAMES
        .iter()
        .find(|name| name.0 == seat.session.0)
        .map_or("?", |name| name.1);
    format!("{name}.{}", seat.slot.0)
}

pub(crate) fn shown(actions: &[Action]) -> String {
    let show = |action: &Action| match *action {
        Action::Open {
            seat: at,
            kind: OpenKind::Compute,
            ..
        } => format!("open {}", seat(at)),
        Action::Open { seat: at, .. } => format!("open {} import", seat(at)),
        Action::Send {
            seat: at,
            to: Some(to),
        } => format!("send {}>{}", seat(at), seat(to)),
        Action::Send { seat: at, to: None } => format!("send {} stay", seat(at)),
        Action::Close { seat: at } => format!("close {}", seat(at)),
        Action::Switch { seat: at, .. } => format!("switch {}", seat(at)),
        Action::Reject { why, .. } => format!("reject {why:?}"),
        Action::Break { session, why } => {
            format!(
                "break {} {why:?}",
                seat(SeatId {
                    session,
                    slot: SlotId(0)
                })
            )
        }
    };
    actions.iter().map(show).collect::<Vec<_>>().join("; ")
}

pub(crate) fn cell(at: At, event: Event, expected: &str) {
    let asked = format!("{at:?}: {event:?}");
    let actions = brain(at).handle(Micros(1), event);
    assert_eq!(shown(&actions), expected, "{asked}");
}

#[test]
fn row_place() {
    // Only P is back: it keeps. Only D is back: nobody else takes prompts, so it does.
    cell(At::Wait, token_free(P), "open P.0");
    cell(At::Wait, token_free(D), "open D.0");
    let mut waiting = brain(At::Wait);
    waiting.handle(
        Micros(1),
        Event::RequestCancelled {
            request: RequestId(1),
        },
    );
    waiting.handle(Micros(1), token_free(P));
    waiting.handle(Micros(1), token_free(D));
    let placed = waiting.handle(Micros(1), Event::RequestArrived(request(2, 8, 8)));
    assert_eq!(shown(&placed), "open D.0 import");
    for at in [At::Placing, At::Run, At::Moving, At::Shipping] {
        cell(at, token_free(E), "");
    }
}

/// A report that says nothing.
fn token_free(session: u64) -> Event {
    said(of(session))
}

#[test]
fn row_move() {
    let event = |to| Event::MoveRequested {
        sequence: sequence(1, 0),
        to: SessionId(to),
    };
    cell(At::Run, event(E), "open E.0 import");
    cell(At::Run, event(D), ""); // It is there.
    for at in [At::Wait, At::Placing, At::Moving, At::Shipping] {
        cell(at, event(E), "");
    }
}

#[test]
fn row_opened() {
    cell(At::Placing, opened(D, 0), "open P.0; send P.0>D.0");
    cell(At::Run, opened(D, 0), "");
    cell(At::Moving, opened(E, 0), "send D.0>E.0");
    cell(
        At::Shipping,
        opened(D, 0),
        "break D.0 OpenedTwice; send P.0 stay",
    );
}

#[test]
fn row_token_of_cur() {
    cell(At::Run, token(D, 0), "");
    cell(At::Moving, token(D, 0), "");
    cell(At::Shipping, token(P, 0), "");
}

#[test]
fn row_token_of_another_slot() {
    cell(At::Placing, token(D, 0), "");
    cell(At::Moving, token(E, 0), "");
    cell(At::Shipping, token(D, 0), "");
}

#[test]
fn row_arrived() {
    cell(
        At::Placing,
        arrived(D, 0, 1),
        "break D.0 ArrivedUnsent; open E.0 import",
    );
    cell(At::Run, arrived(D, 0, 1), "");
    cell(At::Moving, arrived(E, 0, 1), "break E.0 ArrivedUnsent");
    cell(At::Shipping, arrived(D, 0, 1), "switch D.0; close P.0");
}

#[test]
fn row_stop_and_length_of_cur() {
    for why in [CloseReason::Stop, CloseReason::Length] {
        cell(
            At::Placing,
            ended(P, 0, why),
            "break P.0 NoSuchSeat; close D.0; open E.0",
        );
        cell(At::Run, ended(D, 0, why), "");
        cell(At::Moving, ended(D, 0, why), "close E.0");
        cell(At::Shipping, ended(P, 0, why), "close D.0");
    }
}

#[test]
fn row_closed_of_cur_otherwise() {
    for why in [
        CloseReason::Preempted,
        CloseReason::Lost,
        CloseReason::Asked,
    ] {
        cell(
            At::Placing,
            ended(P, 0, why),
            "break P.0 NoSuchSeat; close D.0; open E.0",
        );
        cell(At::Run, ended(D, 0, why), "open D.0 import");
        cell(At::Moving, ended(D, 0, why), "close E.0; open D.0 import");
        cell(At::Shipping, ended(P, 0, why), "close D.0; open D.1 import");
    }
    // A refusal is a replay as well, after a wait; P is the only one that takes prompts.
    cell(At::Shipping, ended(P, 0, CloseReason::Refused), "close D.0");
    cell(
        At::Run,
        ended(D, 0, CloseReason::Error),
        "reject EngineError",
    );
    cell(
        At::Shipping,
        ended(P, 0, CloseReason::Error),
        "close D.0; reject EngineError",
    );
}

#[test]
fn row_closed_of_nxt() {
    cell(
        At::Placing,
        ended(D, 0, CloseReason::Lost),
        "open D.0 import",
    );
    cell(
        At::Placing,
        ended(D, 0, CloseReason::Refused),
        "open E.0 import",
    );
    cell(At::Moving, ended(E, 0, CloseReason::Refused), "");
    cell(
        At::Shipping,
        ended(D, 0, CloseReason::Lost),
        "send P.0 stay",
    );
}

#[test]
fn row_session_of_cur_lost() {
    cell(At::Placing, lost(P), "close D.0; open E.0");
    cell(At::Run, lost(D), "open E.0 import");
    cell(At::Moving, lost(D), "close E.0; open E.1 import");
    cell(At::Shipping, lost(P), "close D.0; open E.0");
}

#[test]
fn row_session_of_nxt_lost() {
    cell(At::Placing, lost(D), "open E.0 import");
    cell(At::Moving, lost(E), "");
    cell(At::Shipping, lost(D), "send P.0 stay");
}

#[test]
fn row_handoff_timer() {
    let late = Micros::from_millis(5_000);
    for at in [At::Wait, At::Placing, At::Run, At::Moving, At::Shipping] {
        // From prefill it starts with the first token, which did not come yet.
        assert_eq!(shown(&brain(at).handle(late, Event::Woke)), "", "{at:?}");
    }
    let mut shipping = brain(At::Shipping);
    shipping.handle(Micros(7), token(P, 0));
    let due = Micros::from_millis(500).plus(Micros(7));
    assert_eq!(shipping.next_wake(), Some(due));
    assert_eq!(
        shown(&shipping.handle(due, Event::Woke)),
        "close D.0; send P.0 stay"
    );
    assert_eq!(shipping.next_wake(), Some(DEADLINE));
    let mut moving = brain(At::Moving);
    moving.handle(Micros(7), opened(E, 0));
    assert_eq!(
        shown(&moving.handle(due, Event::Woke)),
        "close E.0; send D.0 stay"
    );
}

#[test]
fn row_cancel_and_deadline() {
    let columns = [
        (At::Wait, ""),
        (At::Placing, "close D.0"),
        (At::Run, "close D.0"),
        (At::Moving, "close D.0; close E.0"),
        (At::Shipping, "close P.0; close D.0"),
    ];
    for (at, closes) in columns {
        cell(
            at,
            Event::RequestCancelled {
                request: RequestId(1),
            },
            closes,
        );
        cell(
            at,
            Event::SequenceStopped {
                sequence: sequence(1, 0),
            },
            closes,
        );
        let reject = "reject DeadlineExceeded";
        let expected = if closes.is_empty() {
            reject.into()
        } else {
            format!("{closes}; {reject}")
        };
        let mut brain = brain(at);
        assert_eq!(
            shown(&brain.handle(DEADLINE, Event::Woke)),
            expected,
            "{at:?}"
        );
        // END: nothing is known of it any more.
        for event in [
            Event::Woke,
            Event::RequestCancelled {
                request: RequestId(1),
            },
            Event::SequenceStopped {
                sequence: sequence(1, 0),
            },
        ] {
            assert_eq!(
                shown(&brain.handle(DEADLINE, event)),
                "",
                "END after {at:?}"
            );
        }
    }
}

#[test]
fn row_no_worker_left() {
    for at in [At::Wait, At::Placing, At::Run, At::Moving, At::Shipping] {
        let mut brain = brain_until(at, NEVER);
        // In the order in which only one dies with the sequence on it.
        let order = if at == At::Shipping {
            [E, D, P]
        } else {
            [E, P, D]
        };
        for session in order {
            brain.handle(Micros(9), lost(session));
        }
        let due = Micros::from_millis(10_000).plus(Micros(9));
        if at == At::Wait {
            let since = Micros::from_millis(10_000);
            assert_eq!(shown(&brain.handle(since, Event::Woke)), "reject NoWorker");
            continue;
        }
        assert_eq!(
            shown(&brain.handle(Micros(due.0 - 1), Event::Woke)),
            "",
            "{at:?}"
        );
        assert_eq!(
            shown(&brain.handle(due, Event::Woke)),
            "reject NoWorker",
            "{at:?}"
        );
    }
}

#[test]
fn slot_free_and_planned_say_nothing() {
    // P.0 is FREE in RUN, PLANNED in PLACING.
    let after = "close D.0; open E.0";
    for event in [
        opened(P, 0),
        arrived(P, 0, 1),
        token(P, 0),
        ended(P, 0, CloseReason::Asked),
    ] {
        cell(At::Run, event.clone(), "break P.0 NoSuchSeat");
        cell(
            At::Placing,
            event,
            &format!("break P.0 NoSuchSeat; {after}"),
        );
    }
}

#[test]
fn slot_closing_is_quiet_and_free_after_closed() {
    let closing = || {
        let mut brain = brain(At::Run);
        brain.handle(
            Micros(1),
            Event::RequestCancelled {
                request: RequestId(1),
            },
        );
        brain
    };
    let next = || Event::RequestArrived(request(2, 8, 8));
    for event in [opened(D, 0), arrived(D, 0, 3), token(D, 0)] {
        let mut brain = closing();
        assert_eq!(shown(&brain.handle(Micros(2), event)), "");
        assert_eq!(shown(&brain.handle(Micros(3), next())), "open D.1 import");
    }
    let mut brain = closing();
    assert_eq!(
        shown(&brain.handle(Micros(2), ended(D, 0, CloseReason::Asked))),
        ""
    );
    assert_eq!(shown(&brain.handle(Micros(3), next())), "open D.0 import");
}

#[test]
fn slots_are_free_after_the_session_is_lost() {
    let mut brain = brain(At::Shipping);
    brain.handle(Micros(1), lost(D));
    let status = brain.status();
    assert_eq!(
        status
            .sessions
            .iter()
            .map(|one| one.pages_used)
            .collect::<Vec<_>>(),
        [4, 0]
    );
}
