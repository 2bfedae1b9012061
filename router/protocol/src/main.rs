//! `dopd-protocol`: runs seeds of the simulation; one seed is told step by step. Exit codes: 0 all
//! is well, 1 something did not hold.

use std::{io::Write, process::ExitCode, time::Instant};

use clap::Parser;
use dopd_protocol::{Counts, metrics, run};

/// Deterministic simulation of the worker protocol.
#[derive(Debug, Parser)]
struct Cli {
    /// Replay this seed and print what happens.
    #[arg(long)]
    seed: Option<u64>,
    /// First of many seeds.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    count: u64,
    /// Go on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.seed {
        Some(seed) => replay(seed),
        None => many(&cli),
    };
    result.unwrap_or(ExitCode::FAILURE)
}

fn replay(seed: u64) -> std::io::Result<ExitCode> {
    let outcome = run(seed, &metrics(), true);
    let mut out = std::io::stdout().lock();
    for line in &outcome.trace {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{:?}", outcome.counts)?;
    match outcome.broken {
        None => writeln!(out, "seed {seed}: all is well")?,
        Some(why) => {
            writeln!(out, "seed {seed}: {why}")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn many(cli: &Cli) -> std::io::Result<ExitCode> {
    let metrics = metrics();
    let started = Instant::now();
    let mut out = std::io::stdout().lock();
    let mut total = Counts::default();
    let (mut failed, mut done) = (0_u64, 0_u64);
    for seed in cli.first..cli.first.saturating_add(cli.count) {
        let outcome = run(seed, &metrics, false);
        total.add(&outcome.counts);
        done += 1;
        if let Some(why) = outcome.broken {
            writeln!(out, "seed {seed}: {why}")?;
            failed += 1;
            if !cli.keep_going {
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = done as f64 / seconds.max(1e-9);
    writeln!(
        out,
        "{done} seeds, {failed} failed, {rate:.0} a second; {total:?}"
    )?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
