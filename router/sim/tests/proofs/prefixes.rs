//! Kept prefixes: what is cached is not computed, what is evicted is computed again, and nobody
//! shares across tenants.

use std::sync::Arc;

use dopd_core::units::Micros;
use dopd_sim::{
    outcome::Outcome,
    scenario::{Fault, FaultKind, Scenario, Trace, TraceRequest},
};

use super::support::{all_finish, ends_clean, poisson, request, run, scenario};

const BLOCK: u32 = 512;

/// Conversations that grow by a block each turn, and share a beginning of two.
fn turns(count: usize, conversations: u64) -> Vec<TraceRequest> {
    let mut requests = poisson(count, 15.0, 3, |_| (0, 40));
    for (at, request) in (0_u64..).zip(&mut requests) {
        let (conversation, turn) = (at % conversations, at / conversations % 12);
        let own = (0..turn).map(|block| 1_000 + conversation * 100 + block);
        request.blocks = [1, 2].into_iter().chain(own).collect();
        let blocks = u32::try_from(request.blocks.len()).unwrap_or(0);
        request.prompt_tokens = blocks * BLOCK + 100;
    }
    requests
}

fn cached(name: &str, workers: usize, requests: Vec<TraceRequest>) -> Scenario {
    let mut scenario = scenario(name, workers, requests);
    scenario.trace = Arc::new(Trace {
        block_tokens: BLOCK,
        ..(*scenario.trace).clone()
    });
    for worker in &mut scenario.fleet {
        worker.has_prefix_cache = true;
    }
    scenario
}

fn sums(outcome: &Outcome) -> (u64, u64, u64) {
    let sum = |of: fn(&dopd_sim::outcome::RequestOutcome) -> u32| -> u64 {
        outcome.requests.iter().map(|one| u64::from(of(one))).sum()
    };
    let computed = outcome.workers.iter().map(|worker| worker.prefill_tokens);
    (
        computed.sum(),
        sum(|one| one.cached_tokens),
        sum(|one| one.prompt_tokens),
    )
}

#[test]
fn what_is_cached_is_not_computed() {
    for name in ["dopd-2", "static-2:2", "pull-dyn"] {
        let scenario = cached(name, 4, turns(300, 20));
        let outcome = run(&scenario);
        all_finish(&outcome);
        let (computed, cached, prompts) = sums(&outcome);
        assert_eq!(computed + cached, prompts, "{name}");
        assert!(cached * 2 > prompts, "{name}: {cached} of {prompts} cached");
        let sent: u64 = outcome
            .workers
            .iter()
            .map(|worker| worker.handoff_bytes)
            .sum();
        assert!(
            sent < prompts * 131_072,
            "{name}: pages travel that are there already"
        );
    }
}

#[test]
fn a_second_prompt_of_the_same_blocks_takes_the_rest_only() {
    let mut requests = vec![
        request(0, 4 * BLOCK + 8, 5),
        request(2_000_000, 4 * BLOCK + 8, 5),
    ];
    for request in &mut requests {
        request.blocks = Arc::from([7, 8, 9, 10]);
    }
    let outcome = run(&cached("dopd", 1, requests.clone()));
    all_finish(&outcome);
    assert_eq!(outcome.requests.map_cached(), [0, 4 * BLOCK]);
    // Another tenant has nothing of it, and a prompt is never cached to its last token.
    requests[1].tenant = 1;
    assert_eq!(
        run(&cached("dopd", 1, requests.clone()))
            .requests
            .map_cached(),
        [0, 0]
    );
    requests[1] = TraceRequest {
        prompt_tokens: 4 * BLOCK,
        tenant: 0,
        ..requests[1].clone()
    };
    assert_eq!(
        run(&cached("dopd", 1, requests)).requests.map_cached(),
        [0, 3 * BLOCK]
    );
}

trait Cached {
    fn map_cached(&self) -> Vec<u32>;
}

impl Cached for Vec<dopd_sim::outcome::RequestOutcome> {
    fn map_cached(&self) -> Vec<u32> {
        self.iter().map(|one| one.cached_tokens).collect()
    }
}

#[test]
fn a_small_pool_evicts_and_loses_nothing() {
    let mut scenario = cached("dopd-2", 4, turns(300, 20));
    for worker in &mut scenario.fleet {
        worker.pages_total = 900;
    }
    let outcome = run(&scenario);
    all_finish(&outcome);
    let (_, cached, prompts) = sums(&outcome);
    assert!(cached > 0 && cached * 2 < prompts, "{cached} of {prompts}");
    assert!(
        outcome
            .workers
            .iter()
            .all(|worker| worker.pages_peak <= 900)
    );
}

#[test]
fn a_death_forgets_and_loses_nothing() {
    let mut scenario = cached("dopd-2", 4, turns(200, 10));
    let kind = FaultKind::Dies {
        back_after: Some(Micros::from_millis(500)),
    };
    scenario.faults = (0..8)
        .map(|at| Fault {
            at: Micros::from_millis(1_500 * (at as u64 + 1)),
            worker: at % 4,
            kind,
        })
        .collect();
    ends_clean(&run(&scenario));
}
