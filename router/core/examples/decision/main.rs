//! What a decision of the brain costs: CPU time of this thread from an event to its actions, by the
//! number of workers and of requests that wait. `bench/decision.py` runs it.
//!
//! ```text
//! cargo run --release -p dopd-core --example decision -- WORKERS WAITING TIMES
//! ```
//!
//! Prints one JSON document. With WAITING = 0 requests are served as they come. `arrival`, `wake`
//! and `report` are events, each with what it led to; `due` is an arrival with the wakes that its
//! millisecond made due, several prompts at some of them in a large fleet; `placed` and `total_ns`
//! are over all events.
#![expect(clippy::print_stdout, reason = "a program for people")]

#[expect(dead_code, reason = "tests use the rest")]
mod desk;

use std::{env, error::Error};

use desk::{Desk, Kind, Told, thread_ns};

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
    let (mut due, mut placed, mut total_ns) = (Vec::new(), 0, 0);
    desk.run(times, thread_ns, &mut |told: Told| {
        placed += told.placed;
        total_ns += told.ns;
        if let Some(of_kind) = taken.get_mut(told.kind as usize) {
            of_kind.push(told.ns);
        }
        match (told.kind, due.last_mut()) {
            (Kind::Arrival, _) => due.push(told.ns),
            (Kind::Wake, Some(due)) => *due += told.ns,
            _ => {}
        }
    });
    let [arrivals, wakes, reports] = &mut taken;
    let parts = [
        summary("arrival", arrivals),
        summary("wake", wakes),
        summary("report", reports),
        summary("due", &mut due),
    ];
    println!(
        "{{\"workers\": {workers}, \"waiting\": {waiting}, \"clock_ns\": {}, \"placed\": {placed}, \
         \"total_ns\": {total_ns}, {}}}",
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

/// What reading the clock twice costs: it is part of every figure.
fn clock_ns() -> u64 {
    let mut least = u64::MAX;
    for _ in 0..1_000 {
        let begun = thread_ns();
        least = least.min(thread_ns().saturating_sub(begun));
    }
    least
}
