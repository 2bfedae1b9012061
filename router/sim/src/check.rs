//! Whether a scenario can run at all. Called by `engine`.

use std::ops::RangeInclusive;

use crate::{
    error::{COUNT_MAX, SimError},
    scenario::{FaultKind, Scenario, WorkerSpec},
};

/// Largest page, in tokens.
const PAGE_TOKENS_MAX: u32 = 4_096;

/// Longest prompt plus answer: positions are added up in 32 bits.
const LEN_MAX: u32 = 1 << 30;

/// Times that a worker is slower than its timings.
const SLOWNESS: RangeInclusive<f64> = 1e-3..=1e6;

/// The number of workers.
pub(crate) fn scenario(scenario: &Scenario) -> Result<u32, SimError> {
    let too_many = |what, count| SimError::TooMany { what, count };
    let fleet = &scenario.fleet;
    let workers = u32::try_from(fleet.len()).map_err(|_| too_many("workers", fleet.len()))?;
    if workers == 0 {
        return Err(SimError::NoWorker);
    }
    for (index, spec) in fleet.iter().enumerate() {
        worker(index, spec)?;
    }
    scenario.brain.policy.check()?;
    requests(scenario)?;
    faults(scenario)?;
    Ok(workers)
}

fn worker(index: usize, spec: &WorkerSpec) -> Result<(), SimError> {
    for timings in spec.told.iter().chain([&spec.timings]) {
        timings
            .check()
            .map_err(|source| SimError::Timings { index, source })?;
    }
    let ratio = spec.slowness_ratio;
    let numbers = [
        (
            "page_tokens",
            f64::from(spec.page_tokens),
            (1..=PAGE_TOKENS_MAX).contains(&spec.page_tokens),
            "1 to 4096",
        ),
        (
            "model_len_max",
            f64::from(spec.model_len_max),
            (1..=LEN_MAX).contains(&spec.model_len_max),
            "1 to 2^30",
        ),
        (
            "slowness_ratio",
            ratio,
            SLOWNESS.contains(&ratio),
            "0.001 to 1000000",
        ),
        (
            "batch_tokens_max",
            f64::from(spec.batch_tokens_max),
            spec.batch_tokens_max > spec.num_seqs_max,
            "more than num_seqs_max, or prompts would starve",
        ),
    ];
    let bad = numbers.into_iter().find(|&(_, _, is_good, _)| !is_good);
    bad.map_or(Ok(()), |(field, value, _, limits)| {
        Err(SimError::Worker {
            index,
            field,
            value,
            limits,
        })
    })
}

fn requests(scenario: &Scenario) -> Result<(), SimError> {
    let requests = &scenario.trace.requests;
    if requests.len() > COUNT_MAX {
        let count = requests.len();
        return Err(SimError::TooMany {
            what: "requests",
            count,
        });
    }
    let mut before = 0;
    for (index, request) in requests.iter().enumerate() {
        let arrival_us = request.arrival.0;
        if arrival_us < before {
            return Err(SimError::Unsorted { index, arrival_us });
        }
        before = arrival_us;
        let (prompt, output) = (request.prompt_tokens, request.output_tokens);
        let is_good = |tokens| (1..=LEN_MAX).contains(&tokens);
        if !is_good(prompt) || !is_good(output) {
            return Err(SimError::Length {
                index,
                prompt,
                output,
            });
        }
    }
    Ok(())
}

fn faults(scenario: &Scenario) -> Result<(), SimError> {
    let workers = scenario.fleet.len();
    let mut before = 0;
    for (index, fault) in scenario.faults.iter().enumerate() {
        if fault.at.0 < before {
            return Err(SimError::FaultsUnsorted { index });
        }
        before = fault.at.0;
        if let FaultKind::Slows { ratio } = fault.kind
            && !SLOWNESS.contains(&ratio)
        {
            return Err(SimError::Slowness { index, ratio });
        }
        let worker = fault.worker;
        if worker >= workers {
            return Err(SimError::Fault {
                index,
                worker,
                workers,
            });
        }
    }
    Ok(())
}
