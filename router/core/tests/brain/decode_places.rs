//! Which decode worker gets a sequence: against a reference that looks at all of them, and the
//! rules about when there is none.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "few workers and sequences"
)]

use dopd_core::{
    action::{Action, OpenKind},
    brain::Brain,
    cost::{StepShape, Timings},
    event::{CloseReason, Event, StepReport},
    fleet::Role::{self, Decode, Mixed, Prefill},
    ids::{RequestId, SlotId},
    policy::{Bind, PlaceBy, PolicyConfig, Steal},
    request::Slo,
    units::{Micros, Tokens},
};
use proptest::prelude::*;

use crate::support::{
    cases, closed, joined,
    policy::{arrive, computes, fleet, gpu, opens, policy, step, tell},
    report, request,
};

/// A decode worker as the reference sees it: its pool in tokens, and what was promised.
#[derive(Debug)]
struct Place {
    pool: u32,
    holds: Vec<Hold>,
}

/// One sequence that was promised a place.
#[derive(Clone, Copy, Debug)]
struct Hold {
    id: u64,
    prompt: u32,
    answer: u32,
    tpot: Micros,
    slot: SlotId,
}

const PAGE: u32 = 16;

impl Place {
    fn pages_free(&self) -> u32 {
        let pages = |hold: &Hold| (hold.prompt + hold.answer).div_ceil(PAGE);
        self.pool / PAGE - self.holds.iter().map(pages).sum::<u32>()
    }

    fn kv(&self) -> u32 {
        self.holds.iter().map(|hold| hold.prompt).sum()
    }

    fn step_us(&self, prompt: u32) -> f64 {
        Timings::h100_8b().step_us(StepShape {
            prefill: &[],
            decode_seqs: self.holds.len() as u32 + 1,
            decode_context_sum: u64::from(self.kv() + prompt),
        }) as f64
    }

    fn fits(&self, rules: &PolicyConfig, prompt: u32, answer: u32, tpot: Micros) -> bool {
        if u32::div_ceil(prompt + answer, PAGE) > self.pages_free() {
            return false;
        }
        let tightest = self
            .holds
            .iter()
            .map(|hold| hold.tpot)
            .min()
            .unwrap_or(tpot);
        let alone = Timings::h100_8b().step_us(StepShape {
            decode_seqs: 1,
            ..StepShape::default()
        });
        let target = tightest.min(tpot).max(Micros(2 * alone)).0 as f64;
        self.holds.is_empty()
            || (f64::from(self.kv() + prompt) <= rules.place_kv_ratio * f64::from(self.pool)
                && self.step_us(prompt) <= rules.place_step_ratio * target)
    }

    fn score(&self, place: PlaceBy) -> i64 {
        match place {
            PlaceBy::LeastTokens => i64::from(self.kv()),
            PlaceBy::FewestSequences => self.holds.len() as i64,
            PlaceBy::MostPages => -i64::from(self.pages_free()),
            PlaceBy::RoundRobin => 0,
        }
    }
}

/// The naive choice: all that fit, the best score, the first of equals; in turn the next one.
fn naive(
    places: &[Place],
    rules: &PolicyConfig,
    last: Option<usize>,
    (prompt, answer, tpot): (u32, u32, Micros),
) -> Option<usize> {
    let count = places.len();
    let fits = |at: &usize| places[*at].fits(rules, prompt, answer, tpot);
    if rules.place == PlaceBy::RoundRobin {
        let from = last.map_or(0, |last| last + 1);
        return (from..from + count).map(|at| at % count).find(fits);
    }
    (0..count)
        .filter(fits)
        .min_by_key(|&at| (places[at].score(rules.place), at))
}

/// Where an import was opened.
pub(crate) fn import_of(actions: &[Action]) -> Option<(usize, SlotId)> {
    actions.iter().find_map(|action| match *action {
        Action::Open {
            seat,
            kind: OpenKind::Import,
            ..
        } => Some((seat.session.0 as usize - 2, seat.slot)),
        _ => None,
    })
}

/// One of those that hold a place goes: its client, then the worker, say so.
fn leave(brain: &mut Brain, places: &mut [Place], which: usize, now: u64) {
    let all = places.iter().enumerate();
    let ids: Vec<(usize, u64)> = all
        .flat_map(|(at, place)| place.holds.iter().map(move |hold| (at, hold.id)))
        .collect();
    let Some(&(at, id)) = ids.get(which % ids.len().max(1)) else {
        return;
    };
    let request = RequestId(id);
    brain.handle(Micros(now), Event::RequestCancelled { request });
    let index = places[at].holds.iter().position(|hold| hold.id == id);
    let Some(hold) = index.map(|index| places[at].holds.remove(index)) else {
        return;
    };
    let said = StepReport {
        closed: vec![closed(hold.slot.0, CloseReason::Asked)],
        ..report(at as u64 + 2, Decode)
    };
    tell(brain, now, said);
}

proptest! {
    #![proptest_config(cases(120))]

    /// Sequences come and go; every place is the one that the reference chooses.
    #[test]
    fn every_place_is_the_one_that_a_look_at_all_workers_finds(
        place in prop::sample::select(vec![
            PlaceBy::LeastTokens, PlaceBy::FewestSequences, PlaceBy::MostPages, PlaceBy::RoundRobin,
        ]),
        pools in prop::collection::vec(1_000..40_000_u32, 1..9),
        ops in prop::collection::vec((1..6_000_u32, 2..3_000_u32, 0..4_u8, 10..90_u64), 1..60),
    ) {
        let rules = PolicyConfig {
            place,
            bind: Bind::Early,
            keep: false,
            linger_ratio: 0.0,
            steal: Steal::Never,
            ..policy()
        };
        let mut workers = vec![gpu(Prefill, 4_000_000)];
        workers.extend(pools.iter().map(|&pool| gpu(Decode, pool / PAGE * PAGE)));
        let mut brain = fleet(rules.clone(), &workers);
        let mut places: Vec<Place> = pools
            .iter()
            .map(|&pool| Place { pool: pool / PAGE * PAGE, holds: Vec::new() })
            .collect();
        let mut last = None;
        for (id, (prompt, answer, what, tpot_ms)) in (1_u64..).zip(ops) {
            if what == 0 {
                leave(&mut brain, &mut places, prompt as usize, id);
                continue;
            }
            let tpot = Micros::from_millis(tpot_ms);
            let mut facts = request(id, prompt, answer);
            facts.slo = Slo { ttft: None, tpot: Some(tpot) };
            let longest = places.iter().map(|place| place.pool).max();
            let actions = brain.handle(Micros(id), Event::RequestArrived(facts));
            let found = import_of(&actions);
            if longest < Some(prompt + answer) {
                // Nobody could ever take it over: it stays where it is computed.
                prop_assert_eq!(found, None);
                continue;
            }
            let wanted = naive(&places, &rules, last, (prompt, answer, tpot));
            prop_assert_eq!(found.map(|(at, _)| at), wanted, "{:?}", places);
            if let Some((at, slot)) = found {
                last = Some(at);
                places[at].holds.push(Hold { id, prompt, answer, tpot, slot });
            } else {
                // It would wait, and be first.
                let request = RequestId(id);
                brain.handle(Micros(id), Event::RequestCancelled { request });
            }
        }
    }
}

fn pair() -> [dopd_core::fleet::WorkerFacts; 2] {
    [gpu(Prefill, 400_000), gpu(Decode, 40_000)]
}

fn decided(policy: PolicyConfig, prompt: u32) -> Vec<(u64, u64, OpenKind)> {
    let mut brain = fleet(policy, &pair());
    // The decode worker is full in the policy's eyes: 38,000 of 40,000 tokens.
    arrive(&mut brain, 0, 1, 38_000);
    opens(&arrive(&mut brain, 2, 2, prompt))
}

#[test]
fn a_prefill_worker_keeps_what_finds_no_place_while_its_own_step_is_short() {
    let base = PolicyConfig {
        bind: Bind::Early,
        steal: Steal::Never,
        ..policy()
    };
    assert_eq!(decided(base.clone(), 1_000), [(2, 1, OpenKind::Compute)]);
    let never = PolicyConfig {
        keep: false,
        ..base.clone()
    };
    assert_eq!(decided(never, 1_000), []);
    // A step of one sequence is 6.8 ms; with 38,000 tokens of context 8.5 ms of at most 80.
    let short = PolicyConfig {
        keep_step_ratio: 0.1,
        ..base
    };
    assert_eq!(decided(short.clone(), 1_000), [(2, 1, OpenKind::Compute)]);
    assert_eq!(decided(short, 38_000), []);
}

#[test]
fn nothing_is_kept_while_all_prefill_workers_are_busy() {
    let rules = PolicyConfig {
        steal: Steal::Never,
        ..policy()
    };
    let kept = |pool: u32, first: u32| {
        let workers = [
            gpu(Prefill, 400_000),
            gpu(Prefill, 400_000),
            gpu(Decode, pool),
        ];
        let mut brain = fleet(rules.clone(), &workers);
        // The first worker computes it; its place fills the decode worker.
        arrive(&mut brain, 0, 1, first);
        opens(&arrive(&mut brain, 2, 2, 100))
    };
    // For about 1.5 s, a quarter of the target is 0.5 s.
    assert_eq!(kept(40_000, 38_000), []);
    // For about 0.1 s.
    assert_eq!(kept(4_000, 3_800), [(2, 2, OpenKind::Compute)]);
}

#[test]
fn a_full_decode_worker_is_one_whose_pool_or_step_is() {
    let base = PolicyConfig {
        bind: Bind::Early,
        keep: false,
        steal: Steal::Never,
        ..policy()
    };
    let places = |rules: PolicyConfig, prompts: [u32; 2]| {
        let mut brain = fleet(rules, &pair());
        let opened = (1..).zip(prompts);
        let opened = opened.flat_map(|(id, prompt)| opens(&arrive(&mut brain, id, id, prompt)));
        opened.count()
    };
    assert_eq!(places(base.clone(), [20_000, 17_000]), 2);
    // 37,400 of 40,000 tokens are more than 93 %, though pages are left.
    assert_eq!(places(base.clone(), [20_000, 17_400]), 1);
    // Alone it fits.
    assert_eq!(places(base.clone(), [39_000, 10]), 1);
    // 20,000 tokens of context add .9 ms to 6.9.
    let step = |ratio| PolicyConfig {
        place_step_ratio: ratio,
        ..base.clone()
    };
    assert_eq!(places(step(0.098), [19_000, 10_000]), 1);
    assert_eq!(places(step(0.11), [19_000, 10_000]), 2);
}

#[test]
fn a_target_that_no_step_meets_holds_nobody_back() {
    let mut slow = gpu(Decode, 40_000);
    slow.timings.step_decode_us = 300_000.0;
    let rules = PolicyConfig {
        bind: Bind::Early,
        keep: false,
        steal: Steal::Never,
        ..policy()
    };
    let mut brain = fleet(rules, &[gpu(Prefill, 400_000), slow]);
    for id in 1..=4 {
        assert_eq!(
            opens(&arrive(&mut brain, id, id, 100)),
            [(id, 2, OpenKind::Import)]
        );
    }
}

/// What one client asks of its own tokens is no reason to send all others away.
#[test]
fn who_asks_for_what_no_step_meets_makes_no_place_full() {
    let mut slow = gpu(Decode, 40_000);
    (slow.timings.step_decode_us, slow.timings.batch_us_per_seq) = (30_000.0, 10_000.0);
    let rules = PolicyConfig {
        bind: Bind::Early,
        keep: false,
        linger_ratio: 0.0,
        steal: Steal::Never,
        tpot: Micros::from_millis(150),
        ..policy()
    };
    // Steps of 35 ms and 10 for each; up to .93 of 150 ms, so 10 of them.
    let placed = |first_ms: u64| {
        let mut brain = fleet(rules.clone(), &[gpu(Prefill, 400_000), slow.clone()]);
        let mut facts = request(1, 100, 100);
        facts.slo.tpot = Some(Micros::from_millis(first_ms));
        let first = brain.handle(Micros(0), Event::RequestArrived(facts));
        let others = (2..=15).map(|id| opens(&arrive(&mut brain, id, id, 100)).len());
        opens(&first).len() + others.sum::<usize>()
    };
    assert_eq!(placed(150), 10);
    // A step of one takes 45 ms. Twice that is what counts of one that can just be met.
    assert_eq!(placed(1), 10);
    assert_eq!(placed(50), 4);
}

/// The decode worker takes the import in slot 0 over.
fn hand_over(brain: &mut Brain, now: u64) -> Vec<Action> {
    let opened = StepReport {
        opened: vec![SlotId(0)],
        ..report(2, Decode)
    };
    tell(brain, now, opened)
}

#[test]
fn without_the_gate_a_prompt_starts_at_once_and_looks_for_a_place_with_its_first_token() {
    let no_gate = PolicyConfig {
        gate: false,
        steal: Steal::Never,
        ..policy()
    };
    let mut brain = fleet(no_gate, &pair());
    assert_eq!(
        opens(&arrive(&mut brain, 0, 1, 1_000)),
        [(1, 1, OpenKind::Compute)]
    );
    let first = tell(&mut brain, 30_000, step(1, Prefill, &[0], &[]));
    assert_eq!(opens(&first), [(1, 2, OpenKind::Import)]);
    let sent = hand_over(&mut brain, 30_001);
    assert!(
        matches!(sent[..], [Action::Send { to: Some(_), .. }]),
        "{sent:?}"
    );
    // The decode worker is full: the next one is computed, makes tokens, and waits for a place.
    let mut brain = fleet(
        PolicyConfig {
            gate: false,
            steal: Steal::Never,
            ..policy()
        },
        &pair(),
    );
    arrive(&mut brain, 0, 1, 38_000);
    tell(&mut brain, 1, step(1, Prefill, &[0], &[]));
    assert_eq!(computes(&arrive(&mut brain, 2, 2, 1_000)), [(2, 1)]);
    assert_eq!(
        opens(&tell(&mut brain, 3, step(1, Prefill, &[0, 1], &[]))),
        []
    );
    let freed = StepReport {
        closed: vec![closed(0, CloseReason::Lost)],
        ..report(2, Decode)
    };
    // The first one's place is lost: it stays where it is; the second one's turn.
    let opened = opens(&tell(&mut brain, 4, freed));
    assert_eq!(opened, [(2, 2, OpenKind::Import)]);
}

#[test]
fn few_tokens_are_made_at_the_source_where_the_hand_off_is_long() {
    let linger = PolicyConfig {
        linger_ratio: 0.5,
        linger_tokens: Tokens(3),
        steal: Steal::Never,
        ..policy()
    };
    // 8,192 tokens of the last chunk in 80 ms, twice the half of a target of 80 ms.
    let mut slow = gpu(Prefill, 400_000);
    slow.timings.handoff_bytes_per_s = 13.4e9;
    let mut brain = fleet(linger, &[slow, gpu(Decode, 100_000)]);
    assert_eq!(
        opens(&arrive(&mut brain, 0, 1, 9_000)),
        [(1, 1, OpenKind::Compute)]
    );
    for now in 1..=2 {
        assert_eq!(
            opens(&tell(&mut brain, now, step(1, Prefill, &[0], &[]))),
            []
        );
    }
    let third = tell(&mut brain, 3, step(1, Prefill, &[0], &[]));
    assert_eq!(opens(&third), [(1, 2, OpenKind::Import)]);
    // A short one is handed off at once.
    assert_eq!(
        opens(&arrive(&mut brain, 4, 2, 1_000)),
        [(2, 2, OpenKind::Import)]
    );
}

/// Over there a step of one takes 35 ms, of two 55: with the half of one to wait for it the second
/// token of the second one would come after more than its 80 ms.
#[test]
fn the_source_goes_on_where_a_step_and_a_half_over_there_take_longer_than_a_token_may() {
    let mut slow = gpu(Decode, 40_000);
    (slow.timings.step_decode_us, slow.timings.batch_us_per_seq) = (10_000.0, 20_000.0);
    let rules = PolicyConfig {
        bind: Bind::Early,
        steal: Steal::Never,
        tpot: Micros::from_millis(80),
        ..policy()
    };
    let mut brain = fleet(rules, &[gpu(Prefill, 400_000), slow]);
    let first = opens(&arrive(&mut brain, 0, 1, 100));
    assert_eq!(first, [(1, 2, OpenKind::Import)]);
    let second = opens(&arrive(&mut brain, 1, 2, 100));
    assert_eq!(second, [(2, 1, OpenKind::Compute)]);
    // With its first token it looks for a place.
    let token = tell(&mut brain, 9, step(1, Prefill, &[1], &[]));
    assert_eq!(opens(&token), [(2, 2, OpenKind::Import)]);
}

#[test]
fn what_is_kept_moves_on_once_there_is_a_place() {
    let rules = PolicyConfig {
        bind: Bind::Early,
        steal: Steal::Never,
        ..policy()
    };
    let mut brain = fleet(rules, &pair());
    arrive(&mut brain, 0, 1, 38_000);
    assert_eq!(computes(&arrive(&mut brain, 1, 2, 1_000)), [(2, 1)]);
    assert_eq!(opens(&tell(&mut brain, 2, step(1, Prefill, &[1], &[]))), []);
    let freed = StepReport {
        closed: vec![closed(0, CloseReason::Lost)],
        ..report(2, Decode)
    };
    let opened = opens(&tell(&mut brain, 3, freed));
    assert_eq!(opened.first(), Some(&(2, 2, OpenKind::Import)));
}

/// A report of the first worker, which is labelled anew; `tokens` of slot 0.
fn relabelled(role: Role, tokens: u32) -> StepReport {
    let tokens = (tokens > 0).then_some((SlotId(0), Tokens(tokens)));
    StepReport {
        role_epoch: 1,
        tokens: tokens.into_iter().collect(),
        ..report(1, role)
    }
}

#[test]
fn what_leaves_a_worker_that_is_labelled_anew_stays() {
    let no_gate = PolicyConfig {
        gate: false,
        steal: Steal::Never,
        ..policy()
    };
    for role in [Decode, Mixed] {
        // The label comes with the first token, or while it waits for a place.
        let mut brain = fleet(no_gate.clone(), &pair());
        assert_eq!(computes(&arrive(&mut brain, 0, 1, 1_000)), [(1, 1)]);
        assert_eq!(opens(&tell(&mut brain, 1, relabelled(role, 1))), []);

        let mut brain = fleet(no_gate.clone(), &[gpu(Prefill, 400_000)]);
        assert_eq!(computes(&arrive(&mut brain, 0, 1, 1_000)), [(1, 1)]);
        assert_eq!(opens(&tell(&mut brain, 1, step(1, Prefill, &[0], &[]))), []);
        assert_eq!(opens(&tell(&mut brain, 2, relabelled(role, 0))), []);
        // It has arrived: a worker that comes later does not get it.
        let joins = brain.handle(Micros(3), joined(2, gpu(Decode, 40_000)));
        assert_eq!(opens(&joins), []);
    }
}
