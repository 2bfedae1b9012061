//! How fast the simulator is, in seconds of this thread on a core: what others do on the machine
//! does not count.
//!
//! ```text
//! cargo run --release -p dopd-sim --example speed [WORKERS REQUESTS [POLICY
//! [REQUESTS_PER_S_EACH]]]
//! ```
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::{env, error::Error, fs, ops::ControlFlow, sync::Arc};

use dopd_sim::{
    report::Figures,
    run,
    setup::Setup,
    trace::{Sources, Spec, make},
};

/// Requests per second and worker: about 60 % of what eight workers bear.
const RATE_EACH: f64 = 12.0;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let word = |at: usize| words.get(at).map(String::as_str);
    let policy = word(2).unwrap_or("dopd");
    let rate: f64 = word(3).map_or(Ok(RATE_EACH), str::parse)?;
    println!("workers requests policy | seconds requests/s events/s ns/event | attainment");
    match (word(0), word(1)) {
        (Some(workers), Some(requests)) => once(workers.parse()?, requests.parse()?, policy, rate),
        _ => [(8, 500_000), (100, 500_000), (2_000, 1_000_000)]
            .into_iter()
            .try_for_each(|(workers, requests)| once(workers, requests, policy, rate)),
    }
}

fn once(workers: u32, requests: u32, policy: &str, rate: f64) -> Result<(), Box<dyn Error>> {
    let rate = rate * f64::from(workers);
    let seconds = f64::from(requests) / rate;
    let spec = Spec::parse(&format!(
        "poisson:rate={rate},seconds={seconds},prompt=800~0.8,output=150~0.7"
    ))?;
    let trace = Arc::new(make(&spec, Sources::default(), 1));
    let setup = Setup {
        workers,
        policy: policy.to_owned(),
        max_tokens: 1_024,
        ..Setup::default()
    };
    let scenario = setup.scenario(trace)?;
    let count = scenario.trace.requests.len() as f64;
    let begun = cpu_s()?;
    let outcome = run(&scenario, &mut |_| ControlFlow::Continue(()))?;
    let took = cpu_s()? - begun;
    let events = outcome.events as f64;
    let figures = Figures::of(&outcome, &scenario.slo);
    println!(
        "{workers:7} {count:8} {policy} | {took:7.2} {:10.0} {:8.0} {:8.0} | {:?} breaks {}",
        count / took,
        events / took,
        took / events * 1e9,
        figures.attainment,
        outcome.breaks,
    );
    Ok(())
}

/// Seconds that this thread has run for, as Linux counts them.
fn cpu_s() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = stat.split(' ').next().ok_or("schedstat is empty")?;
    Ok(ns.parse::<f64>()? / 1e9)
}
