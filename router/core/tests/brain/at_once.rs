//! What becomes due for thousands at one instant is done a part at a time, so that no other event
//! waits for all of it.

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig},
    event::{CloseReason, Event, StepReport},
    fleet::Role,
    ids::SessionId,
    request::RejectReason::{self, DeadlineExceeded, NoWorker, TooLarge},
    units::{Micros, Tokens},
};

use crate::support::{NEVER, closed, joined, plain, report, request, said, worker};

const MANY: u64 = 2_000;

/// Actions of one event: 16 timers, and 16 that wait in vain.
const PART: usize = 32;

const DUE: Micros = Micros::from_millis(100);

/// How many are refused, all of them for that reason.
fn refused(actions: &[Action], reason: RejectReason) -> u64 {
    let mut count = 0;
    for action in actions {
        if let Action::Reject { why, .. } = *action {
            assert_eq!(why, reason);
            count += 1;
        }
    }
    count
}

fn opened(actions: &[Action]) -> Vec<u64> {
    let id = |action: &Action| match action {
        Action::Open { sequence, .. } => Some(sequence.request.0),
        _ => None,
    };
    actions.iter().filter_map(id).collect()
}

/// One worker with four pages, and more that wait than it ever takes.
fn crowd(deadline: Micros) -> Brain {
    let mut brain = Brain::new(plain());
    brain.handle(Micros(0), joined(1, worker(Role::Mixed, 4)));
    brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
    for id in 2..2 + MANY {
        let mut facts = request(id, 8, 8);
        facts.deadline = deadline;
        assert_eq!(brain.handle(Micros(0), Event::RequestArrived(facts)), []);
    }
    brain
}

/// Wakes it until it has done all that is due. No wake does more than a part.
fn pump(brain: &mut Brain, now: Micros) -> Vec<Action> {
    let mut all = Vec::new();
    while brain.next_wake().is_some_and(|at| at <= now) {
        let part = brain.handle(now, Event::Woke);
        assert!(part.len() <= PART, "{} actions", part.len());
        all.extend(part);
    }
    all
}

fn done(slot: u32) -> Event {
    said(StepReport {
        closed: vec![closed(slot, CloseReason::Stop)],
        ..report(1, Role::Mixed)
    })
}

#[test]
fn thousands_that_wait_die_at_one_instant() {
    let mut brain = crowd(DUE);
    assert_eq!(brain.next_wake(), Some(DUE));
    let mut told = refused(&brain.handle(DUE, Event::Woke), DeadlineExceeded);
    assert!((16..=32).contains(&told), "{told}");
    // What comes between is not behind them all.
    let newcomer = request(9_999, 8, 8);
    for event in [Event::RequestArrived(newcomer), done(0)] {
        let part = brain.handle(DUE, event);
        assert!(part.len() <= PART, "{} actions", part.len());
        assert_eq!(opened(&part), [0_u64; 0], "in its turn");
        told += refused(&part, DeadlineExceeded);
    }
    let rest = pump(&mut brain, DUE);
    assert_eq!(told + refused(&rest, DeadlineExceeded), MANY);
    assert_eq!(opened(&rest), [9_999]);
    assert_eq!(brain.next_wake(), Some(NEVER));
}

#[test]
fn hundreds_that_run_die_at_one_instant() {
    let mut brain = Brain::new(plain());
    let mut large = worker(Role::Mixed, 10_000);
    (large.num_seqs_max, large.batch_tokens_max) = (1_000, Tokens(100_000));
    brain.handle(Micros(0), joined(1, large));
    let mut running = 0;
    for id in 0..500 {
        let mut facts = request(id, 8, 8);
        facts.deadline = DUE;
        running += opened(&brain.handle(Micros(0), Event::RequestArrived(facts))).len();
    }
    assert_eq!(running, 500);
    let told = pump(&mut brain, DUE);
    let closes = |action: &&Action| matches!(action, Action::Close { .. });
    assert_eq!(told.iter().filter(closes).count(), 500);
    assert_eq!(refused(&told, DeadlineExceeded), 500);
}

#[test]
fn thousands_give_up_waiting_for_a_worker() {
    let config = BrainConfig {
        no_worker_wait: DUE,
        ..plain()
    };
    for is_saved in [false, true] {
        let mut brain = Brain::new(config.clone());
        brain.handle(Micros(0), joined(1, worker(Role::Mixed, 4)));
        brain.handle(Micros(0), Event::RequestArrived(request(1, 8, 8)));
        for id in 2..2 + MANY {
            brain.handle(Micros(0), Event::RequestArrived(request(id, 8, 8)));
        }
        let session = SessionId(1);
        brain.handle(Micros(0), Event::SessionLost { session });
        let first = brain.handle(DUE, Event::Woke);
        assert_eq!(refused(&first, NoWorker), 16);
        if is_saved {
            // All others stay, and go when there is room.
            let joined = brain.handle(DUE, joined(2, worker(Role::Mixed, 4)));
            assert_eq!(opened(&joined).len(), 1);
            assert_eq!(refused(&pump(&mut brain, DUE), NoWorker), 0);
            assert_eq!(brain.status().requests_waiting as u64, MANY - 16);
        } else {
            assert_eq!(refused(&pump(&mut brain, DUE), NoWorker), MANY + 1 - 16);
            assert_eq!(brain.next_wake(), None);
        }
    }
}

#[test]
fn thousands_fit_nobody_any_more() {
    let mut brain = crowd(Micros(u64::MAX));
    let mut small = worker(Role::Mixed, 40);
    small.model_len_max = Tokens(12);
    brain.handle(Micros(1), joined(2, small));
    let session = SessionId(1);
    let lost = brain.handle(Micros(1), Event::SessionLost { session });
    let told = refused(&lost, TooLarge);
    assert!(told <= 32, "{told} at once");
    assert_eq!(brain.next_wake(), Some(Micros(1)), "it goes on at once");
    let rest = refused(&pump(&mut brain, Micros(1)), TooLarge);
    // The one that ran waits a moment: deaths come together.
    assert_eq!(told + rest, MANY);
}
