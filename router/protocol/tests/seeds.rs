//! Thousands of seeds: in CI so many as take a minute, by hand a hundred thousand.

#![expect(clippy::panic, reason = "helpers of tests stop the test")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use dopd_protocol::{Counts, metrics, run};

/// Seeds of every run (`faults.md`, T18).
const SEEDS: u64 = 2_000;
/// Seeds of the run by hand.
const SOAK_SEEDS: u64 = 100_000;
/// Seeds that failed once: `number name`, one a line.
const NAMED: &str = include_str!("seeds.txt");

/// Runs seeds `0..count` on all cores; stops at the first that fails.
fn all(count: u64) -> Counts {
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = || {
        let metrics = metrics();
        let mut sum = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return sum;
            }
            let outcome = run(seed, &metrics, false);
            if let Some(why) = outcome.broken {
                next.store(count, Ordering::Relaxed);
                panic!("seed {seed}: {why}; cargo run -p dopd-protocol -- --seed {seed} tells how");
            }
            sum.add(&outcome.counts);
        }
    };
    let mut sum = Counts::default();
    thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        for share in shares {
            match share.join() {
                Ok(counts) => sum.add(&counts),
                Err(failed) => std::panic::resume_unwind(failed),
            }
        }
    });
    sum
}

/// Nothing is lost, nothing hangs, nothing is wrong; and the seeds reach what they are to test.
#[test]
fn every_seed_ends_clean() {
    let reached = all(SEEDS);
    let least = [
        ("finished", reached.finished, 10 * SEEDS / 2),
        ("handoffs", reached.handoffs, 2 * SEEDS),
        ("replays", reached.replays, SEEDS / 4),
        ("fences", reached.fences, SEEDS / 2),
        ("late_writes", reached.late_writes, SEEDS / 20),
        ("aborts", reached.aborts, SEEDS / 20),
        ("leases_over", reached.leases_over, SEEDS / 20),
        ("old_messages", reached.old_messages, SEEDS / 200),
        ("flips", reached.flips, SEEDS / 20),
        ("preempted", reached.preempted, SEEDS / 10),
        ("mixed", reached.mixed, SEEDS),
        ("pauses", reached.pauses, SEEDS / 40),
    ];
    for (what, count, least) in least {
        assert!(
            count >= least,
            "{what}: {count}, at least {least}: {reached:?}"
        );
    }
}

/// A seed that failed once is run for ever, by name.
#[test]
fn seeds_that_failed_once_end_clean() {
    let metrics = metrics();
    for line in NAMED.lines().filter(|line| !line.starts_with('#')) {
        let Some((seed, name)) = line.split_once(' ') else {
            panic!("seeds.txt: {line:?} is not `number name`");
        };
        let Ok(seed) = seed.parse() else {
            panic!("seeds.txt: {seed:?} is no number");
        };
        let outcome = run(seed, &metrics, false);
        assert_eq!(outcome.broken, None, "seed {seed}, {name}");
    }
}

/// What a seed tells today it tells tomorrow: without that no failure could be looked at.
#[test]
fn a_seed_always_goes_the_same_way() {
    let metrics = metrics();
    for seed in 0..20 {
        let (first, second) = (run(seed, &metrics, true), run(seed, &metrics, true));
        assert!(first.trace.len() > 100, "{} lines", first.trace.len());
        for (line, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "line {line} of seed {seed}");
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
    }
}

/// `make soak`.
#[test]
#[ignore = "many minutes: run by hand with --ignored"]
fn a_hundred_thousand_seeds_end_clean() {
    all(SOAK_SEEDS);
}
