//! One decode worker bears what its formula says: bound by its pool, and by the time per token.

use dopd_core::{
    cost::{StepShape, Timings},
    policy::Reserve,
};

use super::support::{all_finish, is_near, poisson, run, scenario};

/// Answers are 100 to 300 tokens, so that they do not end in waves.
const OUTPUT: f64 = 200.0;
/// How old those that run are on average: of long answers more run than of short ones.
const AGE: f64 = (OUTPUT * OUTPUT + 201.0 * 201.0 / 12.0) / (2.0 * OUTPUT);
const KV_TOKENS: f64 = 400_000.0;

/// Seconds of a decode step with so many sequences.
fn step_s(batch: u32, prompt: u32) -> f64 {
    let context = f64::from(batch) * (f64::from(prompt) + AGE);
    let us = Timings::h100_8b().step_us(StepShape {
        prefill: &[],
        decode_seqs: batch,
        decode_context_sum: super::support::whole(context),
    });
    us as f64 / 1e6
}

/// Answers a second of a decode worker behind more prefill than it can bear, over those of a batch
/// of this size.
fn is_borne(prompt: u32, rate: f64, batch: u32) {
    let requests = poisson(3_000, rate, 2, |random| {
        (prompt, 100 + u32::try_from(random.below(201)).unwrap_or(0))
    });
    let mut scenario = scenario("static-4:1", 5, requests);
    scenario.brain.policy.reserve = Reserve::MaxTokens;
    scenario.brain.policy.demote = false;
    scenario.max_tokens = 300;
    let outcome = run(&scenario);
    all_finish(&outcome);
    // Between a quarter and three quarters of the run the worker is full.
    let (from, to) = (outcome.end.0 / 4, outcome.end.0 * 3 / 4);
    let ended = outcome.requests.iter().filter_map(|one| one.end);
    let count = ended.filter(|end| (from..to).contains(&end.0)).count();
    let seen = count as f64 / ((to - from) as f64 / 1e6);
    let wanted = f64::from(batch) / ((OUTPUT - 1.0) * step_s(batch, prompt));
    is_near(seen, wanted, 3.0);
}

#[test]
fn bound_by_its_pool() {
    let prompt = 3_000;
    let fits = |batch: &u32| f64::from(*batch) * (f64::from(prompt) + AGE) <= 0.93 * KV_TOKENS;
    is_borne(prompt, 40.0, (1..512).take_while(fits).last().unwrap());
}

#[test]
fn bound_by_the_time_per_token() {
    let prompt = 1_000;
    let fits = |batch: &u32| step_s(*batch, prompt) <= 0.93 * 0.030;
    is_borne(prompt, 80.0, (1..512).take_while(fits).last().unwrap());
}
