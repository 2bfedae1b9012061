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
fn a_hundred_tenants_are_told_and_what_they_were_served() {
    let mut all: Vec<_> = (1..=150).map(|at| answered(at, 10, 5, 1, 1)).collect();
    (1..)
        .zip(&mut all)
        .for_each(|(tenant, one)| one.tenant = tenant);
    // The last ones ask twice, once in vain.
    for tenant in 141..=150 {
        let mut refused = answered(200, 1_000, 5, 1, 1);
        (refused.ending, refused.first, refused.tenant) = (Ending::Rejected, None, tenant);
        all.push(refused);
    }
    let found = figures(all).tenants;
    let told: Vec<u32> = found.iter().map(|tenant| tenant.tenant).collect();
    let wanted: Vec<u32> = (141..=150).chain(1..=90).collect();
    assert_eq!(told, wanted);
    assert!(found.iter().all(|tenant| tenant.tokens == 15));
}

#[test]
fn rates_are_per_second_from_the_first_arrival_to_the_last() {
    let found = figures(vec![
        answered(5_000, 700, 11, 1, 1),
        answered(6_000, 700, 11, 501, 1),
        answered(7_000, 700, 11, 1, 1),
    ]);
    assert_eq!((found.arrivals_s, found.rate), (2.0, 1.5));
    assert_eq!(found.goodput.requests_per_s, 1.0);
    assert_eq!(found.goodput.tokens_per_s, 11.0, "tokens of answers");
}

#[test]
fn the_longest_tenth_of_a_few_is_one() {
    let mut all: Vec<_> = (0..9).map(|at| answered(at, 10, 5, 1, 1)).collect();
    all[4].prompt_tokens = 11;
    all[4].first = Some(Micros::from_millis(900));
    let found = figures(all);
    assert_eq!(found.attainment.longest_tenth, 0.0);
    assert_eq!(found.ttft_long_ms.count, 1);
}

#[test]
fn what_became_of_requests_is_counted() {
    let mut all: Vec<_> = (0..4).map(|at| answered(at, 10, 5, 1, 1)).collect();
    (all[0].is_stolen, all[1].is_kept) = (true, true);
    (all[2].preemptions, all[2].replays, all[3].cached_tokens) = (2, 1, 7);
    let counts = figures(all).counts;
    assert_eq!((counts.stolen, counts.kept), (1, 1));
    assert_eq!((counts.preemptions, counts.replays), (2, 1));
    assert_eq!((counts.prompt_tokens, counts.cached_tokens), (40, 7));
}

#[test]
fn a_point_of_the_series_is_what_came_in_its_time() {
    // Four minutes: points of two seconds and 1 us.
    let mut all = vec![answered(0, 10, 11, 100, 10), answered(100, 10, 11, 300, 31)];
    assert_eq!(figures(all.clone()).series.len(), 1, "none below a second");
    all.push(answered(120_000, 10, 11, 200, 20));
    all.push(answered(240_000, 10, 11, 1, 1));
    let series = figures(all).series;
    assert_eq!(series.len(), 120);
    let width_s = 240.0 / 120.0 + 1e-6;
    let close = |found: f64, wanted: f64| (found - wanted).abs() < 1e-9;
    assert!(
        (1..)
            .zip(&series)
            .all(|(end, at)| close(at.start_s, f64::from(end - 1) * width_s))
    );
    let first = &series[0];
    assert!(close(first.rate, 2.0 / width_s) && close(first.good_rate, 1.0 / width_s));
    assert_eq!((first.attainment, first.ttft_p50_ms), (0.5, 200.0));
    assert!(close(first.ttft_p90_ms, 280.0) && close(first.tpot_p90_ms, 28.9));
    let second = series.iter().skip(1).find(|at| at.rate > 0.0).unwrap();
    assert_eq!((second.ttft_p50_ms, second.attainment), (200.0, 1.0));
    assert!(second.start_s <= 120.0 && 120.0 < second.start_s + width_s);
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
