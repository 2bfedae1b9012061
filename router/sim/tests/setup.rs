//! From words to a scenario, and what is wrong with words.

use std::sync::Arc;

use dopd_core::{
    fleet::Role,
    policy::{Bind, Order, PolicyConfig, Steal},
    step::StepMode,
    units::{Micros, Tokens},
};
use dopd_sim::{
    policies::{NAMES, named},
    scenario::{Scenario, Trace},
    setup::{Setup, SetupError},
};

fn made(json: &str) -> Result<Scenario, SetupError> {
    Setup::from_json(json)?.scenario(Arc::new(Trace::default()))
}

fn prefill(scenario: &Scenario) -> usize {
    let roles = scenario.fleet.iter().map(|worker| worker.role);
    roles.filter(|role| *role == Role::Prefill).count()
}

#[test]
fn every_name_stands_for_a_policy() {
    for (name, _) in NAMES {
        let name = name
            .replace("P:D", "3:5")
            .replace("NAME", "static-3:5")
            .replace("RULE", "steal")
            .replace("-K", "-3")
            .replace("-N", "-512");
        assert!(named(&name, 8).is_some(), "{name}");
    }
    for wrong in [
        "",
        "static-4:5",
        "static-8:0",
        "dopd-8",
        "agg-0",
        "agg-",
        "pull-0",
        "local--4:4",
        "x-4:4",
        "static",
        "dopd-fcfs-",
        "static-18446744073709551615:1",
    ] {
        assert!(named(wrong, 8).is_none(), "{wrong}");
    }
}

#[test]
fn baselines_differ_from_the_default_in_what_their_names_say() {
    assert_eq!(named("dopd", 8).unwrap().0, PolicyConfig::default());
    assert_eq!(named("pull-512", 8).unwrap().0.bind, Bind::Late);
    assert_eq!(
        named("pull-dyn", 8).unwrap().0.step.mode,
        StepMode::ChunkInTime
    );
    let (policy, roles) = named("agg-512", 8).unwrap();
    assert_eq!(
        (policy.bind, policy.step.mode),
        (Bind::Early, StepMode::Chunk)
    );
    assert_eq!(policy.step.chunk_tokens, Tokens(512));
    assert!(roles.iter().all(|role| *role == Role::Mixed));
    let (policy, roles) = named("static-6:2-fcfs", 8).unwrap();
    assert_eq!(
        (policy.steal, policy.keep, policy.order),
        (Steal::Never, false, Order::Fcfs)
    );
    assert!(!policy.demote);
    assert_eq!(
        roles.iter().filter(|role| **role == Role::Decode).count(),
        2
    );
}

#[test]
fn the_defaults_are_eight_h100_at_the_tight_targets() {
    let scenario = made("{}").unwrap();
    assert_eq!((scenario.fleet.len(), prefill(&scenario)), (8, 2));
    assert_eq!(scenario.slo.ttft, Micros::from_millis(500));
    assert_eq!(scenario.brain.policy.step.tpot, Micros::from_millis(30));
    assert_eq!(scenario.fleet[0].pages_total, 25_000);
    let large = made(r#"{"model": "llama-70b", "workers": 4, "prefill_workers": 3}"#).unwrap();
    assert_eq!(
        (prefill(&large), large.slo.tpot),
        (3, Micros::from_millis(40))
    );
}

#[test]
fn rules_change_single_constants() {
    let json =
        r#"{"rules": {"fair_ratio": 0, "step": {"mode": "chunk_in_time"}}, "mixed_penalty": 0.4}"#;
    let scenario = made(json).unwrap();
    let policy = &scenario.brain.policy;
    assert!(policy.fair_ratio.abs() < f64::EPSILON);
    assert_eq!(policy.step.mode, StepMode::ChunkInTime);
    assert_eq!(
        policy.step.pause_max,
        PolicyConfig::default().step.pause_max
    );
    assert!((scenario.fleet[0].timings.mixed_penalty_ratio - 0.4).abs() < f64::EPSILON);
}

#[test]
fn what_cannot_be_simulated_is_said() {
    for (json, told) in [
        ("{\n \"workrs\": 8}", "unknown field `workrs`"),
        ("{\n \"workrs\": 8}", "line 2 column"),
        (r#"{"workers": 0}"#, "workers is 0, must be 1 to 4096"),
        (
            r#"{"device": "h101"}"#,
            "no device \"h101\"; there are h100\n",
        ),
        (
            r#"{"model": "gpt"}"#,
            "no model \"gpt\"; there are llama-3.1-8b, llama-70b",
        ),
        (
            r#"{"policy": "best"}"#,
            "no policy \"best\"; there are dopd, dopd-K",
        ),
        (
            r#"{"prefill_workers": 8}"#,
            "prefill_workers is 8, must be below workers (8)",
        ),
        (
            r#"{"slo_ttft_ms": -1}"#,
            "slo_ttft_ms is -1, must be 0.001 to 3600000",
        ),
        (r#"{"mixed_penalty": -0.1}"#, "mixed_penalty is -0.1"),
        (r#"{"kv_tokens": 3}"#, "kv_tokens is 3, must be at least 16"),
        (r#"{"rules": {"gat": true}}"#, "rules: unknown field `gat`"),
        (
            r#"{"rules": {"order": "best"}}"#,
            "rules: unknown variant `best`",
        ),
        (
            r#"{"rules": {"fair_ratio": "abc"}}"#,
            "expected f64, in {\"fair_ratio\":\"abc\"}",
        ),
        (r#"{"policy": "static-9:9"}"#, "(P + D = 8 workers)"),
    ] {
        let said = format!("{}\n", made(json).unwrap_err());
        assert!(said.contains(told), "{said}\n{told}");
    }
}
