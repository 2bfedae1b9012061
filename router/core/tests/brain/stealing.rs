//! Decode workers help: which prompts they take, when, and which not.

use dopd_core::{
    action::OpenKind,
    brain::Brain,
    cost::Timings,
    event::{Event, StepReport},
    fleet::{
        Role::{Decode, Prefill},
        WorkerFacts,
    },
    ids::{SessionId, SlotId},
    policy::{Order, PolicyConfig, Steal},
    request::PrefixMark,
    step::StepMode,
    units::{Micros, Tokens},
};

use crate::support::{
    policy::{arrive, computes, fleet, gpu, opens, policy, step, tell, wake},
    report, request,
};

fn prompt_us(tokens: u32) -> u64 {
    Timings::h100_8b().prefill_us(Tokens(tokens)).0
}

/// A decode worker says that its imports are reserved, then that they arrived.
fn take_over(brain: &mut Brain, now: u64, session: u64, slots: &[u32]) {
    let opened = StepReport {
        opened: slots.iter().copied().map(SlotId).collect(),
        ..report(session, Decode)
    };
    tell(brain, now, opened);
}

fn arrived(session: u64, slots: &[u32]) -> StepReport {
    StepReport {
        arrived: slots
            .iter()
            .map(|&slot| (SlotId(slot), Tokens(1)))
            .collect(),
        ..report(session, Decode)
    }
}

/// One prefill worker with so much to do that decode workers help; returns what the last prompt
/// opened. Each prompt takes 118 ms.
fn flood(brain: &mut Brain, prompts: u64) -> Vec<(u64, u64)> {
    let mut opened = Vec::new();
    for id in 1..=prompts {
        opened.extend(computes(&arrive(brain, 0, id, 4_000)));
    }
    opened
}

#[test]
fn idle_workers_help_once_the_queue_is_long_and_take_one_prompt_each() {
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Decode, 400_000),
        gpu(Decode, 400_000),
    ];
    // A quarter of 2 s are five prompts.
    let mut brain = fleet(policy(), &workers);
    assert_eq!(flood(&mut brain, 5), []);
    assert_eq!(brain.status().stolen_total, 0);
    let mut stolen = Vec::new();
    for id in 6..=9 {
        stolen.extend(computes(&arrive(&mut brain, 1, id, 4_000)));
    }
    // Nobody runs at either: in order, one prompt each, the next after its first token.
    assert_eq!(stolen, [(2, 2), (3, 3)]);
    assert_eq!(brain.status().stolen_total, 2);
    for id in 10..=12 {
        assert_eq!(computes(&arrive(&mut brain, 1, id, 4_000)), []);
    }
    let done = step(3, Decode, &[0], &[]);
    assert_eq!(computes(&tell(&mut brain, 2, done)), [(4, 3)]);
    assert_eq!(brain.status().stolen_total, 3);
}

#[test]
fn stealing_is_a_rule_that_can_be_off() {
    let off = PolicyConfig {
        steal: Steal::Never,
        ..policy()
    };
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Decode, 400_000),
        gpu(Decode, 400_000),
    ];
    let mut brain = fleet(off, &workers);
    flood(&mut brain, 20);
    assert_eq!(brain.status().stolen_total, 0);
}

/// A fleet whose only decode worker decodes one sequence, and 20 prompts of 4,000 tokens wait.
fn busy() -> Brain {
    let workers = [gpu(Prefill, 400_000), gpu(Decode, 60_000)];
    let mut brain = fleet(policy(), &workers);
    arrive(&mut brain, 0, 100, 1_000);
    take_over(&mut brain, 1, 2, &[0]);
    tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    tell(&mut brain, 31_000, arrived(2, &[0]));
    tell(&mut brain, 32_000, step(1, Prefill, &[], &[0]));
    flood(&mut brain, 20);
    brain
}

#[test]
fn a_busy_worker_takes_a_prompt_at_its_report_if_it_is_done_in_time() {
    let mut brain = busy();
    let before = brain.status().stolen_total;
    let decoded = || {
        let mut decoded = step(2, Decode, &[0], &[]);
        decoded.load.step = 9;
        decoded
    };
    let slow = |step_us: u32| {
        let mut slow = decoded();
        slow.load.decode_step_us = step_us;
        slow.load.mixed_penalty_permille = 200;
        slow
    };
    // Steps of 75 of 76 ms leave no time for prompts.
    assert_eq!(computes(&tell(&mut brain, 40_000, slow(75_000))), []);
    assert_eq!(brain.status().stolen_total, before);
    assert_eq!(computes(&tell(&mut brain, 50_000, slow(8_000))).len(), 1);
    assert_eq!(brain.status().stolen_total, before + 1);
    // One at a time.
    assert_eq!(computes(&tell(&mut brain, 60_000, slow(8_000))), []);
}

#[test]
fn what_is_slowed_down_too_much_to_be_in_time_is_left() {
    // 120 ms alone; due 500 ms after its arrival.
    let tight = PolicyConfig {
        ttft: Micros::from_millis(500),
        ..policy()
    };
    let workers = [gpu(Prefill, 400_000), gpu(Decode, 60_000)];
    let tell_step = |brain: &mut Brain, now, step_us| {
        let mut decoded = step(2, Decode, &[0], &[]);
        (decoded.load.step, decoded.load.decode_step_us) = (now, step_us);
        computes(&tell(brain, now, decoded)).len()
    };
    let mut brain = fleet(tight, &workers);
    arrive(&mut brain, 0, 100, 1_000);
    take_over(&mut brain, 1, 2, &[0]);
    tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    tell(&mut brain, 31_000, arrived(2, &[0]));
    for id in 1..=8 {
        arrive(&mut brain, 40_000, id, 4_000);
    }
    // A pace of 76 ms and steps of 60: 1.15 x 76 / 16 = 5.5 times as long, 650 ms.
    assert_eq!(tell_step(&mut brain, 50_000, 60_000), 0);
    // Steps of 40: 2.4 times, 290 ms.
    assert_eq!(tell_step(&mut brain, 60_000, 40_000), 1);
    assert!(prompt_us(4_000) > 90_000);
}

#[test]
fn nobody_helps_beyond_its_part_of_the_pool() {
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Decode, 4_800),
        gpu(Decode, 400_000),
    ];
    let limited = PolicyConfig {
        steal_kv_ratio: 0.2,
        ..policy()
    };
    let mut brain = fleet(limited, &workers);
    // 1,000 of 4,800 tokens: beyond a fifth.
    arrive(&mut brain, 0, 100, 1_000);
    take_over(&mut brain, 1, 2, &[0]);
    tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    tell(&mut brain, 31_000, arrived(2, &[0]));
    for id in 1..=30 {
        arrive(&mut brain, 40_000, id, 1_500);
    }
    let mut decoded = step(2, Decode, &[0], &[]);
    (decoded.load.step, decoded.load.decode_step_us) = (9, 8_000);
    let stolen = computes(&tell(&mut brain, 50_000, decoded));
    assert!(
        stolen.iter().all(|&(_, session)| session != 2),
        "{stolen:?}"
    );
}

#[test]
fn late_prompts_are_for_workers_with_nothing_to_do() {
    let mut brain = busy();
    let late = 10_000_000;
    let mut decoded = step(2, Decode, &[0], &[]);
    (decoded.load.step, decoded.load.decode_step_us) = (9, 8_000);
    let mut at_report = computes(&tell(&mut brain, late, decoded));
    // Those that are late step behind, a few at a time.
    while brain.next_wake().is_some_and(|at| at.0 <= late) {
        at_report.extend(computes(&wake(&mut brain, late)));
    }
    assert!(
        at_report.iter().all(|&(_, session)| session == 1),
        "{at_report:?}"
    );
    // It becomes idle: its sequence ends.
    let ended = computes(&tell(&mut brain, late + 1, step(2, Decode, &[], &[0])));
    assert!(ended.iter().any(|&(_, session)| session == 2), "{ended:?}");
}

#[test]
fn without_prefill_workers_decode_workers_compute_everything() {
    let mut brain = fleet(policy(), &[gpu(Decode, 400_000), gpu(Decode, 400_000)]);
    let first: Vec<_> = (1..=5)
        .flat_map(|id| opens(&arrive(&mut brain, id, id, 2_000)))
        .collect();
    assert_eq!(
        first,
        [(1, 1, OpenKind::Compute), (2, 2, OpenKind::Compute)]
    );
    // Much too late for the others: they are served at the next report all the same.
    let late = 60_000_000;
    let next = computes(&tell(&mut brain, late, step(1, Decode, &[0], &[])));
    assert_eq!(next.len(), 1);
    let next = computes(&tell(&mut brain, late + 1, step(2, Decode, &[0], &[])));
    assert_eq!(next.len(), 1);
    assert_eq!(computes(&wake(&mut brain, late + 2)), []);
    let next = computes(&tell(&mut brain, late + 3, step(1, Decode, &[1], &[])));
    assert_eq!(next.len(), 1);
    assert_eq!(brain.status().requests_waiting, 0);
}

#[test]
fn a_fixed_threshold_takes_short_prompts_whatever_waits() {
    let fixed = PolicyConfig {
        steal: Steal::Shorter(Tokens(512)),
        ..policy()
    };
    let workers = [gpu(Prefill, 400_000), gpu(Decode, 400_000)];
    let mut brain = fleet(fixed, &workers);
    assert_eq!(
        opens(&arrive(&mut brain, 0, 1, 511)),
        [(1, 2, OpenKind::Compute)]
    );
    assert_eq!(
        opens(&arrive(&mut brain, 0, 2, 512)),
        [(2, 2, OpenKind::Import)]
    );
}

#[test]
fn without_pauses_a_prompt_has_what_mixed_steps_leave() {
    let mixing = |mode| {
        let mut mixing = policy();
        mixing.step.mode = mode;
        mixing
    };
    let stolen = |mode| {
        let mut brain = fleet(mixing(mode), &[gpu(Prefill, 400_000), gpu(Decode, 60_000)]);
        arrive(&mut brain, 0, 100, 1_000);
        take_over(&mut brain, 1, 2, &[0]);
        tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
        tell(&mut brain, 31_000, arrived(2, &[0]));
        flood(&mut brain, 20);
        let mut decoded = step(2, Decode, &[0], &[]);
        // Mixed steps of 68 ms, a fifth dearer, leave nothing beside 60 ms.
        (decoded.load.step, decoded.load.decode_step_us) = (9, 60_000);
        decoded.load.mixed_penalty_permille = 200;
        computes(&tell(&mut brain, 40_000, decoded)).len()
    };
    assert_eq!(stolen(StepMode::PauseOrMix), 1);
    assert_eq!(stolen(StepMode::ChunkInTime), 0);
}

#[test]
fn who_has_no_room_or_is_on_its_way_out_takes_nothing_and_the_next_one_is_asked() {
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Decode, 1_600),
        gpu(Decode, 400_000),
        gpu(Decode, 400_000),
    ];
    let mut brain = fleet(policy(), &workers);
    let drains = StepReport {
        draining: true,
        ..report(4, Decode)
    };
    tell(&mut brain, 0, drains.clone());
    flood(&mut brain, 9);
    assert_eq!(brain.status().stolen_total, 1);
    assert_eq!(computes(&tell(&mut brain, 1, drains)), []);
    assert_eq!(computes(&tell(&mut brain, 2, report(2, Decode))), []);
    // Room is asked for by who has none: an idle one takes what fits, however little of its pool
    // may be used beside others.
    let nothing_beside = PolicyConfig {
        steal_kv_ratio: 0.0,
        ..policy()
    };
    let mut brain = fleet(nothing_beside, &[0, 2, 3].map(|at| workers[at].clone()));
    flood(&mut brain, 9);
    assert_eq!(brain.status().stolen_total, 1);
}

#[test]
fn they_help_as_well_when_the_first_has_waited_whatever_was_predicted() {
    let mut brain = fleet(policy(), &[gpu(Prefill, 400_000), gpu(Decode, 400_000)]);
    // More than a step: nothing is bound behind it before the worker says something.
    arrive(&mut brain, 0, 1, 9_000);
    arrive(&mut brain, 0, 2, 100);
    let idle = || report(2, Decode);
    assert_eq!(computes(&tell(&mut brain, 400_000, idle())), []);
    assert_eq!(computes(&tell(&mut brain, 600_000, idle())), [(2, 2)]);
}

#[test]
fn a_choice_whose_prompt_is_computed_elsewhere_is_left() {
    let narrow = WorkerFacts {
        num_seqs_max: 1,
        ..gpu(Prefill, 400_000)
    };
    for (choices, stolen) in [(2, vec![]), (1, vec![(2, 2)])] {
        let mut brain = fleet(policy(), &[narrow.clone(), gpu(Decode, 400_000)]);
        // The prefill worker has one seat, which the first of the choices, or the first, takes.
        for id in [1, 2] {
            let mut facts = request(id, 4_000, 100);
            facts.choices = choices;
            if (id, choices) != (2, 2) {
                brain.handle(Micros(0), Event::RequestArrived(facts));
            }
        }
        let found = computes(&tell(&mut brain, 600_000, report(2, Decode)));
        assert_eq!(found, stolen, "{choices}");
    }
}

#[test]
fn choices_spread_where_all_are_labelled_decode_and_the_first_has_no_room() {
    for (seats, found) in [(1, vec![(1, 1), (1, 2)]), (2, vec![(1, 1), (1, 1)])] {
        let one = WorkerFacts {
            num_seqs_max: seats,
            ..gpu(Decode, 400_000)
        };
        let mut brain = fleet(policy(), &[one.clone(), one]);
        let mut facts = request(1, 4_000, 100);
        facts.choices = 2;
        let mut opened = computes(&brain.handle(Micros(0), Event::RequestArrived(facts)));
        opened.extend(computes(&tell(&mut brain, 1_000, report(2, Decode))));
        assert_eq!(opened, found, "{seats}");
    }
}

#[test]
fn what_a_helper_has_cached_it_need_not_compute() {
    for (stored, use_prefixes) in [(vec![], true), (vec![77], false), (vec![77], true)] {
        let rules = PolicyConfig {
            use_prefixes,
            ..policy()
        };
        let mut brain = fleet(rules, &[gpu(Prefill, 400_000), gpu(Decode, 400_000)]);
        let kept = StepReport {
            stored: stored.clone(),
            ..report(2, Decode)
        };
        tell(&mut brain, 0, kept);
        arrive(&mut brain, 0, 1, 9_000);
        // All of it takes 120 ms, and there a third more; of 130.
        let mut facts = request(2, 4_000, 100);
        facts.slo.ttft = Some(Micros(130_000));
        facts.prefix = [PrefixMark {
            pages: 240,
            hash: 77,
        }]
        .into();
        let found = computes(&brain.handle(Micros(0), Event::RequestArrived(facts)));
        let is_cached = use_prefixes && !stored.is_empty();
        assert_eq!(found.is_empty(), !is_cached, "{found:?}");
    }
}

#[test]
fn the_first_of_the_next_few_that_is_in_time_is_taken() {
    let by_arrival = PolicyConfig {
        order: Order::Fcfs,
        ..policy()
    };
    let mut brain = fleet(by_arrival, &[gpu(Prefill, 400_000), gpu(Decode, 60_000)]);
    arrive(&mut brain, 0, 100, 1_000);
    take_over(&mut brain, 1, 2, &[0]);
    tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    tell(&mut brain, 31_000, arrived(2, &[0]));
    arrive(&mut brain, 40_000, 1, 9_000);
    // Steps of 40 ms make prompts 2.4 times as long: 290 ms the first, 75 ms the second.
    for (id, prompt) in [(2, 4_000), (3, 1_000)] {
        let mut facts = request(id, prompt, 100);
        facts.slo.ttft = Some(Micros(200_000));
        brain.handle(Micros(40_000), Event::RequestArrived(facts));
    }
    let mut decoded = step(2, Decode, &[0], &[]);
    (decoded.load.step, decoded.load.decode_step_us) = (9, 40_000);
    assert_eq!(computes(&tell(&mut brain, 50_000, decoded)), [(3, 2)]);
}

#[test]
fn who_is_to_be_computed_again_waits_until_its_time_for_helpers_too() {
    let [prefill, decode] = [gpu(Prefill, 400_000), gpu(Decode, 400_000)];
    let mut brain = fleet(policy(), &[prefill, decode.clone(), decode]);
    arrive(&mut brain, 0, 1, 4_000);
    take_over(&mut brain, 1, 2, &[0]);
    let lost = Event::SessionLost {
        session: SessionId(1),
    };
    assert_eq!(computes(&brain.handle(Micros(10), lost)), []);
    // Others may die of the same cause in a moment: who never ran goes before it.
    let ids = |taken: Vec<(u64, u64)>| taken.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(computes(&arrive(&mut brain, 11, 2, 100))), [2]);
    assert_eq!(computes(&tell(&mut brain, 12, report(2, Decode))), []);
    assert_eq!(computes(&tell(&mut brain, 12, report(3, Decode))), []);
    let mut taken = Vec::new();
    for _ in 0..3 {
        if let Some(at) = brain.next_wake() {
            taken.extend(computes(&wake(&mut brain, at.0)));
        }
    }
    assert_eq!(ids(taken), [1]);
}

/// What goes next is looked at as if each prompt were charged when it goes: after a long one its
/// tenant has had its turn.
#[test]
fn those_that_go_next_are_looked_at_as_if_each_were_charged_when_it_goes() {
    let rules = PolicyConfig {
        order: Order::Fcfs,
        share_quantum: Tokens(1_000),
        ..policy()
    };
    let mut brain = fleet(rules, &[gpu(Prefill, 400_000), gpu(Decode, 60_000)]);
    arrive(&mut brain, 0, 100, 1_000);
    take_over(&mut brain, 1, 2, &[0]);
    tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    tell(&mut brain, 31_000, arrived(2, &[0]));
    arrive(&mut brain, 40_000, 1, 9_000);
    // The one that comes second is a quantum behind the first, so its long prompt goes next. Steps
    // of 40 ms make that one too late for the helper, and the others not.
    for (id, tenant, prompt) in [(2, 2, 1_000), (3, 1, 4_000), (4, 1, 1_000)] {
        let mut facts = request(id, prompt, 100);
        (facts.tenant, facts.slo.ttft) = (tenant, Some(Micros(200_000)));
        brain.handle(Micros(40_000), Event::RequestArrived(facts));
    }
    let mut decoded = step(2, Decode, &[0], &[]);
    (decoded.load.step, decoded.load.decode_step_us) = (9, 40_000);
    assert_eq!(computes(&tell(&mut brain, 50_000, decoded)), [(2, 2)]);
}

/// Workers that ask in one event look at the same list; what one takes makes it anew.
#[test]
fn after_one_took_a_prompt_the_next_looks_at_what_is_left() {
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Decode, 400_000),
        gpu(Decode, 400_000),
    ];
    for (last, taken) in [(4_000, vec![(2, 2)]), (9_000, vec![(2, 2), (3, 3)])] {
        let mut brain = fleet(
            PolicyConfig {
                order: Order::Fcfs,
                ..policy()
            },
            &workers,
        );
        assert_eq!(flood(&mut brain, 5), []);
        // With it they are behind; once the first of four short ones is gone, they are not.
        let stolen = computes(&arrive(&mut brain, 1, 6, last));
        assert_eq!(stolen, taken, "{last} tokens");
    }
}
