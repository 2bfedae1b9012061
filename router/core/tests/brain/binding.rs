//! When a prompt gets its worker: late, when it is about to be free, or early, when it comes.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "few workers, short times"
)]

use dopd_core::{
    cost::Timings,
    event::StepReport,
    fleet::Role::{Decode, Mixed, Prefill},
    policy::{Bind, PlaceBy, PolicyConfig, Steal},
    units::{Micros, Tokens},
};

use crate::support::{
    policy::{arrive, computes, fleet, gpu, policy, step, tell, wake},
    report,
};

/// Of 1,000 tokens alone, on these workers.
fn prompt_us(tokens: u32) -> u64 {
    Timings::h100_8b().prefill_us(Tokens(tokens)).0
}

fn pull() -> PolicyConfig {
    PolicyConfig {
        steal: Steal::Never,
        ..policy()
    }
}

#[test]
fn a_worker_is_given_its_next_prompts_just_before_it_is_free() {
    let mut brain = fleet(pull(), &[gpu(Mixed, 400_000)]);
    assert_eq!(computes(&arrive(&mut brain, 1_000, 1, 1_000)), [(1, 1)]);
    assert_eq!(brain.next_wake().filter(|at| at.0 < 1_000_000), None);
    assert_eq!(computes(&arrive(&mut brain, 2_000, 2, 1_000)), []);
    let due = 1_000 + prompt_us(1_000) - 2_000;
    assert_eq!(brain.next_wake(), Some(Micros(due)));
    assert_eq!(computes(&wake(&mut brain, due - 1)), []);
    assert_eq!(computes(&wake(&mut brain, due)), [(2, 1)]);
    // The third waits for the end of the second, which begins at the end of the first.
    assert_eq!(computes(&arrive(&mut brain, due + 1, 3, 1_000)), []);
    assert_eq!(brain.next_wake(), Some(Micros(due + prompt_us(1_000))));
}

#[test]
fn workers_that_are_due_are_served_at_wakes_one_each() {
    let mut brain = fleet(
        pull(),
        &[
            gpu(Mixed, 400_000),
            gpu(Mixed, 400_000),
            gpu(Mixed, 400_000),
        ],
    );
    for (id, prompt) in [(1, 1_000), (2, 2_000), (3, 3_000)] {
        assert_eq!(computes(&arrive(&mut brain, id, id, prompt)).len(), 1);
    }
    for id in 4..16 {
        assert_eq!(computes(&arrive(&mut brain, id, id, 1_000)), []);
    }
    // All three were due long ago, and nobody woke it.
    let late = 900_000;
    assert_eq!(computes(&arrive(&mut brain, late, 16, 1_000)), []);
    for session in 1..=3 {
        assert!(brain.next_wake().is_some_and(|at| at.0 < late), "at once");
        let given = computes(&wake(&mut brain, late));
        let sessions: Vec<u64> = given.iter().map(|&(_, to)| to).collect();
        assert_eq!(sessions, [session; 4], "what one worker takes at a time");
    }
    assert!(brain.next_wake().is_some_and(|at| at.0 > late));
}

#[test]
fn the_report_of_a_step_corrects_the_prediction() {
    let mut brain = fleet(pull(), &[gpu(Prefill, 400_000)]);
    arrive(&mut brain, 0, 1, 20_000);
    assert_eq!(computes(&arrive(&mut brain, 1, 2, 1_000)), []);
    // The first two reports may be older than the open; then half of it is left.
    let mut half = report(1, Prefill);
    half.load.prefill_tokens_queued = Tokens(8_000);
    for now in [100_000, 200_000] {
        assert_eq!(computes(&tell(&mut brain, now, half_of(&half, now))), []);
    }
    let now = 300_000;
    assert_eq!(computes(&tell(&mut brain, now, half_of(&half, now))), []);
    let begins = Timings::h100_8b().step_prefill_us * 2.0;
    let whole = prompt_us(20_000) as f64 + begins;
    let due = now + (whole * 0.4) as u64 - 2_000;
    let wake_at = brain.next_wake().map_or(0, |at| at.0);
    assert!(wake_at.abs_diff(due) <= 2, "{wake_at} {due}");
    // It is done earlier.
    let done = step(1, Prefill, &[0], &[]);
    assert_eq!(computes(&tell(&mut brain, now + 10, done)), [(2, 1)]);
}

fn half_of(report: &StepReport, step: u64) -> StepReport {
    let mut report = report.clone();
    report.load.step = step;
    report
}

#[test]
fn a_pull_is_of_few_tokens_and_at_least_one_prompt() {
    let mut brain = fleet(pull(), &[gpu(Mixed, 400_000)]);
    assert_eq!(computes(&arrive(&mut brain, 0, 1, 100)), [(1, 1)]);
    for id in 2..=7 {
        assert_eq!(computes(&arrive(&mut brain, id, id, 1_000)), []);
    }
    arrive(&mut brain, 8, 8, 30_000);
    // Free again: four thousand tokens of 4,096, the shortest first, nothing for company.
    let done = step(1, Mixed, &[0], &[]);
    let first = computes(&tell(&mut brain, 20_000, done));
    assert_eq!(first, [(2, 1), (3, 1), (4, 1), (5, 1)]);
    let done = step(1, Mixed, &[0, 1, 2, 3, 4], &[]);
    assert_eq!(computes(&tell(&mut brain, 150_000, done)).len(), 2);
    // More than the limit, but one.
    let done = step(1, Mixed, &[0, 1, 2, 3, 4, 5, 6], &[]);
    assert_eq!(computes(&tell(&mut brain, 200_000, done)), [(8, 1)]);
}

#[test]
fn workers_that_are_free_share_what_waits() {
    let mut brain = fleet(pull(), &[gpu(Mixed, 400_000), gpu(Mixed, 400_000)]);
    arrive(&mut brain, 0, 1, 1_000);
    arrive(&mut brain, 0, 2, 1_000);
    for id in 3..=4 {
        assert_eq!(computes(&arrive(&mut brain, 1, id, 1_000)), []);
    }
    // Both are about to be free at one moment.
    let due = prompt_us(1_000);
    assert_eq!(computes(&wake(&mut brain, due)), [(3, 1), (4, 2)]);
}

#[test]
fn an_instant_worker_gets_a_step_of_prompts_ahead_and_no_more() {
    let mut instant = gpu(Mixed, 400_000);
    instant.timings = Timings::instant();
    instant.batch_tokens_max = Tokens(64);
    let mut brain = fleet(pull(), &[instant]);
    let bound = |brain: &mut _| {
        (1..=8)
            .map(|id| computes(&arrive(brain, id, id, 32)).len())
            .sum::<usize>()
    };
    // 32 + 32 pending: at most a step; then one more.
    assert_eq!(bound(&mut brain), 3);
    let done = step(1, Mixed, &[0, 1, 2], &[]);
    assert_eq!(computes(&tell(&mut brain, 9, done)).len(), 3);
}

#[test]
fn a_worker_without_timings_is_known_by_what_its_steps_took() {
    let mut cpu = gpu(Mixed, 400_000);
    cpu.timings = Timings::instant();
    cpu.batch_tokens_max = Tokens(128);
    let mut brain = fleet(pull(), &[cpu]);
    for number in 1..=20 {
        let mut taught = report(1, Mixed);
        taught.load.step = number;
        taught.load.step_us = 300_000;
        taught.load.step_prefill_tokens = Tokens(64);
        tell(&mut brain, number, taught);
    }
    // 64 tokens take 300 ms; bound 2 ms before that is over.
    assert_eq!(computes(&arrive(&mut brain, 1_000, 1, 64)), [(1, 1)]);
    assert_eq!(computes(&arrive(&mut brain, 2_000, 2, 64)), []);
    assert_eq!(brain.next_wake(), Some(Micros(299_000)));
    assert_eq!(computes(&wake(&mut brain, 299_000)), [(2, 1)]);
    assert_eq!(computes(&arrive(&mut brain, 299_001, 3, 64)), []);
    // It is done at once for some reason: the next one at once.
    let done = step(1, Mixed, &[0, 1], &[]);
    assert_eq!(computes(&tell(&mut brain, 300_000, done)), [(3, 1)]);
}

#[test]
fn a_straggler_gets_fewer_prompts() {
    let workers = [gpu(Prefill, 400_000), gpu(Prefill, 400_000)];
    let mut brain = fleet(pull(), &workers);
    for number in 1..=40 {
        for (session, us) in [(1, 81_000), (2, 27_000)] {
            let mut taught = report(session, Prefill);
            taught.load.step = number;
            (taught.load.step_us, taught.load.step_expected_us) = (us, 27_000);
            taught.load.step_prefill_tokens = Tokens(1_000);
            tell(&mut brain, number, taught);
        }
    }
    // Time passes by wake-ups alone: predictions decide.
    let mut given = [0; 2];
    for id in 1..=60 {
        for (_, session) in computes(&arrive(&mut brain, 1_000, id, 1_000)) {
            given[session as usize - 1] += 1;
        }
    }
    for _ in 0..100 {
        if given.iter().sum::<u32>() >= 20 {
            break;
        }
        let at = brain.next_wake().map_or(0, |at| at.0);
        for (_, session) in computes(&wake(&mut brain, at)) {
            given[session as usize - 1] += 1;
        }
        // It is as fast as predicted.
        for session in 1..=2 {
            let mut busy = report(session, Prefill);
            busy.load.prefill_tokens_queued = Tokens(0);
            tell(&mut brain, at, busy);
        }
    }
    assert!(given[0] + given[1] >= 20, "{given:?}");
    assert!(given[1] >= 2 * given[0], "{given:?}");
}

#[test]
fn bound_early_a_prompt_waits_at_the_least_loaded_worker() {
    let push = PolicyConfig {
        bind: Bind::Early,
        ..pull()
    };
    let mut brain = fleet(push, &[gpu(Mixed, 400_000), gpu(Mixed, 400_000)]);
    let lengths = [3_000, 1_000, 1_000, 500];
    let places: Vec<_> = (1..)
        .zip(lengths)
        .flat_map(|(id, prompt)| computes(&arrive(&mut brain, id, id, prompt)))
        .collect();
    assert_eq!(places, [(1, 1), (2, 2), (3, 2), (4, 2)]);
    assert_eq!(brain.status().requests_waiting, 0);
}

#[test]
fn bound_early_in_turn_everybody_gets_as_many() {
    let turns = PolicyConfig {
        bind: Bind::Early,
        place: PlaceBy::RoundRobin,
        ..pull()
    };
    let workers = [
        gpu(Mixed, 400_000),
        gpu(Mixed, 400_000),
        gpu(Mixed, 400_000),
    ];
    let mut brain = fleet(turns, &workers);
    let places: Vec<u64> = (1..=7)
        .flat_map(|id| computes(&arrive(&mut brain, id, id, 10 * id as u32)))
        .map(|(_, session)| session)
        .collect();
    assert_eq!(places, [1, 2, 3, 1, 2, 3, 1]);
}

#[test]
fn mixed_workers_pull_at_their_step_boundaries_while_they_decode() {
    let mut brain = fleet(pull(), &[gpu(Mixed, 400_000)]);
    arrive(&mut brain, 0, 1, 1_000);
    arrive(&mut brain, 0, 2, 1_000);
    let first = step(1, Mixed, &[0], &[]);
    assert_eq!(computes(&tell(&mut brain, 27_000, first)), [(2, 1)]);
    // Beside one that decodes, the second takes longer than alone.
    assert_eq!(computes(&arrive(&mut brain, 28_000, 3, 1_000)), []);
    let due = brain.next_wake().map_or(0, |at| at.0);
    assert!(due > 27_000 + prompt_us(1_000) - 2_000, "{due}");
    let busy = |queued| {
        let mut busy = step(1, Mixed, &[0], &[]);
        busy.load.prefill_tokens_queued = Tokens(queued);
        busy
    };
    assert_eq!(computes(&tell(&mut brain, 40_000, busy(500))), []);
    let second = step(1, Mixed, &[0, 1], &[]);
    assert_eq!(computes(&tell(&mut brain, 60_000, second)), [(3, 1)]);
}

#[test]
fn a_prompt_goes_where_its_prefix_is_kept_if_that_worker_is_free() {
    use dopd_core::{event::Event, request::PrefixMark};
    let workers = [
        gpu(Prefill, 400_000),
        gpu(Prefill, 400_000),
        gpu(Decode, 400_000),
    ];
    let mut brain = fleet(pull(), &workers);
    let mut kept = report(2, Prefill);
    kept.stored = vec![77];
    tell(&mut brain, 0, kept);
    let mut next = |id, now| {
        let mut facts = crate::support::request(id, 1_000, 100);
        facts.prefix = [PrefixMark {
            pages: 60,
            hash: 77,
        }]
        .into();
        brain.handle(Micros(now), Event::RequestArrived(facts));
        brain
            .status()
            .sessions
            .iter()
            .map(|session| session.seats_open)
            .collect::<Vec<_>>()
    };
    assert_eq!(next(1, 1), [0, 1, 1]);
    // It is busy: what is free goes first.
    assert_eq!(next(2, 2), [1, 1, 2]);
}

#[test]
fn a_computed_prompt_is_no_work_any_more() {
    let mut brain = fleet(policy(), &[gpu(Mixed, 400_000), gpu(Mixed, 400_000)]);
    assert_eq!(computes(&arrive(&mut brain, 0, 1, 8_000)), [(1, 1)]);
    assert_eq!(computes(&arrive(&mut brain, 0, 2, 100)), [(2, 2)]);
    // Both decode; the first with short steps, the other with long ones.
    for (session, decode_step_us) in [(1, 8_000), (2, 60_000)] {
        let mut decoded = step(session, Mixed, &[0], &[]);
        (decoded.load.step, decoded.load.decode_step_us) = (1, decode_step_us);
        tell(&mut brain, 400_000, decoded);
    }
    assert_eq!(computes(&arrive(&mut brain, 400_001, 3, 512)), [(3, 1)]);
}
