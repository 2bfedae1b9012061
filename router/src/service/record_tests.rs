//! Cached tokens of a request: what its first run found, counted once.

use std::{sync::Arc, time::Instant};

use super::{
    Arrival,
    record::{Asked, Record},
};
use crate::{
    auth::Caller,
    metrics::{Metrics, SloTargets},
    streams::sink::SeatNews,
};

/// Of a request by nobody in particular.
pub(super) fn record(asked: Asked) -> Record {
    let arrival = Arrival {
        id: String::new(),
        at: Instant::now(),
        caller: Caller::default(),
        traceparent: String::new(),
        trace: None,
        client_id: None,
        lease: None,
    };
    Record::new(&arrival, &Metrics::new("m"), asked)
}

/// Two prompts of 50 tokens with two choices each.
fn twice_two() -> Record {
    let asked = Asked {
        prompt_tokens: 100,
        choices: 4,
        choices_each: 2,
        limit_tokens: 9,
        targets: SloTargets::default(),
        operation: "text_completion",
    };
    record(asked)
}

#[test]
fn first_run_of_the_first_choice_of_each_prompt_counts() {
    let mut record = twice_two();
    let worker: Arc<str> = Arc::from("w");
    let mut told = |choice, tokens| {
        let now = Instant::now();
        record.seat(choice, SeatNews::Placed { worker: &worker }, now);
        record.seat(choice, SeatNews::Reused { tokens }, now);
        record.cached_tokens()
    };
    assert_eq!(told(0, 32), 32);
    assert_eq!(told(1, 48), 32, "another choice of the same prompt");
    assert_eq!(told(2, 16), 48, "the next prompt");
    assert_eq!(told(3, 48), 48);
    assert_eq!(told(0, 48), 48, "a replay finds what the first run left");
}

#[test]
fn never_more_than_the_prompt() {
    let mut record = twice_two();
    let worker: Arc<str> = Arc::from("w");
    for choice in [0, 2] {
        let now = Instant::now();
        record.seat(choice, SeatNews::Placed { worker: &worker }, now);
        record.seat(choice, SeatNews::Reused { tokens: 90 }, now);
    }
    assert_eq!(record.cached_tokens(), 100);
}
