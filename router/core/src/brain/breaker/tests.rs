//! The table of the breaker, row by row.

use super::*;

fn second(s: u64) -> Micros {
    Micros::from_millis(1_000 * s)
}

struct Bench {
    breaker: Breaker,
    config: BrainConfig,
    random: Random,
}

impl Bench {
    fn new() -> Self {
        Self {
            breaker: Breaker::new(),
            config: BrainConfig::default(),
            random: Random::new(7),
        }
    }

    fn hear(&mut self, at: Micros, outcome: Outcome) -> bool {
        let Self {
            breaker,
            config,
            random,
        } = self;
        breaker.hear(outcome, at, config, random)
    }

    /// How many of these outcomes open it.
    fn openings(&mut self, at: Micros, outcomes: &[Outcome]) -> usize {
        outcomes
            .iter()
            .filter(|&&outcome| self.hear(at, outcome))
            .count()
    }

    /// Opens it and waits until it is half-open. When that is, and how long it was open.
    fn open_until_half(&mut self, at: Micros) -> (Micros, Micros) {
        while !self.hear(at, Outcome::Failed) {}
        assert_eq!(self.breaker.state(), BreakerState::Open);
        assert!(self.breaker.is_shut());
        let due = self.breaker.due().unwrap_or_default();
        self.hear(Micros(due.0 - 1), Outcome::Due);
        assert!(self.breaker.is_shut(), "too early");
        self.hear(due, Outcome::Due);
        assert!(self.breaker.is_half_open());
        assert!(!self.breaker.is_shut());
        (due, due.since(at))
    }
}

use Outcome::{Due, Failed, Lost, Placed, Succeeded};

#[test]
fn five_failures_in_a_row_open_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.openings(second(1), &[Failed; 4]), 0);
    assert_eq!(bench.openings(second(1), &[Succeeded]), 0);
    assert_eq!(bench.openings(second(1), &[Failed; 4]), 0);
    // A row has no window.
    assert_eq!(bench.openings(second(60), &[Failed]), 1);
    // What still comes while it is open changes nothing.
    let due = bench.breaker.due();
    assert_eq!(bench.openings(second(60), &[Failed, Succeeded, Placed]), 0);
    assert_eq!((bench.breaker.due(), bench.breaker.is_shut()), (due, true));
}

#[test]
fn half_of_twenty_within_ten_seconds_open_it() {
    let mut bench = Bench::new();
    let pair = [Succeeded, Failed];
    for _ in 0..9 {
        assert_eq!(bench.openings(second(1), &pair), 0);
    }
    assert_eq!(bench.openings(second(10), &pair), 1);
    // Less than half do not.
    let mut bench = Bench::new();
    for _ in 0..30 {
        assert_eq!(
            bench.openings(second(1), &[Succeeded, Failed, Succeeded]),
            0
        );
    }
    // Neither do those of more than ten seconds ago count.
    let mut bench = Bench::new();
    for _ in 0..9 {
        bench.openings(second(1), &pair);
    }
    for _ in 0..9 {
        assert_eq!(bench.openings(second(11), &pair), 0);
    }
    assert_eq!(bench.openings(second(12), &pair), 1);
}

#[test]
fn waits_double_up_to_the_longest_and_are_random() {
    let mut bench = Bench::new();
    let (mut at, mut waits) = (second(1), Vec::new());
    for longest in [1, 2, 4, 8, 16, 30, 30] {
        let (due, wait) = bench.open_until_half(at);
        let longest = second(longest);
        let shortest = Micros(longest.0 * 3 / 4);
        assert!((shortest..=longest).contains(&wait), "{wait:?} {longest:?}");
        waits.push(wait.0 * 1_000 / longest.0);
        at = due;
    }
    waits.dedup();
    assert!(waits.len() > 3, "{waits:?}");
}

#[test]
fn probe_decides() {
    let mut bench = Bench::new();
    let (at, _) = bench.open_until_half(second(1));
    bench.hear(at, Placed);
    assert!(bench.breaker.is_shut(), "one at a time");
    assert_eq!(bench.breaker.state(), BreakerState::HalfOpen);
    // Nothing comes of it: another one.
    let due = bench.breaker.due();
    assert_eq!(due, Some(at.plus(PROBE)));
    bench.hear(at.plus(PROBE), Due);
    assert!(bench.breaker.is_half_open());
    bench.hear(at.plus(PROBE), Placed);
    assert_eq!(bench.openings(at.plus(PROBE), &[Succeeded]), 0);
    assert_eq!(bench.breaker.state(), BreakerState::Closed);
    assert_eq!(bench.breaker.due(), None);
    // It starts anew: four failures are none.
    assert_eq!(bench.openings(at.plus(PROBE), &[Failed; 4]), 0);
    // A probe that fails opens it again.
    let mut bench = Bench::new();
    let (at, _) = bench.open_until_half(second(1));
    bench.hear(at, Placed);
    assert_eq!(bench.openings(at, &[Failed]), 1);
}

#[test]
fn doubling_ends_after_a_long_quiet_time_only() {
    for (quiet_s, longest_s) in [(30, 2), (31, 1)] {
        let mut bench = Bench::new();
        let (at, _) = bench.open_until_half(second(1));
        bench.hear(at, Succeeded);
        let (_, wait) = bench.open_until_half(at.plus(second(quiet_s)));
        let longest = second(longest_s);
        assert!((Micros(longest.0 * 3 / 4)..=longest).contains(&wait));
    }
}

#[test]
fn second_loss_within_the_hold_down_opens_it() {
    for (apart_s, openings) in [(29, 1), (30, 0)] {
        let mut bench = Bench::new();
        assert_eq!(bench.openings(second(100), &[Lost]), 0);
        assert_eq!(bench.openings(second(100 + apart_s), &[Lost]), openings);
    }
    // While it is open one more changes nothing; when half-open it does.
    let mut bench = Bench::new();
    assert_eq!(bench.openings(second(1), &[Lost, Lost, Lost]), 1);
    let due = bench.breaker.due().unwrap_or_default();
    bench.hear(due, Due);
    assert_eq!(bench.openings(due, &[Placed, Lost]), 1);
}

#[test]
fn what_matters_is_not_forgotten() {
    let quiet = |bench: &mut Bench, at| bench.breaker.is_quiet(at, &bench.config);
    let mut bench = Bench::new();
    assert!(quiet(&mut bench, second(1)));
    bench.hear(second(1), Failed);
    assert!(!quiet(&mut bench, second(10)));
    assert!(quiet(&mut bench, second(11)));
    bench.hear(second(20), Lost);
    assert!(!quiet(&mut bench, second(49)));
    assert!(quiet(&mut bench, second(50)));
    let (at, _) = bench.open_until_half(second(60));
    assert!(!quiet(&mut bench, second(600)));
    bench.hear(at, Succeeded);
    assert!(!quiet(&mut bench, at.plus(second(30))));
    assert!(quiet(&mut bench, at.plus(second(31))));
}
