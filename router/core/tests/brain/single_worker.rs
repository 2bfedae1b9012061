//! One mixed worker: the shortest way through the brain.

use dopd_core::{
    action::{Action, OpenKind},
    brain::Brain,
    event::{CloseReason, Event},
    fleet::Role,
    ids::{SeatId, SessionId, SlotId},
    request::RejectReason,
    units::{Micros, Pages, Tokens},
};

use crate::support;

const SESSION: SessionId = SessionId(7);

fn joined() -> Event {
    support::joined(SESSION.0, support::worker(Role::Mixed, 64))
}

fn arrived(id: u64, prompt: u32, max_tokens: u32) -> Event {
    Event::RequestArrived(support::request(id, prompt, max_tokens))
}

fn report(tokens: &[(u32, u32)], closed: &[(u32, CloseReason)]) -> Event {
    let mut report = support::report(SESSION.0, Role::Mixed);
    report.tokens = tokens
        .iter()
        .map(|&(slot, n)| (SlotId(slot), Tokens(n)))
        .collect();
    report.closed = closed
        .iter()
        .map(|&(slot, why)| support::closed(slot, why))
        .collect();
    support::said(report)
}

#[test]
fn request_runs_to_its_end_and_its_slot_is_used_again() {
    let mut brain = Brain::new(support::plain());
    assert_eq!(brain.handle(Micros(0), joined()), []);
    let seat = SeatId {
        session: SESSION,
        slot: SlotId(0),
    };
    let open = |id| Action::Open {
        seat,
        sequence: support::sequence(id, 0),
        pages: Pages(9),
        kind: OpenKind::Compute,
    };
    assert_eq!(brain.handle(Micros(1), arrived(1, 17, 16)), [open(1)]);
    assert_eq!(brain.status().sessions[0].pages_used, 9);
    assert_eq!(brain.handle(Micros(2), report(&[(0, 1)], &[])), []);
    assert_eq!(
        brain.handle(Micros(3), report(&[(0, 1)], &[(0, CloseReason::Stop)])),
        []
    );
    assert_eq!(brain.status().sessions[0].pages_used, 0);
    assert_eq!(brain.handle(Micros(4), arrived(2, 28, 8)), [open(2)]);
    assert_eq!(brain.next_wake(), Some(support::NEVER));
}

#[test]
fn request_that_fits_nowhere_is_too_large_only_once_a_worker_is_there() {
    let mut brain = Brain::new(support::plain());
    assert_eq!(brain.handle(Micros(0), arrived(1, 200, 57)), []);
    let reject = Action::Reject {
        sequence: support::sequence(1, 0),
        why: RejectReason::TooLarge,
        retry_after: Micros(0),
        missed: None,
    };
    assert_eq!(brain.handle(Micros(1), joined()), [reject]);
    assert_eq!(brain.next_wake(), None);
}

#[test]
fn without_a_worker_a_request_waits_its_time_and_is_rejected() {
    let mut brain = Brain::new(support::plain());
    assert_eq!(brain.handle(Micros(5), arrived(1, 9, 1)), []);
    let at = Micros::from_millis(10_000).plus(Micros(5));
    assert_eq!(brain.next_wake(), Some(at));
    assert_eq!(brain.handle(Micros(at.0 - 1), Event::Woke), []);
    let rejected = brain.handle(at, Event::Woke);
    assert!(matches!(
        rejected[..],
        [Action::Reject {
            why: RejectReason::NoWorker,
            ..
        }]
    ));
    assert_eq!(brain.next_wake(), None);
}
