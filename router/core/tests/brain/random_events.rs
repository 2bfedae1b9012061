//! Random requests, commands, steps, faults and late messages, in any order (`support/scene.rs`):
//! the rules of the hand-off hold after every event (see `support/fleet.rs`), and once the faults
//! end everything ends clean, whatever the policy. The same events lead to the same decisions, and
//! the log replays.

use std::collections::BTreeMap;

use dopd_core::{
    action::{Action, OpenKind},
    brain::BrainConfig,
    log,
    policy::{Bind, Order, PlaceBy, PolicyConfig, Refuse, Reserve, Steal},
    request::RejectReason,
    step::{StepMode, StepPolicy},
    units::{Micros, Tokens},
};
use proptest::{prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};

use crate::support::{
    cases,
    fleet::{Fleet, Outcome},
    plain,
    policy::policy,
    scene::{Faults, Op, Scene, ops, run},
};

/// The plain policy, the default one, and each baseline that is another value of it.
fn policies() -> Vec<PolicyConfig> {
    let base = policy();
    let early = PolicyConfig {
        bind: Bind::Early,
        steal: Steal::Never,
        ..base.clone()
    };
    vec![
        PolicyConfig::plain(),
        base.clone(),
        PolicyConfig {
            place: PlaceBy::RoundRobin,
            ..early.clone()
        },
        PolicyConfig {
            place: PlaceBy::FewestSequences,
            keep: false,
            ..early
        },
        PolicyConfig {
            gate: false,
            steal: Steal::Shorter(Tokens(8)),
            ..base.clone()
        },
        PolicyConfig {
            linger_ratio: 1e-9,
            linger_tokens: Tokens(2),
            steal_wait_ratio: 0.0,
            ..base
        },
    ]
}

/// One of those, or any rules.
fn any_policy() -> impl Strategy<Value = PolicyConfig> {
    prop_oneof![select(policies()), any_rules(), any_rules()]
}

const ORDERS: [Order; 4] = [Order::Fcfs, Order::Sjf, Order::Edf, Order::Aged];

const STEALS: [Steal; 4] = [
    Steal::InTime,
    Steal::Never,
    Steal::Shorter(Tokens(8)),
    Steal::InTime,
];

const PLACES: [PlaceBy; 4] = [
    PlaceBy::LeastTokens,
    PlaceBy::FewestSequences,
    PlaceBy::MostPages,
    PlaceBy::RoundRobin,
];

/// With times that a small model meets and times that it does not.
fn any_rules() -> impl Strategy<Value = PolicyConfig> {
    let words = (
        select(&ORDERS),
        select(vec![Bind::Late, Bind::Late, Bind::Early]),
        select(&STEALS),
        select(&PLACES),
        select(vec![Reserve::MaxTokens, Reserve::FuturePeak]),
        select(vec![Refuse::Never, Refuse::Late, Refuse::Early]),
        select(vec![StepMode::PauseOrMix, StepMode::ChunkInTime]),
    );
    let switches = prop::array::uniform5(any::<bool>());
    let times = (
        select(vec![2_000_000, 5_000, 500_u64]),
        select(vec![80_000, 5_000, 400_u64]),
        select(vec![10_000_000, 20_000, 300_u64]),
        select(vec![u64::MAX, 2_000, 0_u64]),
    );
    // Of waiting to steal, of the pool there, of keeping, of a place, of lingering.
    let ratios = (
        select(vec![0.25, 0.0, 1.0]),
        select(vec![0.85, 0.3]),
        select(vec![0.95, 0.1, 0.0]),
        select(vec![0.93, 0.5, 1.0]),
        select(vec![0.0, 1e-9, 1.0]),
    );
    let counts = (
        select(vec![4_096, 16_u32]),
        select(vec![8_192, 30, 0_u32]),
        1..5_u32,
        1..13_u32,
    );
    (words, switches, times, ratios, counts).prop_map(|(words, switches, times, ratios, counts)| {
        let [demote, share_tenants, gate, keep, use_prefixes] = switches;
        let (ttft, tpot, late_max, bind_ahead) = times;
        PolicyConfig {
            order: words.0,
            bind: words.1,
            steal: words.2,
            place: words.3,
            reserve: words.4,
            refuse: words.5,
            step: StepPolicy {
                mode: words.6,
                ..StepPolicy::default()
            },
            demote,
            share_tenants,
            gate,
            keep,
            use_prefixes,
            ttft: Micros(ttft),
            tpot: Micros(tpot),
            late_max: Micros(late_max),
            bind_ahead: Micros(bind_ahead),
            steal_wait_ratio: ratios.0,
            steal_kv_ratio: ratios.1,
            keep_step_ratio: ratios.2,
            place_kv_ratio: ratios.3,
            place_step_ratio: ratios.3,
            linger_ratio: ratios.4,
            prefill_tokens_max: Tokens(counts.0),
            share_quantum: Tokens(counts.1),
            linger_tokens: Tokens(counts.2),
            steal_scan: counts.3,
            ..PolicyConfig::default()
        }
    })
}

fn config(slack_ms: u64) -> BrainConfig {
    BrainConfig {
        seed: slack_ms,
        handoff_slack: Micros::from_millis(slack_ms),
        handoff_meet: Micros::from_millis(slack_ms / 2),
        replays_max: 2,
        queue_requests_max: 12,
        queue_tokens_max: 200,
        ..plain()
    }
}

/// Workers of any labels and step times under one of these policies.
fn scene(policy: impl Strategy<Value = PolicyConfig>) -> impl Strategy<Value = Scene> {
    let roles = prop::collection::vec(0..15_u8, 1..5);
    let slacks_ms = select(vec![500, 3, 0_u64]);
    let paces = select(vec![1, 10, 100_u64]);
    (policy, roles, slacks_ms, paces).prop_map(|(policy, roles, slack_ms, pace)| Scene {
        config: BrainConfig {
            policy,
            ..config(slack_ms)
        },
        roles,
        pace,
    })
}

pub(crate) fn any_scene() -> impl Strategy<Value = Scene> {
    scene(any_policy())
}

fn plain_scene() -> impl Strategy<Value = Scene> {
    scene(Just(PolicyConfig::plain()))
}

/// Twice the same, and the log says so.
fn is_deterministic(scene: &Scene, ops: &[Op]) -> Result<(), TestCaseError> {
    let first = run(scene, ops, Faults::All);
    let second = run(scene, ops, Faults::All);
    prop_assert_eq!(&first.trace, &second.trace);
    let lines = first
        .log
        .iter()
        .map(|line| Ok::<_, std::io::Error>(line.clone()));
    let report = log::replay(lines);
    prop_assert!(report.is_ok(), "{:?}", report);
    let Ok(report) = report else { return Ok(()) };
    prop_assert_eq!(report.difference, None);
    prop_assert_eq!(report.events + 1, first.log.len() as u64);
    prop_assert_eq!(report.actions, first.trace.len() as u64);
    Ok(())
}

/// Nothing failed: everybody was answered, or told why there was no place or no time.
fn all_are_answered(fleet: &Fleet) -> Result<(), TestCaseError> {
    use RejectReason::{DeadlineExceeded, Late, QueueFull, TooLarge, Unmeetable};
    for (id, stream) in &fleet.streams {
        let is_fine = match stream.outcome {
            // Act's checks say who may be refused for which target.
            Some(Outcome::Rejected(why)) => {
                matches!(
                    why,
                    DeadlineExceeded | Late | QueueFull | TooLarge | Unmeetable
                )
            }
            outcome => outcome == Some(Outcome::Finished),
        };
        prop_assert!(is_fine, "{:?}: {:?}", id, stream);
    }
    let status = fleet.brain.status();
    let preempted = status.replays_by.get("preempted").copied();
    prop_assert_eq!(status.replays_total, preempted.unwrap_or(0));
    Ok(())
}

proptest! {
    #![proptest_config(cases(250))]

    /// Nothing fails: every request that was queued is answered, whatever the order of messages.
    #[test]
    fn every_fault_free_run_ends_clean(ops in ops(), scene in plain_scene()) {
        all_are_answered(&run(&scene, &ops, Faults::None))?;
    }

    /// Every fault of the design, early and late timers included.
    #[test]
    fn rules_hold_under_faults_and_all_ends_clean(ops in ops(), scene in plain_scene()) {
        run(&scene, &ops, Faults::All);
    }

    #[test]
    fn same_events_lead_to_same_decisions_and_the_log_replays(
        ops in ops(), scene in plain_scene(),
    ) {
        is_deterministic(&scene, &ops)?;
    }

    /// The rules of the hand-off hold whatever the policy: no page is promised twice, no request
    /// is lost or doubled, all ends clean, and decisions are equal when they are made again.
    #[test]
    fn rules_hold_under_every_policy(ops in ops(), scene in any_scene()) {
        prop_assert_eq!(scene.config.policy.check(), Ok(()));
        is_deterministic(&scene, &ops)?;
    }

    /// Every request that was queued is answered under each, or made room, or was late.
    #[test]
    fn every_policy_answers_everybody_while_nothing_fails(
        ops in ops(), scene in any_scene(),
    ) {
        all_are_answered(&run(&scene, &ops, Faults::None))?;
    }
}

/// Policy, slack of hand-offs in ms, roles, and the kind, a and b of each op.
type Seed = (usize, u64, &'static [u8], &'static [(u8, u8, u8)]);

/// Runs that failed once, cut down to what they need.
const SEEDS: &[Seed] = &[
    // A worker labelled anew was the place for what was to leave it.
    (
        5,
        0,
        &[0, 4, 5],
        &[(0, 0, 2), (33, 0, 41), (39, 1, 1), (0, 108, 0), (0, 0, 0)],
    ),
    // It arrived and was preempted in one report, and went back to the same worker.
    (
        3,
        0,
        &[1, 5, 1],
        &[
            (0, 0, 2),
            (33, 0, 41),
            (3, 0, 0),
            (11, 1, 0),
            (18, 1, 0),
            (3, 0, 0),
            (3, 0, 0),
            (11, 0, 0),
            (11, 0, 1),
            (26, 0, 0),
            (37, 1, 129),
            (0, 0, 1),
        ],
    ),
];

#[test]
fn rules_hold_in_runs_that_broke_them_once() {
    for &(policy, slack_ms, roles, ops) in SEEDS {
        let ops: Vec<Op> = ops.iter().map(|&(kind, a, b)| Op { kind, a, b }).collect();
        let scene = Scene {
            config: BrainConfig {
                policy: policies().swap_remove(policy),
                ..config(slack_ms)
            },
            roles: roles.to_vec(),
            pace: 1,
        };
        run(&scene, &ops, Faults::All);
    }
}

/// How often runs of such scenes come to what, the same ones every time.
#[expect(
    clippy::expect_used,
    reason = "only a test calls this; the lint knows test functions only"
)]
fn reached(scenes: impl Strategy<Value = Scene>) -> BTreeMap<&'static str, u64> {
    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeMap::new();
    for _ in 0..300 {
        let drawn = (&scenes, ops()).new_tree(&mut runner);
        let (scene, ops) = drawn
            .map(|tree| tree.current())
            .expect("nothing is filtered");
        let fleet = run(&scene, &ops, Faults::All);
        let mut count = |what, times: u64| *reached.entry(what).or_default() += times;
        for action in &fleet.trace {
            count(kind(action), 1);
        }
        let status = fleet.brain.status();
        for (what, times) in [
            ("replay", status.replays_total),
            ("stolen", status.stolen_total),
            ("demoted", status.demotions_total),
            ("evicted", status.evicted_total),
            ("hopeless", status.hopeless_total),
            ("violation", status.violations_total),
        ] {
            count(what, times);
        }
        let preempted = status.replays_by.get("preempted");
        count("preempted", preempted.copied().unwrap_or(0));
    }
    reached
}

const fn kind(action: &Action) -> &'static str {
    use RejectReason as R;
    match action {
        Action::Open {
            kind: OpenKind::Compute,
            ..
        } => "open compute",
        Action::Open {
            kind: OpenKind::Import,
            ..
        } => "open import",
        Action::Send { to: Some(_), .. } => "send",
        Action::Send { to: None, .. } => "stay",
        Action::Close { .. } => "close",
        Action::Switch { .. } => "switch",
        Action::Break { .. } => "break",
        Action::Reject { why, .. } => match why {
            R::QueueFull => "QueueFull",
            R::TooLarge => "TooLarge",
            R::EngineError => "EngineError",
            R::PoisonSuspect => "PoisonSuspect",
            R::WorkerFailed => "WorkerFailed",
            R::DeadlineExceeded => "DeadlineExceeded",
            R::Late => "Late",
            R::Unmeetable => "Unmeetable",
            R::NoWorker | R::Draining => "other",
        },
    }
}

/// The runs above are worth something only if they come to every kind of decision.
#[test]
fn random_runs_come_to_every_kind_of_decision() {
    let hand_off = [
        ("open compute", 1_000),
        ("open import", 500),
        ("send", 500),
        ("stay", 100),
        ("close", 500),
        ("switch", 200),
        ("replay", 500),
        ("QueueFull", 100),
        ("TooLarge", 5),
        ("EngineError", 10),
        ("PoisonSuspect", 10),
        ("WorkerFailed", 1),
        ("DeadlineExceeded", 10),
    ];
    let rules = [
        ("Late", 100),
        ("Unmeetable", 50),
        ("stolen", 500),
        ("demoted", 500),
        ("evicted", 20),
        ("preempted", 100),
    ];
    let plain = reached(plain_scene());
    let all = reached(any_scene());
    // Other rules leave fewer of the hand-off's.
    for (seen, wanted, part) in [
        (&plain, &hand_off[..], 1),
        (&all, &hand_off, 2),
        (&all, &rules, 1),
    ] {
        for &(what, least) in wanted {
            let times = seen.get(what).copied().unwrap_or(0);
            assert!(times >= least / part, "{what}: {times} times, of {seen:?}");
        }
        assert_eq!((seen.get("break"), seen.get("violation")), (None, Some(&0)));
    }
}
