//! Very many, and very long.

use dopd_core::{
    brain::BrainConfig,
    policy::{Order, PolicyConfig},
    request::RejectReason,
    units::{Micros, Tokens},
};

use crate::support::{
    self,
    line::{Line, millis},
    request,
};

/// Shortest first, and no other rule.
fn shortest_first() -> BrainConfig {
    BrainConfig {
        queue_requests_max: 200_000,
        queue_tokens_max: u64::MAX,
        policy: PolicyConfig {
            order: Order::Sjf,
            ..PolicyConfig::plain()
        },
        ..support::plain()
    }
}

#[test]
fn a_hundred_thousand_wait_go_in_order_and_leave() {
    const WAITING: u64 = 100_000;
    let mut line = Line::new(shortest_first(), 1);
    line.arrive(request(WAITING, 1, 1));
    // Every length from 2 to 100,001 once, in no order: 7 and the number have no common factor.
    let length = |id: u64| u32::try_from(2 + id * 7_777_777 % WAITING).unwrap();
    (0..WAITING).for_each(|id| line.arrive(request(id, length(id), 1)));
    let status = line.brain.status();
    assert_eq!(status.requests_waiting as u64, WAITING);
    line.placed.clear();
    (0..200).for_each(|_| assert!(line.finish(1).is_some()));
    let lengths: Vec<u32> = line.placed.iter().map(|&id| length(id)).collect();
    assert_eq!(lengths, (2..202).collect::<Vec<u32>>());
    for id in 0..WAITING {
        line.cancel(id);
    }
    let status = line.brain.status();
    assert_eq!((status.requests_waiting, status.tokens_waiting), (0, 0));
}

#[test]
fn the_greatest_numbers_are_served_or_refused() {
    let mut line = Line::new(shortest_first(), 4);
    let (half, most) = (1 << 28, u32::MAX);
    for (id, prompt, answer) in [(0, half, 1), (1, 1, half), (2, most, most), (3, most, 1)] {
        let mut facts = request(id, prompt, answer);
        facts.slo.ttft = Some(Micros(u64::MAX));
        facts.deadline = Micros(u64::MAX);
        facts.priority = i32::MIN;
        line.arrive(facts);
    }
    line.wait(millis(1_000));
    let refused: Vec<_> = line.refused.iter().map(|&(id, why, _)| (id, why)).collect();
    assert_eq!(
        refused,
        [(2, RejectReason::TooLarge), (3, RejectReason::TooLarge)]
    );
    assert_eq!(line.placed, [0, 1]);
    assert_eq!(line.finish(1), Some(0));
    assert_eq!(line.finish(half), Some(1));
    assert_eq!(line.brain.status().sequences_running, 0);
    assert_eq!(Tokens(most).plus(Tokens(1)), Tokens(most));
}
