//! Figures against sums made by hand and against naive ones.
#![expect(
    clippy::float_cmp,
    reason = "these sums are exact: small whole numbers and halves"
)]

use dopd_core::units::Micros;
use dopd_sim::{
    outcome::{Ending, Outcome, RequestOutcome, WorkerOutcome},
    report::{Figures, Spread, quantile},
    scenario::SloRule,
};
use proptest::prelude::*;

const SLO: SloRule = SloRule {
    ttft: Micros(500_000),
    ttft_prefill_ratio: 0.0,
    tpot: Micros(30_000),
};

/// Came at `at_ms`, first token after `ttft_ms`, then `tpot_ms` per token.
fn answered(at_ms: u64, prompt: u32, output: u32, ttft_ms: u64, tpot_ms: u64) -> RequestOutcome {
    let first = Micros::from_millis(at_ms + ttft_ms);
    RequestOutcome {
        arrival: Micros::from_millis(at_ms),
        prompt_tokens: prompt,
        output_tokens: output,
        tenant: 0,
        ttft_target: SLO.ttft,
        first: Some(first),
        end: Some(first.plus(Micros::from_millis(tpot_ms * u64::from(output - 1)))),
        ending: Ending::Finished,
        is_stolen: false,
        is_kept: false,
        preemptions: 0,
        replays: 0,
        cached_tokens: 0,
    }
}

fn figures(requests: Vec<RequestOutcome>) -> Figures {
    let outcome = Outcome {
        requests,
        end: Micros::from_millis(10_000),
        ..Outcome::default()
    };
    Figures::of(&outcome, &SLO)
}

#[test]
fn good_is_who_met_both_targets_and_exactly_met_is_met() {
    let found = figures(vec![
        answered(0, 10, 11, 500, 30),
        answered(1_000, 10, 11, 501, 30),
        answered(2_000, 10, 11, 500, 31),
        answered(4_000, 10, 1, 1, 0),
    ]);
    assert_eq!(found.counts.good, 2);
    assert_eq!(found.attainment.overall, 0.5);
    assert_eq!(found.attainment.ttft, 0.75);
    assert_eq!(found.attainment.tpot, 0.75);
    assert_eq!(found.goodput.requests_per_s, 0.5);
    assert_eq!(found.goodput.tokens_per_s, 3.0);
    assert_eq!(found.rate, 1.0);
    // An answer of one token has no time per token.
    assert_eq!(found.tpot_ms.count, 3);
    assert_eq!(found.tpot_ms.max, 31.0);
}

#[test]
fn who_was_refused_or_never_ended_is_not_good_and_counts() {
    let mut refused = answered(0, 10, 5, 1, 1);
    (refused.ending, refused.first) = (Ending::Rejected, None);
    let mut open = answered(1_000, 10, 5, 1, 1);
    (open.ending, open.end) = (Ending::Unfinished, None);
    let found = figures(vec![refused, open, answered(2_000, 10, 5, 1, 1)]);
    assert_eq!(found.attainment.overall, 1.0 / 3.0);
    let counts = found.counts;
    assert_eq!(
        (counts.refused, counts.unfinished, counts.finished),
        (1, 1, 1)
    );
    assert_eq!(found.attainment.tpot, 1.0);
    assert_eq!(found.ttft_ms.count, 2);
}

#[test]
fn the_longest_tenth_is_judged_apart() {
    let mut all: Vec<_> = (0..18).map(|at| answered(at, 10, 5, 1, 1)).collect();
    all.push(answered(20, 9_000, 5, 501, 1));
    all.push(answered(21, 8_000, 5, 1, 1));
    let found = figures(all);
    assert_eq!(found.attainment.longest_tenth, 0.5);
    assert_eq!(found.attainment.overall, 0.95);
    assert_eq!(found.ttft_long_ms.max, 501.0);
}

#[test]
fn workers_share_their_time_and_nothing_gives_zeros() {
    let worker = |prefill_us, decode_us, mixed_us| WorkerOutcome {
        prefill_us,
        decode_us,
        mixed_us,
        ..WorkerOutcome::default()
    };
    let outcome = Outcome {
        workers: vec![worker(5_000_000, 0, 0), worker(0, 2_500_000, 2_500_000)],
        end: Micros::from_millis(10_000),
        ..Outcome::default()
    };
    let found = Figures::of(&outcome, &SLO);
    let all = found.utilisation;
    assert_eq!(
        (all.prefill, all.decode, all.mixed, all.idle),
        (0.25, 0.125, 0.125, 0.5)
    );
    assert_eq!(found.workers[0].idle, 0.5);
    assert_eq!(
        Figures::of(&Outcome::default(), &SLO).attainment.overall,
        0.0
    );
}

#[test]
fn tenants_are_told_only_where_there_are_some() {
    let mut all = vec![answered(0, 10, 5, 1, 1), answered(1, 10, 5, 900, 1)];
    assert!(figures(all.clone()).tenants.is_empty());
    all.push(answered(2, 10, 5, 1, 1));
    (all[1].tenant, all[2].tenant) = (7, 7);
    let found = figures(all).tenants;
    let told: Vec<_> = found
        .iter()
        .map(|t| (t.tenant, t.requests, t.attainment))
        .collect();
    assert_eq!(told, [(7, 2, 0.5), (0, 1, 1.0)]);
    assert_eq!(found[0].tokens, 30);
}

#[test]
fn the_series_holds_every_request_once() {
    let all: Vec<_> = (0..1_000)
        .map(|at| answered(at * 777, 10, 5, 1, 1))
        .collect();
    let found = figures(all);
    let width_s = found.series[1].start_s;
    let total: f64 = found
        .series
        .iter()
        .map(|bucket| bucket.rate * width_s)
        .sum();
    assert!((total - 1_000.0).abs() < 1e-6);
    assert!(found.series.len() <= 120);
}

#[test]
fn figures_are_the_same_after_json() {
    let found = figures(vec![answered(0, 10, 11, 500, 30)]);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Figures>(&json).unwrap(), found);
}

proptest! {
    #[test]
    fn quantiles_lie_between_neighbours(
        mut values in prop::collection::vec(0.0_f64..1e6, 1..50),
        part in 0.0_f64..1.0,
    ) {
        let spread = Spread::of(values.clone());
        values.sort_by(f64::total_cmp);
        let found = quantile(&values, part);
        let rank = part * (values.len() - 1) as f64;
        let below = values.iter().filter(|value| **value < found - 1e-9).count();
        prop_assert!(below as f64 <= rank.ceil() + 1e-9);
        prop_assert!(spread.p50 <= spread.p90 && spread.p90 <= spread.p99);
        prop_assert!(spread.p99 <= spread.max);
        prop_assert!((spread.mean * values.len() as f64 - values.iter().sum::<f64>()).abs() < 1e-3);
    }
}
