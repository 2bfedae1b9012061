//! Nothing is lost and nothing made up, whatever the policy.

use dopd_sim::outcome::Outcome;

use super::support::{all_finish, chat, poisson, run, scenario};

const POLICIES: [&str; 9] = [
    "dopd-2",
    "dopd-3",
    "static-2:2",
    "static-2:2-fcfs",
    "agg-512",
    "agg-dyn",
    "pull-dyn",
    "hybrid-2",
    "local-512-2:2",
];

fn sums(outcome: &Outcome) -> (u64, u64, u64, u64) {
    let asked = |of: fn(&dopd_sim::outcome::RequestOutcome) -> u32| -> u64 {
        outcome.requests.iter().map(|one| u64::from(of(one))).sum()
    };
    (
        outcome
            .workers
            .iter()
            .map(|worker| worker.prefill_tokens)
            .sum(),
        asked(|one| one.prompt_tokens),
        outcome
            .workers
            .iter()
            .map(|worker| worker.decode_tokens)
            .sum(),
        asked(|one| one.output_tokens),
    )
}

#[test]
fn tokens_made_are_tokens_asked_and_every_page_is_back() {
    for name in POLICIES {
        let requests = poisson(600, 40.0, 11, chat);
        let outcome = run(&scenario(name, 4, requests));
        all_finish(&outcome);
        let (computed, prompts, made, answers) = sums(&outcome);
        assert_eq!((computed, made), (prompts, answers), "{name}");
    }
}

/// Pools so small that sequences grow out of them: work is done twice, nothing is lost.
#[test]
fn a_small_pool_preempts_and_loses_nothing() {
    for name in ["dopd-1", "static-1:1", "agg-dyn"] {
        let mut scenario = scenario(name, 2, poisson(200, 12.0, 5, |_| (600, 400)));
        for worker in &mut scenario.fleet {
            worker.pages_total = 400;
        }
        let outcome = run(&scenario);
        all_finish(&outcome);
        let (computed, prompts, made, answers) = sums(&outcome);
        let again: u64 = outcome
            .requests
            .iter()
            .map(|one| u64::from(one.preemptions))
            .sum();
        assert!(computed >= prompts && made >= answers, "{name}");
        assert_eq!(again == 0, computed == prompts, "{name}: {again} preempted");
        assert!(
            outcome
                .workers
                .iter()
                .all(|worker| worker.pages_peak <= 400),
            "{name}"
        );
    }
}
