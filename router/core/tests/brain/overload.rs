//! Three times the load that the fleet can take, each with a deadline (E1, E8): what is done
//! is done in time, what cannot be is refused early, and nothing is begun in vain.

use std::collections::BTreeMap;

use dopd_core::{
    action::Action,
    brain::Brain,
    event::{CloseReason, ClosedSeat, Event},
    fleet::Role,
    ids::{SeatId, SequenceId, SessionId},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::support::{joined, plain, report, request, said, worker};

/// One step of the worker, in which each of its eight seats makes a token.
const STEP: Micros = Micros::from_millis(10);

/// Eight seats, 40 tokens of 10 ms each.
const CAPACITY_PER_S: u64 = 20;

#[derive(Default)]
struct Count {
    finished: u64,
    /// Ended by their deadline, and tokens made for them.
    died: u64,
    wasted: u64,
    refused: u64,
    dropped: u64,
}

struct Bench {
    brain: Brain,
    now: Micros,
    /// Tokens made and left per seat.
    seats: BTreeMap<SeatId, (SequenceId, u32, u32)>,
    closing: Vec<SeatId>,
    count: Count,
    lengths: fn(u64) -> u32,
}

impl Bench {
    fn new(lengths: fn(u64) -> u32) -> Self {
        let mut bench = Self {
            brain: Brain::new(plain()),
            now: Micros(0),
            seats: BTreeMap::new(),
            closing: Vec::new(),
            count: Count::default(),
            lengths,
        };
        bench.tell(joined(1, worker(Role::Mixed, 10_000)));
        bench
    }

    fn tell(&mut self, event: Event) {
        for action in self.brain.handle(self.now, event) {
            match action {
                Action::Open { seat, sequence, .. } => {
                    let len = (self.lengths)(sequence.request.0);
                    self.seats.insert(seat, (sequence, 0, len));
                }
                Action::Close { seat } => {
                    self.count.died += 1;
                    self.count.wasted += self.seats.get(&seat).map_or(0, |one| u64::from(one.1));
                    self.closing.push(seat);
                }
                Action::Reject { why, .. } => match why {
                    RejectReason::QueueFull => self.count.refused += 1,
                    _ => self.count.dropped += 1,
                },
                other => assert!(matches!(other, Action::Send { .. }), "{other:?}"),
            }
        }
    }

    fn step(&mut self) {
        let mut step = report(1, Role::Mixed);
        let end = |slot, why| ClosedSeat {
            slot,
            why,
            retry_after: Micros(0),
        };
        for seat in std::mem::take(&mut self.closing) {
            self.seats.remove(&seat);
            step.closed.push(end(seat.slot, CloseReason::Asked));
        }
        for (seat, (_, made, left)) in &mut self.seats {
            (*made, *left) = (*made + 1, *left - 1);
            step.tokens.push((seat.slot, Tokens(1)));
            if *left == 0 {
                step.closed.push(end(seat.slot, CloseReason::Stop));
                self.count.finished += 1;
            }
        }
        self.seats.retain(|_, (_, _, left)| *left > 0);
        self.tell(said(step));
    }

    /// So many requests a second for so long.
    fn run(&mut self, per_s: u64, seconds: u64, id: &mut u64) {
        let until = self.now.plus(Micros::from_millis(1_000 * seconds));
        let mut due = 0;
        while self.now < until {
            self.now = self.now.plus(STEP);
            self.tell(Event::Woke);
            due += per_s;
            while due >= 100 {
                due -= 100;
                *id += 1;
                let mut facts = request(*id, 8, 100);
                facts.deadline = self.now.plus(Micros::from_millis(3_000));
                self.tell(Event::RequestArrived(facts));
            }
            self.step();
        }
    }
}

#[test]
fn three_times_the_load_costs_nothing_of_what_is_done_in_time() {
    let mixed = |id: u64| 20 + u32::try_from(id * 2_654_435_761 % 41).unwrap_or(0);
    let equal: fn(u64) -> u32 = |_| 40;
    for (name, lengths) in [("equal", equal), ("mixed", mixed)] {
        let (mut bench, mut id) = (Bench::new(lengths), 0);
        // Some that are answered: the brain has seen how fast the fleet is.
        bench.run(CAPACITY_PER_S / 2, 4, &mut id);
        assert_eq!((bench.count.died, bench.count.refused), (0, 0), "{name}");
        bench.run(3 * CAPACITY_PER_S, 10, &mut id);
        bench.count = Count::default();
        bench.run(3 * CAPACITY_PER_S, 30, &mut id);
        let Count {
            finished,
            died,
            wasted,
            refused,
            dropped,
        } = bench.count;
        let seen = format!("{name}: {finished} {died} {wasted} {refused} {dropped}");
        assert!(finished * 100 >= 30 * CAPACITY_PER_S * 95, "{seen}");
        assert!(wasted * 100 <= finished * 40 * 5, "{seen}");
        assert!(refused > finished, "{seen}");
        // The load falls: nobody is refused any more.
        bench.run(CAPACITY_PER_S / 2, 6, &mut id);
        bench.count = Count::default();
        bench.run(CAPACITY_PER_S / 2, 6, &mut id);
        let left = (bench.count.refused, bench.count.dropped, bench.count.died);
        assert_eq!(left, (0, 0, 0), "{name}");
        assert!(!bench.seats.keys().any(|seat| seat.session != SessionId(1)));
    }
}

#[test]
fn a_deadline_that_no_fleet_could_meet_is_not_judged() {
    let (mut bench, mut id) = (Bench::new(|_| 40), 0);
    bench.run(CAPACITY_PER_S / 2, 4, &mut id);
    bench.run(3 * CAPACITY_PER_S, 6, &mut id);
    bench.run(CAPACITY_PER_S / 2, 6, &mut id);
    // 400 ms are needed; with 100 ms the prediction would refuse what may be short.
    let mut facts = request(9_999, 8, 100);
    facts.deadline = bench.now.plus(Micros::from_millis(100));
    let placed = bench.brain.handle(bench.now, Event::RequestArrived(facts));
    assert!(matches!(placed[..], [Action::Open { .. }]), "{placed:?}");
}

#[test]
fn hint_of_a_full_queue_is_the_time_that_the_queue_takes() {
    let (mut bench, mut id) = (Bench::new(|_| 40), 0);
    bench.run(CAPACITY_PER_S / 2, 2, &mut id);
    bench.run(3 * CAPACITY_PER_S, 10, &mut id);
    let waiting = bench.brain.status().requests_waiting as u64;
    let mut facts = request(9_999, 8, 100);
    facts.deadline = bench.now.plus(Micros::from_millis(1_000));
    let refused = bench.brain.handle(bench.now, Event::RequestArrived(facts));
    let [
        Action::Reject {
            why: RejectReason::QueueFull,
            retry_after,
            ..
        },
    ] = refused[..]
    else {
        panic!("{refused:?}");
    };
    let expected_ms = waiting * 1_000 / CAPACITY_PER_S;
    let range = Micros::from_millis(expected_ms / 2)..=Micros::from_millis(expected_ms * 3 / 2);
    assert!(
        range.contains(&retry_after),
        "{retry_after:?} {expected_ms}"
    );
}

#[test]
fn who_goes_before_all_that_wait_is_not_refused_for_them() {
    let (mut bench, mut id) = (Bench::new(|_| 40), 0);
    bench.run(CAPACITY_PER_S / 2, 2, &mut id);
    bench.run(3 * CAPACITY_PER_S, 10, &mut id);
    let deadline = bench.now.plus(Micros::from_millis(1_000));
    for (priority, is_refused) in [(0, true), (-1, false)] {
        id += 1;
        let mut facts = request(id, 8, 100);
        (facts.priority, facts.deadline) = (priority, deadline);
        let actions = bench.brain.handle(bench.now, Event::RequestArrived(facts));
        let refuses = |action: &Action| matches!(action, Action::Reject { .. });
        assert_eq!(actions.iter().any(refuses), is_refused, "{priority}");
    }
}
