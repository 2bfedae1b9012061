//! The ends of the scale: no traffic, one of everything, the longest.

use std::ops::ControlFlow;

use dopd_core::{fleet::Role, units::Micros};
use dopd_sim::{
    SimError,
    outcome::Ending,
    run,
    scenario::{Fault, FaultKind, Scenario},
};

use super::support::{all_finish, ends_clean, request, run as outcome_of, scenario, spec};

const ANSWER: ControlFlow<()> = ControlFlow::Continue(());

#[test]
fn no_traffic_is_an_empty_outcome() {
    let outcome = outcome_of(&scenario("dopd-1", 3, Vec::new()));
    assert!(outcome.requests.is_empty());
    assert!(outcome.workers.iter().all(|worker| worker.steps == 0));
}

#[test]
fn one_worker_does_everything_whatever_its_label() {
    for role in [Role::Prefill, Role::Decode, Role::Mixed] {
        let mut scenario = scenario(
            "dopd",
            1,
            (0..50).map(|at| request(at * 1_000, 500, 20)).collect(),
        );
        scenario.fleet = vec![spec(role)];
        all_finish(&outcome_of(&scenario));
    }
}

#[test]
fn all_at_once() {
    let outcome = outcome_of(&scenario(
        "dopd-2",
        4,
        (0..2_000).map(|_| request(0, 300, 8)).collect(),
    ));
    all_finish(&outcome);
}

#[test]
fn the_longest_that_fits_and_one_more() {
    let longest = 131_072 - 1;
    let requests = vec![
        request(0, longest, 1),
        request(1, 1, 100_000),
        request(2, 131_072, 1),
    ];
    let outcome = outcome_of(&scenario("dopd-1", 3, requests));
    ends_clean(&outcome);
    let endings: Vec<Ending> = outcome.requests.iter().map(|one| one.ending).collect();
    assert_eq!(
        endings,
        [Ending::Finished, Ending::Finished, Ending::Rejected]
    );
}

#[test]
fn answers_of_one_token_and_prompts_of_one_token() {
    let requests = (0..300)
        .map(|at| request(at * 500, 1 + u32::try_from(at % 3).unwrap() * 15, 1))
        .collect();
    all_finish(&outcome_of(&scenario("static-1:1", 2, requests)));
}

#[test]
fn what_does_not_end_in_time_is_unfinished() {
    let mut scenario = scenario("dopd-1", 2, vec![request(0, 100, 10)]);
    for worker in 0..2 {
        let kind = FaultKind::Dies { back_after: None };
        scenario.faults.push(Fault {
            at: Micros(0),
            worker,
            kind,
        });
    }
    scenario.brain.no_worker_wait = Micros(u64::MAX / 4);
    let outcome = outcome_of(&scenario);
    assert_eq!(outcome.requests[0].ending, Ending::Unfinished);
}

/// What is wrong with the scenario, after a change.
fn wrong(change: impl FnOnce(&mut Scenario)) -> String {
    let mut scenario = scenario("dopd-1", 2, vec![request(5, 10, 10)]);
    change(&mut scenario);
    run(&scenario, &mut |_| ANSWER).map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn a_scenario_that_cannot_run_says_why() {
    assert_eq!(wrong(|_| {}), "");
    assert_eq!(wrong(|it| it.fleet.clear()), SimError::NoWorker.to_string());
    assert!(wrong(|it| it.fleet[1].page_tokens = 0).contains("worker 1: page_tokens is 0"));
    assert!(wrong(|it| it.fleet[0].slowness_ratio = f64::NAN).contains("slowness_ratio is NaN"));
    assert!(wrong(|it| it.fleet[0].timings.weights_us = -1.0).contains("weights_us is -1"));
    assert!(wrong(|it| it.fleet[0].batch_tokens_max = 512).contains("batch_tokens_max is 512"));
    let policy = wrong(|it| it.brain.policy.place_kv_ratio = 93.0);
    assert!(
        policy.contains("place_kv_ratio is 93, must be a number between 0 and 1"),
        "{policy}"
    );
    let slows = |worker, at, ratio| Fault {
        at: Micros(at),
        worker,
        kind: FaultKind::Slows { ratio },
    };
    let fault = |worker, at| slows(worker, at, 2.0);
    for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let told = wrong(|it| it.faults = vec![slows(0, 0, ratio)]);
        assert!(told.contains("fault 0 slows its worker"), "{told}");
    }
    assert!(wrong(|it| it.faults = vec![fault(2, 0)]).contains("worker 2, but there are 2"));
    assert!(wrong(|it| it.faults = vec![fault(0, 1), fault(0, 0)]).contains("fault 1 is before"));
    let trace = |requests| {
        wrong(|it| {
            it.trace = std::sync::Arc::new(dopd_sim::scenario::Trace {
                requests,
                ..(*it.trace).clone()
            });
        })
    };
    assert!(trace(vec![request(5, 1, 1), request(4, 1, 1)]).contains("request 1 arrives at 4 us"));
    assert!(trace(vec![request(5, 0, 1)]).contains("request 0 has 0 prompt"));
}

#[test]
fn it_stops_when_told_to() {
    let scenario = scenario(
        "dopd-1",
        2,
        (0..40_000).map(|at| request(at * 1_000, 10, 1)).collect(),
    );
    let stopped = run(&scenario, &mut |_| ControlFlow::Break(()));
    assert!(matches!(
        stopped,
        Err(SimError::Stopped {
            requests: 40_000,
            ..
        })
    ));
}
