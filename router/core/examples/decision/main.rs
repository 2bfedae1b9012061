//! What a decision of the brain costs: CPU time of this thread from an event to its actions, by the
//! number of workers and of requests that wait. `bench/decision.py` runs it.
//!
//! ```text
//! cargo run --release -p dopd-core --example decision -- WORKERS WAITING TIMES
//! ```
//!
//! Prints one JSON document. With WAITING = 0 requests are served as they come. An arrival is an
//! event like any other: what else is due at that time happens as well, so in a large fleet a dozen
//! workers get their prompts at some of them. `decision` is the same by prompt that got its place.
#![expect(clippy::print_stdout, reason = "a program for people")]

#[expect(dead_code, reason = "tests use the rest")]
mod desk;

use std::{env, error::Error};

use desk::{Desk, Kind};
use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [workers, waiting, times] = words.as_slice() else {
        return Err("usage: decision WORKERS WAITING TIMES".into());
    };
    let (waiting, times): (usize, usize) = (waiting.parse()?, times.parse()?);
    let mut desk = Desk::new(workers.parse()?, false);
    desk.fill(waiting);
    // The first ones are not to pay for what the fill left behind.
    desk.counted_arrivals(100);
    let mut taken: [Vec<u64>; 3] = Default::default();
    let mut decisions = Vec::new();
    desk.run(times, thread_ns, &mut |kind, ns, opens| {
        if let Some(of_kind) = taken.get_mut(kind as usize) {
            of_kind.push(ns);
        }
        if kind == Kind::Arrival {
            decisions.push(ns / opens.max(1));
        }
    });
    let mut parts = vec![summary("decision", &mut decisions)];
    let kinds = [
        ("arrival", Kind::Arrival),
        ("place", Kind::Place),
        ("report", Kind::Report),
    ];
    parts.extend(
        kinds
            .into_iter()
            .filter_map(|(name, kind)| Some(summary(name, taken.get_mut(kind as usize)?))),
    );
    println!(
        "{{\"workers\": {workers}, \"waiting\": {waiting}, \"clock_ns\": {}, {}}}",
        clock_ns(),
        parts.join(", ")
    );
    Ok(())
}

/// Median, 99th percentile and mean of a kind, in nanoseconds.
fn summary(name: &str, taken: &mut [u64]) -> String {
    taken.sort_unstable();
    let count = taken.len();
    let at = |per_mille: usize| taken.get(count.saturating_sub(1) * per_mille / 1_000);
    let at = |per_mille| at(per_mille).copied().unwrap_or_default();
    let mean = taken.iter().sum::<u64>() / (count as u64).max(1);
    let (p50, p99, max) = (at(500), at(990), at(1_000));
    format!(
        "\"{name}\": {{\"count\": {count}, \"p50_ns\": {p50}, \"p99_ns\": {p99}, \
         \"mean_ns\": {mean}, \"max_ns\": {max}}}"
    )
}

/// CPU time of this thread.
fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    u64::try_from(ns).unwrap_or_default()
}

/// What reading the clock twice costs: it is part of every figure.
fn clock_ns() -> u64 {
    let mut least = u64::MAX;
    for _ in 0..1_000 {
        let begun = thread_ns();
        least = least.min(thread_ns().saturating_sub(begun));
    }
    least
}
