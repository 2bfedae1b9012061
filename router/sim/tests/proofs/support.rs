//! Scenarios and sums, shared by the proofs.
#![expect(
    clippy::unwrap_used,
    reason = "only tests call this; the lint knows test functions only"
)]

use std::{ops::ControlFlow, sync::Arc};

use dopd_core::{
    brain::BrainConfig,
    cost::Timings,
    fleet::Role,
    policy::{PolicyConfig, Refuse},
    units::Micros,
};
use dopd_sim::{
    Options,
    outcome::{Ending, Outcome},
    policies::named,
    run_with,
    scenario::{Scenario, SloRule, Trace, TraceRequest, WorkerSpec},
    trace::Random,
};

pub(crate) fn spec(role: Role) -> WorkerSpec {
    WorkerSpec {
        role,
        timings: Timings::h100_8b(),
        told: None,
        slowness_ratio: 1.0,
        page_tokens: 16,
        pages_total: 25_000,
        kv_bytes_per_token: 131_072,
        num_seqs_max: 512,
        batch_tokens_max: 8_192,
        model_len_max: 131_072,
        has_prefix_cache: false,
    }
}

pub(crate) fn request(arrival: u64, prompt_tokens: u32, output_tokens: u32) -> TraceRequest {
    TraceRequest {
        arrival: Micros(arrival),
        prompt_tokens,
        output_tokens,
        tenant: 0,
        priority: 0,
        key: None,
        blocks: Arc::from([]),
    }
}

/// Poisson arrivals, so many a second; lengths by `lengths`.
pub(crate) fn poisson(
    count: usize,
    rate: f64,
    seed: u64,
    mut lengths: impl FnMut(&mut Random) -> (u32, u32),
) -> Vec<TraceRequest> {
    let mut random = Random::new(seed);
    let mut at_us = 0.0;
    (0..count)
        .map(|_| {
            at_us += random.exponential() / rate * 1e6;
            let (prompt, output) = lengths(&mut random);
            request(whole(at_us), prompt, output)
        })
        .collect()
}

/// Chat: prompts of about 1,000 tokens, answers of about 150.
pub(crate) fn chat(random: &mut Random) -> (u32, u32) {
    let of = |random: &mut Random, median: f64, sigma: f64| {
        let tokens = median * libm::exp(sigma * random.normal());
        u32::try_from(whole(tokens).clamp(1, 30_000)).unwrap()
    };
    (of(random, 800.0, 0.8), of(random, 120.0, 0.7))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "above 0, below 2^53"
)]
pub(crate) fn whole(value: f64) -> u64 {
    libm::round(value) as u64
}

/// A fleet under a policy of that name that refuses nobody.
pub(crate) fn scenario(name: &str, workers: usize, requests: Vec<TraceRequest>) -> Scenario {
    let (mut policy, roles) = named(name, workers).unwrap();
    policy.refuse = Refuse::Never;
    of(policy, roles.into_iter().map(spec).collect(), requests)
}

pub(crate) fn of(
    mut policy: PolicyConfig,
    fleet: Vec<WorkerSpec>,
    requests: Vec<TraceRequest>,
) -> Scenario {
    let slo = SloRule {
        ttft: Micros::from_millis(500),
        ttft_prefill_ratio: 3.0,
        tpot: Micros::from_millis(30),
    };
    policy.ttft = slo.ttft;
    policy.tpot = slo.tpot;
    policy.step.tpot = slo.tpot;
    Scenario {
        trace: Arc::new(Trace {
            name: "made".to_owned(),
            block_tokens: 0,
            requests,
        }),
        fleet,
        brain: BrainConfig {
            policy,
            queue_requests_max: usize::MAX,
            queue_tokens_max: u64::MAX,
            ..BrainConfig::default()
        },
        slo,
        faults: Vec::new(),
        network: Micros(100),
        max_tokens: 1_024,
        seed: 1,
    }
}

pub(crate) fn run(scenario: &Scenario) -> Outcome {
    told(scenario, Options::default())
}

pub(crate) fn told(scenario: &Scenario, options: Options) -> Outcome {
    run_with(scenario, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Every request ended exactly once, every page is back, nobody was taken for a liar.
pub(crate) fn ends_clean(outcome: &Outcome) {
    assert_eq!((outcome.breaks, outcome.pages_left), (0, 0));
    for (index, request) in outcome.requests.iter().enumerate() {
        assert_ne!(
            request.ending,
            Ending::Unfinished,
            "request {index}: {request:?}"
        );
        let (first, end) = (request.first, request.end);
        assert!(
            end >= first && end >= Some(request.arrival),
            "request {index}: {request:?}"
        );
        if request.ending == Ending::Finished {
            assert!(
                first.is_some_and(|first| first >= request.arrival),
                "request {index}"
            );
        }
    }
}

pub(crate) fn all_finish(outcome: &Outcome) {
    ends_clean(outcome);
    let rejected = outcome
        .requests
        .iter()
        .position(|one| one.ending == Ending::Rejected);
    assert_eq!(rejected, None, "of {}", outcome.requests.len());
}

pub(crate) fn sojourns(outcome: &Outcome) -> impl Iterator<Item = u64> {
    outcome
        .requests
        .iter()
        .filter_map(|request| Some(request.end?.since(request.arrival).0))
}

pub(crate) fn mean(values: impl Iterator<Item = u64>) -> f64 {
    let (mut sum, mut count) = (0_u64, 0_u64);
    for value in values {
        sum += value;
        count += 1;
    }
    sum as f64 / count as f64
}

/// Within so many percent.
#[track_caller]
pub(crate) fn is_near(seen: f64, wanted: f64, percent: f64) {
    let off = (seen / wanted - 1.0) * 100.0;
    assert!(off.abs() <= percent, "{seen} is {off:.2} % off {wanted}");
}
