//! Deterministic simulation of the worker protocol: a seed is a fleet, its clients and its faults.
//!
//! Real, as shipped: the brain and the driver that feeds it (`dopd_core::brain`,
//! `dopd_router::dispatch::driver`), the front threads' streams and sinks (`streams`), sessions,
//! leases, links and slot tables (`workers`), and the seat tables of the mock workers with their
//! page pools (`dopd_mock::seats`), which Python's worker shares cell by cell.
//!
//! Simulated: time, each clock's pace, when a thread gets to run, the streams and data links, and
//! the loop of a worker's process (`worker`, `process`: the rules of `dopd_mock::worker` without
//! tasks and sockets). Not here: HTTP, tonic, the text of answers, Python.
//!
//! Page entries chain, so a lost, doubled, foreign or stale page draws wrong tokens; each client
//! knows its answer and looks at every token. The invariants of the hand-off's design are checked
//! by name at every event; once faults are over everything must end, and end clean.
//!
//! `cargo run -p dopd-protocol -- --seed N` replays a seed and prints what happened.

mod client;
mod clock;
mod fault;
mod link;
mod pipe;
mod plan;
mod process;
mod random;
mod router;
mod session;
mod show;
mod verdict;
mod worker;
mod world;

pub use verdict::Counts;

use dopd_router::metrics::Metrics;

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What did not hold; `None`: all is well.
    pub broken: Option<String>,
    /// What it reached.
    pub counts: Counts,
    /// What happened, a line each; empty unless asked for.
    pub trace: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, metrics: &Metrics, is_traced: bool) -> Outcome {
    let plan = plan::Plan::of(seed);
    let mut world = world::World::new(plan, metrics, is_traced);
    let result = world.run();
    let mut trace = world.clock.take_trace();
    if is_traced {
        trace.insert(0, format!("{:#?}", world.plan));
    }
    Outcome {
        broken: result.err(),
        counts: world.counts,
        trace,
    }
}

/// Metrics for simulations; one set may serve any number of them.
pub fn metrics() -> Metrics {
    Metrics::new("mock")
}
