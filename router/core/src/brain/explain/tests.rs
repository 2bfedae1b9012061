//! The ring: bounded, indexed, and right about what it forgot.

use super::*;

fn id(request: u64, choice: u8) -> SequenceId {
    SequenceId {
        request: RequestId(request),
        choice,
    }
}

fn note(ring: &mut Explain, at: u64, sequence: SequenceId, chose: Chosen) {
    let considered = ring.considered();
    ring.note(Micros(at), sequence, Saw::default(), chose, considered);
}

#[test]
fn decisions_of_a_request_are_told_in_order_over_all_choices() {
    let mut ring = Explain::new(8);
    for (at, choice) in [(1, 0), (2, 1), (3, 0)] {
        note(&mut ring, at, id(7, choice), Chosen::Queue);
    }
    note(&mut ring, 4, id(8, 0), Chosen::Queue);
    let told = ring.of_requests(&[RequestId(7)]);
    let rows = told.decisions.iter().map(|row| (row.at.0, row.sequence));
    let wanted = [(1, id(7, 0)), (2, id(7, 1)), (3, id(7, 0))];
    assert_eq!(rows.collect::<Vec<_>>(), wanted);
    assert!(!told.is_cut);
}

#[test]
fn what_waits_is_one_decision_that_is_brought_up_to_date() {
    let mut ring = Explain::new(8);
    (1..=5).for_each(|at| note(&mut ring, at, id(7, 0), Chosen::Wait));
    let told = ring.of_requests(&[RequestId(7)]).decisions;
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].at, told[0].until, told[0].times),
        (Micros(1), Micros(5), 5)
    );
}

#[test]
fn the_ring_forgets_the_oldest_and_says_so() {
    let mut ring = Explain::new(4);
    (0..6).for_each(|at| note(&mut ring, at, id(at / 3, 0), Chosen::Queue));
    let first = ring.of_requests(&[RequestId(0)]);
    assert_eq!(first.decisions.len(), 1);
    assert!(first.is_cut, "two earlier ones are gone");
    let ring_is = |oldest| ExplainRing {
        decisions: 4,
        decisions_max: 4,
        decisions_total: 6,
        oldest: Some(Micros(oldest)),
    };
    assert_eq!(first.ring, ring_is(2));
    note(&mut ring, 6, id(2, 0), Chosen::Queue);
    assert!(ring.of_requests(&[RequestId(0)]).decisions.is_empty());
    assert_eq!(ring.newest.len(), 2, "the index forgets with the rows");
}

#[test]
fn the_index_is_no_longer_than_the_ring() {
    let mut ring = Explain::new(16);
    for at in 0..1_000 {
        note(&mut ring, at, id(at * 7 % 40, 0), Chosen::Queue);
        assert!(ring.rows.len() <= 16 && ring.newest.len() <= ring.rows.len());
    }
}

#[test]
fn names_of_the_latest_sessions_are_kept() {
    let mut ring = Explain::new(4);
    (0..5_000).for_each(|session| ring.name(SessionId(session), "a"));
    assert_eq!(ring.names.len(), NAMES_MAX);
    assert!(ring.names.contains_key(&SessionId(4_999)));
}

#[test]
fn off_it_keeps_nothing() {
    let mut ring = Explain::new(0);
    let mut considered = ring.considered();
    considered.add(SessionId(1), Task::Prefill, 1, Verdict::Worse);
    ring.name(SessionId(1), "a");
    assert_eq!(considered.count, 0);
    assert!(ring.names.is_empty());
    assert_eq!(ring.of_requests(&[RequestId(1)]), Explanation::default());
}

#[test]
fn few_alternatives_are_listed_the_chosen_one_among_them_the_rest_counted() {
    let mut ring = Explain::new(4);
    let mut considered = ring.considered();
    for worker in 0..10 {
        considered.add(SessionId(worker), Task::Decode, 5, Verdict::Worse);
    }
    considered.add(SessionId(3), Task::Decode, 4, Verdict::Kv);
    considered.add(SessionId(99), Task::Decode, 1, Verdict::Chosen);
    ring.name(SessionId(99), "best");
    ring.note(
        Micros(1),
        id(1, 0),
        Saw::default(),
        Chosen::Wait,
        considered,
    );
    let told = ring.of_requests(&[RequestId(1)]);
    let row = &told.decisions[0];
    let verdicts = |verdict| {
        row.alternatives
            .iter()
            .filter(move |of| of.verdict == verdict)
    };
    assert_eq!(row.alternatives.len(), ALTERNATIVES_MAX);
    assert_eq!(row.alternatives_more, 5);
    assert_eq!(
        verdicts(Verdict::Kv)
            .map(|of| of.worker.0)
            .collect::<Vec<_>>(),
        [3]
    );
    assert_eq!(
        verdicts(Verdict::Chosen)
            .map(|of| of.worker.0)
            .collect::<Vec<_>>(),
        [99]
    );
    assert_eq!(told.workers[&SessionId(99)], "best");
}

#[test]
fn a_row_stays_small() {
    assert!(size_of::<Row>() <= 320, "{} bytes", size_of::<Row>());
}
