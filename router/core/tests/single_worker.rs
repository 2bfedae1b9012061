//! One mixed worker: the shortest way through the brain.

use dopd_core::{
    action::{Action, OpenKind},
    brain::{Brain, BrainConfig},
    cost::Timings,
    event::{CloseReason, ClosedSeat, Event, StepReport},
    fleet::{Role, WorkerFacts, WorkerLoad},
    ids::{RequestId, SeatId, SequenceId, SessionId, SlotId},
    request::{RejectReason, RequestFacts},
    units::{Micros, Pages, Tokens},
};

const SESSION: SessionId = SessionId(7);

fn joined() -> Event {
    let worker = WorkerFacts {
        name: "w".to_owned(),
        role: Role::Mixed,
        page_size: 16,
        page_bytes: 128,
        pages_total: Pages(100),
        num_seqs_max: 8,
        batch_tokens_max: Tokens(512),
        model_len_max: Tokens(1_000),
        timings: Timings::instant(),
    };
    Event::WorkerJoined {
        session: SESSION,
        worker: Box::new(worker),
    }
}

fn arrived(id: u64, prompt: u32, max_tokens: u32) -> Event {
    Event::RequestArrived(RequestFacts {
        id: RequestId(id),
        choices: 1,
        prompt_tokens: Tokens(prompt),
        max_tokens: Tokens(max_tokens),
        priority: 0,
        deadline: Micros::from_millis(60_000),
    })
}

fn report(tokens: &[(u32, u32)], closed: &[(u32, CloseReason)]) -> Event {
    let closed = closed.iter().map(|&(slot, why)| ClosedSeat {
        slot: SlotId(slot),
        why,
        retry_after: Micros(0),
    });
    Event::StepReported(Box::new(StepReport {
        session: SESSION,
        role: Role::Mixed,
        role_epoch: 0,
        draining: false,
        load: WorkerLoad::default(),
        opened: Vec::new(),
        arrived: Vec::new(),
        tokens: tokens
            .iter()
            .map(|&(slot, n)| (SlotId(slot), Tokens(n)))
            .collect(),
        closed: closed.collect(),
    }))
}

#[test]
fn request_runs_to_its_end_and_its_slot_is_used_again() {
    let mut brain = Brain::new(BrainConfig::default());
    assert_eq!(brain.handle(Micros(0), joined()), []);
    let sequence = |id| SequenceId {
        request: RequestId(id),
        choice: 0,
    };
    let seat = SeatId {
        session: SESSION,
        slot: SlotId(0),
    };
    let open = |id| Action::Open {
        seat,
        sequence: sequence(id),
        pages: Pages(3),
        kind: OpenKind::Compute,
    };
    assert_eq!(brain.handle(Micros(1), arrived(1, 17, 16)), [open(1)]);
    assert_eq!(brain.status().sessions[0].pages_used, 3);
    assert_eq!(brain.handle(Micros(2), report(&[(0, 1)], &[])), []);
    assert_eq!(
        brain.handle(Micros(3), report(&[(0, 1)], &[(0, CloseReason::Stop)])),
        []
    );
    assert_eq!(brain.status().sessions[0].pages_used, 0);
    assert_eq!(brain.handle(Micros(4), arrived(2, 40, 8)), [open(2)]);
    assert_eq!(brain.next_wake(), Some(Micros::from_millis(60_000)));
}

#[test]
fn request_that_fits_nowhere_is_too_large_only_once_a_worker_is_there() {
    let mut brain = Brain::new(BrainConfig::default());
    assert_eq!(brain.handle(Micros(0), arrived(1, 900, 101)), []);
    let reject = Action::Reject {
        sequence: SequenceId {
            request: RequestId(1),
            choice: 0,
        },
        why: RejectReason::TooLarge,
        retry_after: Micros(0),
    };
    assert_eq!(brain.handle(Micros(1), joined()), [reject]);
    assert_eq!(brain.next_wake(), None);
}

#[test]
fn without_a_worker_a_request_waits_its_time_and_is_rejected() {
    let mut brain = Brain::new(BrainConfig::default());
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
