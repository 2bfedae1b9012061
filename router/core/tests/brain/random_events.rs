//! Random requests, commands, steps, faults and late messages, in any order: the rules of the
//! hand-off hold after every event (see `support/fleet.rs`), and once the faults end everything
//! ends clean. The same events lead to the same decisions, and the log replays.

use dopd_core::{
    brain::BrainConfig,
    cost::Timings,
    event::{CloseReason, Event, Suspicion},
    fleet::Role,
    log,
    policy::{Bind, PlaceBy, PolicyConfig, Steal},
    request::RejectReason,
    units::{Micros, Tokens},
};
use proptest::prelude::*;

use crate::support::{
    self, cases,
    fleet::{Fleet, Outcome},
    plain,
    policy::policy,
    request, worker,
};

/// Mostly pairs.
const ROLES: [Role; 5] = [
    Role::Prefill,
    Role::Decode,
    Role::Mixed,
    Role::Prefill,
    Role::Decode,
];

/// What may happen. `a` and `b` choose among what is there.
#[derive(Clone, Copy, Debug)]
struct Op {
    kind: u8,
    a: u8,
    b: u8,
}

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Faults {
    None,
    All,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (0..40_u8, any::<u8>(), any::<u8>()).prop_map(|(kind, a, b)| Op { kind, a, b });
    prop::collection::vec(op, 50..400)
}

/// The plain policy, the default one, and each baseline that is another value of it.
pub(crate) fn policies() -> Vec<PolicyConfig> {
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

fn config(slack_ms: u64) -> BrainConfig {
    BrainConfig {
        seed: slack_ms,
        handoff_slack: Micros::from_millis(slack_ms),
        replays_max: 2,
        queue_requests_max: 12,
        queue_tokens_max: 200,
        ..plain()
    }
}

/// Step times of a GPU where roles are high, so that predictions and waits matter.
fn run(config: BrainConfig, roles: &[u8], ops: &[Op], faults: Faults) -> Fleet {
    let mut fleet = Fleet::new(config);
    for (pages, &role) in (14..).step_by(4).zip(roles) {
        let mut facts = worker(ROLES[usize::from(role) % 5], pages);
        if role >= 5 {
            facts.timings = Timings::h100_8b();
        }
        fleet.join(facts);
    }
    for (number, op) in ops.iter().enumerate() {
        normal(&mut fleet, number as u64, *op);
        if faults == Faults::All {
            fault(&mut fleet, *op);
        }
    }
    settle(&mut fleet);
    fleet
}

/// Index of the worker that `a` chooses.
fn pick(fleet: &Fleet, a: u8) -> Option<usize> {
    usize::from(a).checked_rem(fleet.workers.len())
}

fn normal(fleet: &mut Fleet, number: u64, Op { kind, a, b }: Op) {
    fleet.now = fleet.now.plus(Micros(u64::from(b) / 8));
    let Some(index) = pick(fleet, a) else { return };
    match kind {
        0..=2 => {
            let mut facts = request(number, 1 + u32::from(a) % 40, 1 + u32::from(b) % 20);
            facts.choices = 1 + u8::from(b > 230) * 2;
            facts.priority = i32::from(a % 3);
            (facts.tenant, facts.weight) = (u64::from(b % 4), u32::from(a % 5));
            facts.slo.ttft = (b % 3 == 0).then(|| Micros(u64::from(a) * u64::from(b) / 8));
            // From what no step meets to three steps of a GPU.
            facts.slo.tpot = (a % 4 == 3).then(|| Micros(u64::from(b) * 80));
            fleet.arrive(facts);
        }
        3 => (0..fleet.workers.len()).for_each(|index| fleet.obey(index)),
        4..=10 => fleet.obey(index),
        11..=17 => {
            let stops = (b > 240).then_some(u32::from(b % 4));
            let ends = fleet.workers[index].step(b % 4 > 0, stops);
            fleet.links.extend(ends);
        }
        18..=24 => fleet.deliver_report(index),
        25 => fleet.begin(index),
        26..=29 => fleet.deliver_end(true),
        30 => wake(fleet, b % 2 == 0),
        31 => fleet.workers[index].free_fences(),
        _ => {}
    }
}

/// Time passes up to the next timer, or the timer's event comes early.
fn wake(fleet: &mut Fleet, is_due: bool) {
    if let Some(at) = fleet
        .brain
        .next_wake()
        .filter(|&at| is_due && at < support::NEVER)
    {
        fleet.now = fleet.now.max(at);
    }
    fleet.tell(Event::Woke);
}

fn fault(fleet: &mut Fleet, Op { kind, a, b }: Op) {
    let streams = fleet.streams.len().max(1);
    let Some((&id, _)) = fleet.streams.iter().nth(usize::from(b) % streams) else {
        return;
    };
    let Some(index) = pick(fleet, a) else { return };
    match kind {
        32 => match b % 4 {
            0 => fleet.give_up(
                id,
                Event::RequestCancelled {
                    request: id.request,
                },
            ),
            1 => fleet.give_up(id, Event::SequenceStopped { sequence: id }),
            2 => {
                let to = fleet.workers[index].session;
                fleet.tell(Event::MoveRequested { sequence: id, to });
            }
            _ => fleet.deliver_late(),
        },
        33 if b > 100 => {
            let facts = fleet.workers[index].facts.clone();
            fleet.crash(index);
            fleet.join(facts);
        }
        33 if b > 60 => fleet.break_stream(index),
        33 if b > 40 => fleet.break_off(index),
        34 if b % 4 == 0 => fleet.suspect(index, Suspicion::Stuck),
        34 => fleet.suspect(index, Suspicion::Silent),
        35 => fleet.workers[index].take_foreign(u32::from(b) % 12),
        36 => {
            fleet.workers[index].pages_foreign = 0;
            fleet.workers[index].is_stuck = false;
        }
        37 if b > 128 => fleet.workers[index].evict(usize::from(b), CloseReason::Preempted),
        37 if b < 16 => fleet.workers[index].evict(usize::from(b), CloseReason::Error),
        38 if b % 2 == 0 => {
            fleet.links.pop_front();
        }
        38 => fleet.deliver_end(false),
        39 => {
            let worker = &mut fleet.workers[index];
            worker.is_draining = b > 230;
            worker.role = ROLES[usize::from(b) % 5];
            worker.role_epoch += 1;
        }
        _ => {}
    }
}

/// Rounds until everything must have ended; a run needs a few hundred.
const ROUNDS_MAX: usize = 5_000;

/// No more faults: everybody does what there is to do, in turn, until it is quiet.
fn settle(fleet: &mut Fleet) {
    if fleet.workers.iter().all(|worker| worker.is_draining) {
        fleet.join(worker(Role::Mixed, 40));
    }
    for worker in &mut fleet.workers {
        worker.pages_foreign = 0;
        worker.is_stuck = false;
    }
    while !fleet.late.is_empty() {
        fleet.deliver_late();
    }
    for _ in 0..ROUNDS_MAX {
        for index in 0..fleet.workers.len() {
            while !fleet.workers[index].inbox.is_empty() {
                fleet.obey(index);
            }
            fleet.workers[index].free_fences();
            let ends = fleet.workers[index].step(true, None);
            fleet.links.extend(ends);
            while !fleet.workers[index].outbox.is_empty() {
                fleet.deliver_report(index);
            }
        }
        while !fleet.links.is_empty() {
            fleet.deliver_end(true);
        }
        fleet.now = fleet.now.plus(Micros::from_millis(1));
        if fleet.brain.next_wake().is_some_and(|at| at <= fleet.now) {
            fleet.tell(Event::Woke);
        }
        let is_over = fleet
            .streams
            .values()
            .all(|stream| stream.outcome.is_some());
        if is_over && fleet.workers.iter().all(support::worker::Worker::is_empty) {
            break;
        }
    }
    fleet.assert_clean();
    // Waits after refusals and for workers run out; nothing else is left to wait for.
    fleet.now = fleet.now.plus(Micros::from_millis(60_000));
    fleet.tell(Event::Woke);
    assert_eq!(
        fleet.brain.next_wake(),
        None,
        "a timer outlived its sequence"
    );
}

proptest! {
    #![proptest_config(cases(250))]

    /// Nothing fails: every request that was queued is answered, whatever the order of messages.
    #[test]
    fn every_fault_free_run_ends_clean(
        ops in ops(), roles in prop::collection::vec(0..5_u8, 1..5),
    ) {
        let fleet = run(config(500), &roles, &ops, Faults::None);
        for (id, stream) in &fleet.streams {
            let is_fine = matches!(
                stream.outcome,
                Some(
                    Outcome::Finished
                        | Outcome::Rejected(RejectReason::QueueFull | RejectReason::TooLarge)
                )
            );
            prop_assert!(is_fine, "{:?}: {:?}", id, stream);
        }
        prop_assert_eq!(fleet.brain.status().replays_total, 0);
    }

    /// Every fault of the design, early and late timers included.
    #[test]
    fn rules_hold_under_faults_and_all_ends_clean(
        ops in ops(), roles in prop::collection::vec(0..5_u8, 1..5),
        slack_ms in prop::sample::select(vec![0, 3, 500_u64]),
    ) {
        run(config(slack_ms), &roles, &ops, Faults::All);
    }

    #[test]
    fn same_events_lead_to_same_decisions_and_the_log_replays(
        ops in ops(), roles in prop::collection::vec(0..5_u8, 1..5),
    ) {
        let first = run(config(100), &roles, &ops, Faults::All);
        let second = run(config(100), &roles, &ops, Faults::All);
        prop_assert_eq!(&first.trace, &second.trace);
        let lines = first.log.iter().map(|line| Ok::<_, std::io::Error>(line.clone()));
        let report = log::replay(lines);
        prop_assert!(report.is_ok(), "{:?}", report);
        let Ok(report) = report else { return Ok(()) };
        prop_assert_eq!(report.difference, None);
        prop_assert_eq!(report.events + 1, first.log.len() as u64);
        prop_assert_eq!(report.actions, first.trace.len() as u64);
    }
}

/// A fleet of these labels under one of the policies.
fn scene() -> impl Strategy<Value = (usize, Vec<u8>)> {
    (0..policies().len(), prop::collection::vec(0..10_u8, 1..5))
}

fn under(policy: usize, slack_ms: u64) -> BrainConfig {
    BrainConfig {
        policy: policies().swap_remove(policy),
        ..config(slack_ms)
    }
}

proptest! {
    #![proptest_config(cases(250))]

    /// The rules of the hand-off hold whatever the policy: no page is promised twice, no request
    /// is lost or doubled, all ends clean, and decisions are equal when they are made again.
    #[test]
    fn rules_hold_under_every_policy(
        ops in ops(), (policy, roles) in scene(),
        slack_ms in prop::sample::select(vec![0, 500_u64]),
    ) {
        let first = run(under(policy, slack_ms), &roles, &ops, Faults::All);
        let second = run(under(policy, slack_ms), &roles, &ops, Faults::All);
        prop_assert_eq!(&first.trace, &second.trace);
        let lines = first.log.iter().map(|line| Ok::<_, std::io::Error>(line.clone()));
        let report = log::replay(lines);
        prop_assert!(report.is_ok(), "{:?}", report);
        prop_assert_eq!(report.ok().and_then(|report| report.difference), None);
    }

    /// Every request that was queued is answered under each, or made room, or was late.
    #[test]
    fn every_policy_answers_everybody_while_nothing_fails(
        ops in ops(), (policy, roles) in scene(),
    ) {
        let fleet = run(under(policy, 500), &roles, &ops, Faults::None);
        for (id, stream) in &fleet.streams {
            use RejectReason::{Late, QueueFull, TooLarge};
            let refused = [Late, QueueFull, TooLarge].map(Outcome::Rejected);
            let is_fine = stream.outcome.is_some_and(|outcome| {
                outcome == Outcome::Finished || refused.contains(&outcome)
            });
            prop_assert!(is_fine, "{:?}: {:?}", id, stream);
        }
        prop_assert_eq!(fleet.brain.status().replays_total, 0);
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
        run(under(policy, slack_ms), roles, &ops, Faults::All);
    }
}

/// The runs above are worth something only if they come to every kind of decision.
#[test]
fn random_runs_come_to_every_kind_of_decision() {
    use dopd_core::action::{Action, OpenKind};
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u8::try_from(state >> 56).unwrap_or(0)
    };
    let mut seen = std::collections::BTreeMap::<String, u64>::new();
    let mut count = |what: String, times: u64| *seen.entry(what).or_default() += times;
    for _ in 0..300 {
        let roles: Vec<u8> = (0..=random() % 4).map(|_| random() % 5).collect();
        let ops: Vec<Op> = (0..300)
            .map(|_| Op {
                kind: random() % 40,
                a: random(),
                b: random(),
            })
            .collect();
        let fleet = run(
            config([0, 3, 500][usize::from(random()) % 3]),
            &roles,
            &ops,
            Faults::All,
        );
        for action in &fleet.trace {
            let kind = match action {
                Action::Open {
                    kind: OpenKind::Compute,
                    ..
                } => "open compute".to_owned(),
                Action::Open {
                    kind: OpenKind::Import,
                    ..
                } => "open import".to_owned(),
                Action::Send { to: Some(_), .. } => "send".to_owned(),
                Action::Send { to: None, .. } => "stay".to_owned(),
                Action::Close { .. } => "close".to_owned(),
                Action::Switch { .. } => "switch".to_owned(),
                Action::Reject { why, .. } => format!("{why:?}"),
                Action::Break { .. } => "break".to_owned(),
            };
            count(kind, 1);
        }
        count("replay".to_owned(), fleet.brain.status().replays_total);
    }
    let rare = |what: &str, least| (seen.get(what).copied().unwrap_or(0) < least).then_some(least);
    for (what, least) in [
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
    ] {
        assert_eq!(rare(what, least), None, "{what}: {seen:?}");
    }
    assert_eq!(seen.get("break"), None);
}
