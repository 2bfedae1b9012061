//! A link that is there for 200 ms and gone for 200 ms, for a minute (row C12): sequences move few
//! times, all are answered, and the worker behind it is held down instead of being given
//! the same work again and again.

use std::collections::{BTreeMap, BTreeSet};

use dopd_core::{
    action::Action,
    brain::Brain,
    event::{CloseReason, ClosedSeat, Event, Suspicion},
    fleet::Role,
    ids::{SeatId, SequenceId, SessionId, SlotId},
    units::{Micros, Tokens},
};

use crate::support::{joined, plain, report, request, said, worker};

/// Session of the worker behind the link; the other one is always there.
const FLAPS: SessionId = SessionId(1);

struct Bench {
    brain: Brain,
    now: Micros,
    /// Seats with the tokens that they lack.
    seats: BTreeMap<SeatId, (SequenceId, u32)>,
    closing: BTreeSet<SeatId>,
    places: BTreeMap<SequenceId, Vec<SessionId>>,
    finished: BTreeSet<SequenceId>,
}

impl Bench {
    fn tell(&mut self, event: Event) {
        for action in self.brain.handle(self.now, event) {
            match action {
                Action::Open { seat, sequence, .. } => {
                    self.seats.insert(seat, (sequence, 40));
                    self.places.entry(sequence).or_default().push(seat.session);
                }
                Action::Close { seat } => {
                    self.closing.insert(seat);
                }
                other => assert!(matches!(other, Action::Send { .. }), "{other:?}"),
            }
        }
    }

    /// What a worker has to say after a step: two tokens each.
    fn step(&mut self, session: SessionId) {
        let mut step = report(session.0, Role::Mixed);
        let end = |slot, why| ClosedSeat {
            slot,
            why,
            retry_after: Micros(0),
        };
        let of_session = |seat: &SeatId| seat.session == session;
        let seats: Vec<SeatId> = self.seats.keys().copied().filter(of_session).collect();
        for seat in seats {
            if self.closing.remove(&seat) {
                self.seats.remove(&seat);
                step.closed.push(end(seat.slot, CloseReason::Asked));
                continue;
            }
            let Some((sequence, left)) = self.seats.get_mut(&seat) else {
                continue;
            };
            *left -= 2;
            step.tokens.push((seat.slot, Tokens(2)));
            if *left == 0 {
                self.finished.insert(*sequence);
                self.seats.remove(&seat);
                step.closed.push(end(seat.slot, CloseReason::Length));
            }
        }
        self.tell(said(step));
    }
}

#[test]
fn flapping_link_moves_nobody_more_than_a_few_times() {
    let mut bench = Bench {
        brain: Brain::new(plain()),
        now: Micros(0),
        seats: BTreeMap::new(),
        closing: BTreeSet::new(),
        places: BTreeMap::new(),
        finished: BTreeSet::new(),
    };
    for session in 1..=2 {
        let mut facts = worker(Role::Mixed, 10_000);
        (facts.num_seqs_max, facts.batch_tokens_max) = (200, Tokens(10_000));
        facts.name = format!("worker {session}");
        bench.tell(joined(session, facts));
    }
    // 20 ms a tick: ten with the link, ten without, the ejection after four of these.
    for tick in 0..3_000_u64 {
        bench.now = bench.now.plus(Micros::from_millis(20));
        bench.tell(Event::Woke);
        bench.tell(Event::RequestArrived(request(tick, 8, 80)));
        bench.step(SessionId(2));
        match tick % 20 {
            0..10 => bench.step(FLAPS),
            13 => bench.tell(Event::WorkerSuspected {
                session: FLAPS,
                why: Suspicion::Silent,
            }),
            _ => {}
        }
    }
    for _ in 0..60 {
        bench.now = bench.now.plus(Micros::from_millis(20));
        bench.step(SessionId(2));
        bench.step(FLAPS);
    }
    assert_eq!(bench.finished.len(), 3_000);
    let most = bench.places.values().map(Vec::len).max();
    assert!(most <= Some(1 + 3), "{most:?}");
    // 150 times it came back; it was given work a few times, and then one sequence at a time.
    let at_it = |places: &&Vec<SessionId>| places.contains(&FLAPS);
    let given = bench.places.values().filter(at_it).count();
    assert!((10..300).contains(&given), "{given}");
    assert!(bench.seats.keys().all(|seat| seat.slot < SlotId(200)));
}
