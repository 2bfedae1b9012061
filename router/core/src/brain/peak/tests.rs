//! The sums against the exact ones, and what they are worth: `docs/concepts/policy.md` quotes them.

use super::*;
use crate::brain::{random::Random, slots::Slots};
use crate::ids::SlotId;
use crate::units::Micros;

/// Outside of the core, which reads no files.
#[path = "../../../tests/data/sharegpt.rs"]
mod data;

const PAGE: u32 = 16;

fn shape(prompt: u32, made: u32, max: u32) -> Shape {
    Shape {
        prompt: Tokens(prompt),
        made: Tokens(made),
        max: Tokens(max),
    }
}

/// A number up to `most`.
fn up_to(random: &mut Random, most: u32) -> u32 {
    u32::try_from(random.between(Micros(0), Micros(u64::from(most))).0).unwrap_or(most)
}

/// A number below a count.
fn below(random: &mut Random, count: usize) -> usize {
    up_to(random, u32::try_from(count).expect("few") - 1) as usize
}

/// Answers: many short, few long; the mean is near 190.
fn answer(random: &mut Random) -> u32 {
    let long = up_to(random, 9) < 3;
    1 + up_to(random, if long { 900 } else { 160 })
}

fn taught(random: &mut Random) -> Lengths {
    let mut lengths = Lengths::new();
    for _ in 0..500 {
        let (answer, mut range) = (Tokens(answer(random)), 0);
        lengths.grows(&mut range, answer);
        lengths.ends(answer);
    }
    lengths
}

/// The need without grid, pages or sums: at each h, mean and deviation over all residents.
fn exact(residents: &[Shape], lengths: &Lengths, z: f64) -> f64 {
    let need = |h: u32| {
        let (mut mean, mut variance, mut most) = (0.0, 0.0, 0.0);
        for of in residents.iter().filter(|of| of.made.0 + h <= of.max.0) {
            let part = lengths.go_on(of.made, [h])[0];
            let tokens = f64::from(of.held().0 + h);
            mean += part * tokens;
            most += tokens;
            variance += part * (1.0 - part) * tokens * tokens;
        }
        f64::min(mean + z * f64::sqrt(variance), most)
    };
    (0..3_000).map(need).fold(0.0, f64::max)
}

#[test]
fn sums_are_those_of_all_residents_within_the_pages_cut() {
    let mut random = Random::new(7);
    let lengths = taught(&mut random);
    for count in [1, 4, 40, 160] {
        let mut slots = Slots::new(PAGE, 2.33);
        let mut residents = Vec::new();
        for _ in 0..count {
            let of = shape(10 + up_to(&mut random, 600), 0, 2_048);
            let claim = Ask::new(of, false, PAGE, &lengths).claim(Stay::Here, PAGE);
            residents.push((slots.plan(0, claim, None), of));
        }
        for (slot, of) in &mut residents {
            for made in 1..=up_to(&mut random, 700) {
                of.made = Tokens(made);
                slots.grew(*slot, of.made, &lengths);
            }
        }
        let shapes: Vec<Shape> = residents.iter().map(|(_, of)| *of).collect();
        let (said, exact) = (slots.pages_used() as f64, exact(&shapes, &lengths, 2.33));
        let ratio = said * f64::from(PAGE) / exact;
        // Each resident is up to a page more than its tokens, and up to a page's tokens old.
        assert!((0.92..1.10).contains(&ratio), "{count} residents: {ratio}");
    }
}

#[test]
fn what_is_promised_is_never_less_than_what_is_held() {
    let mut random = Random::new(3);
    let lengths = taught(&mut random);
    let mut slots = Slots::new(PAGE, 0.0);
    let mut living: Vec<(SlotId, Shape)> = Vec::new();
    for _ in 0..3_000 {
        match up_to(&mut random, 5) {
            0 => {
                let of = shape(1 + up_to(&mut random, 300), 0, 1 + up_to(&mut random, 900));
                let is_whole = up_to(&mut random, 4) == 0;
                let stay = [Stay::Here, Stay::Passing, Stay::Import];
                let stay = stay[up_to(&mut random, 2) as usize];
                let claim = Ask::new(of, is_whole, PAGE, &lengths).claim(stay, PAGE);
                living.push((slots.plan(0, claim, None), of));
            }
            1 if !living.is_empty() => {
                let at = below(&mut random, living.len());
                let (slot, _) = living.swap_remove(at);
                slots.close(slot);
            }
            _ => {
                for (slot, of) in &mut living {
                    of.made = of.made.plus(Tokens(5)).min(of.max);
                    slots.grew(*slot, of.made, &lengths);
                }
            }
        }
        let held = living.iter().map(|(_, of)| of.held().pages(PAGE).0);
        let held: u64 = held.map(u64::from).sum();
        assert!(slots.pages_held() >= held);
        assert!(slots.pages_used() >= held, "{} {held}", slots.pages_used());
        // What is known from now on is known no longer with the next change.
        slots.settle();
    }
    for (slot, _) in living {
        slots.close(slot);
    }
    assert_eq!(
        (slots.pages_used(), slots.pages_held()),
        (0, 0),
        "the sums are exact"
    );
}

#[test]
fn nobody_needs_more_than_its_limit() {
    let lengths = taught(&mut Random::new(1));
    let ask = |max| Ask::new(shape(100, 0, max), false, PAGE, &lengths);
    for (max, most) in [(1, 7), (20, 8), (100, 13), (300, 25)] {
        let mut slots = Slots::new(PAGE, 2.33);
        slots.plan(0, ask(max).claim(Stay::Here, PAGE), None);
        assert!(slots.pages_used() <= most, "{max}: {}", slots.pages_used());
    }
}

#[test]
fn who_reaches_its_limit_before_the_worst_time_is_gone_by_then() {
    let mut lengths = Lengths::new();
    for _ in 0..100 {
        let mut range = 0;
        lengths.grows(&mut range, Tokens(1_000));
        lengths.ends(Tokens(1_000));
    }
    let promised = |with_short: bool| {
        let mut slots = Slots::new(PAGE, 0.0);
        let short = with_short.then(|| shape(1_600, 0, 16));
        for of in short.into_iter().chain([shape(16, 0, 2_048); 20]) {
            let claim = Ask::new(of, false, PAGE, &lengths).claim(Stay::Here, PAGE);
            slots.plan(0, claim, None);
        }
        slots.pages_used()
    };
    assert_eq!(promised(true), promised(false));
}

#[test]
fn seat_that_passes_on_is_promised_its_prompt_and_a_resident_once_it_stays() {
    let lengths = taught(&mut Random::new(1));
    let ask = Ask::new(shape(100, 0, 1_000), false, PAGE, &lengths);
    let mut slots = Slots::new(PAGE, 2.33);
    let slot = slots.plan(0, ask.claim(Stay::Passing, PAGE), None);
    assert_eq!(slots.pages_used(), 7);
    slots.grew(slot, Tokens(12), &lengths);
    assert_eq!(slots.pages_used(), 7, "within its pages");
    slots.grew(slot, Tokens(13), &lengths);
    assert!(slots.pages_used() > 8, "it goes on: {}", slots.pages_used());
    assert_eq!(slots.pages_held(), 8);
}

#[test]
fn open_asks_for_little_and_the_limit_bounds_it() {
    let lengths = taught(&mut Random::new(1));
    let pages = |max, is_whole, stay| {
        let ask = Ask::new(shape(100, 0, max), is_whole, PAGE, &lengths);
        ask.claim(stay, PAGE).pages().0
    };
    assert_eq!(pages(1_000, false, Stay::Here), 7);
    assert_eq!(pages(1_000, false, Stay::Import), 11);
    assert_eq!(pages(20, false, Stay::Import), 8);
    assert_eq!(pages(1_000, true, Stay::Here), 69);
}

/// One pool of 60k KV tokens, always somebody waiting, a token a step for all; as the reference
/// study did. Returns mean residents, preemptions per thousand, tokens recomputed per token.
fn backlogged(answers: &[(u32, u32)], pool: u32, z: Option<f64>) -> (f64, f64, f64) {
    let mut lengths = Lengths::new();
    let mut slots = Slots::new(PAGE, z.unwrap_or_default());
    let mut running: Vec<(SlotId, Shape, u32, u8)> = Vec::new();
    let mut waiting = answers
        .iter()
        .rev()
        .copied()
        .map(|of| (of, 0, 0))
        .collect::<Vec<_>>();
    let total = u64::from(pool / PAGE);
    let (mut residents, mut steps, mut preempted, mut again, mut made) = (0, 0_u64, 0, 0, 0_u32);
    while !waiting.is_empty() {
        while let Some(&((prompt, answer), had, range)) = waiting.last() {
            let of = shape(prompt, had, 2_048);
            let is_whole = z.is_none() || !lengths.is_known();
            let claim = Ask::new(of, is_whole, PAGE, &lengths).claim(Stay::Here, PAGE);
            if slots.pages_with(&claim) > total {
                break;
            }
            waiting.pop();
            running.push((slots.plan(0, claim, None), of, answer, range));
        }
        for (slot, of, _, range) in &mut running {
            of.made = of.made.plus(Tokens(1));
            lengths.grows(range, of.made);
            made += 1;
            slots.grew(*slot, of.made, &lengths);
        }
        running.retain(|(slot, of, answer, _)| {
            let goes_on = of.made.0 < *answer;
            if !goes_on {
                slots.close(*slot);
                lengths.ends(of.made);
            }
            goes_on
        });
        let used = |running: &[(SlotId, Shape, u32, u8)]| -> u64 {
            let pages = running.iter().map(|(_, of, _, _)| of.held().pages(PAGE).0);
            pages.map(u64::from).sum()
        };
        while used(&running) > total {
            let Some((slot, of, answer, range)) = running.pop() else {
                break;
            };
            slots.close(slot);
            preempted += 1;
            again += u64::from(of.held().0);
            waiting.push(((of.prompt.0, answer), of.made.0, range));
        }
        residents += running.len() as u64;
        steps += 1;
    }
    let count = answers.len() as f64;
    let rate = f64::from(preempted) * 1e3 / count;
    (
        residents as f64 / steps as f64,
        rate,
        again as f64 / f64::from(made),
    )
}

#[test]
fn future_peak_holds_several_times_what_reserving_all_holds() {
    let mut random = Random::new(11);
    let answers: Vec<(u32, u32)> = (0..4_000)
        .map(|_| (10 + up_to(&mut random, 180), answer(&mut random)))
        .collect();
    let (whole, _, _) = backlogged(&answers, 60_000, None);
    let (held, preempted, again) = backlogged(&answers, 60_000, Some(2.33));
    assert!(held >= 4.5 * whole, "{held} {whole} {preempted}");
    assert!(preempted <= 2.0, "{preempted} per 1000");
    assert!(again <= 0.01, "{again}");
}

/// The bars of the predictor study on its own data, in random order as there. In the order of the
/// file, whose lengths drift, there are 2.7 preemptions per 1000 at 60k and 5.6 at 15k.
#[test]
fn future_peak_on_sharegpt_meets_the_bars_of_the_study() {
    let Some(mut answers) = data::sharegpt() else {
        eprintln!("skipped: no text/sharegpt_part1.jsonl.gz; set DOPD_DATA");
        return;
    };
    let (whole, _, _) = backlogged(&answers, 60_000, None);
    let (mut held, mut preempted) = (0.0, 0.0);
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        for last in (1..answers.len()).rev() {
            answers.swap(last, below(&mut random, last + 1));
        }
        let (seats, rate, _) = backlogged(&answers, 60_000, Some(2.33));
        println!(
            "60k KV tokens: {whole:.1} whole, {seats:.1} by peak, {rate:.2} preempted of 1000"
        );
        held += seats / 3.0;
        preempted += rate / 3.0;
    }
    assert!(held >= 4.5 * whole, "{held} {whole}");
    assert!(preempted <= 2.0, "{preempted}");
}

/// What lets a worker take a sequence without its curve being drawn.
#[test]
fn longest_answer_bounds_what_any_claim_adds() {
    let mut random = Random::new(11);
    let lengths = taught(&mut random);
    for z in [0.0, 0.5, 2.33, 20.0] {
        let mut slots = Slots::new(PAGE, z);
        for number in 0..200 {
            let (prompt, max) = (1 + up_to(&mut random, 4_000), 1 + up_to(&mut random, 3_000));
            let shape = shape(prompt, up_to(&mut random, max), max);
            let ask = Ask::new(shape, below(&mut random, 8) == 0, PAGE, &lengths);
            let longest = slots.pages_with_longest(shape.len().pages(PAGE));
            for stay in [Stay::Here, Stay::Passing, Stay::Import] {
                let claim = ask.claim(stay, PAGE);
                let with = slots.pages_with(&claim);
                assert!(with <= longest, "{with} pages, bound {longest}, z {z}");
            }
            let stay = [Stay::Here, Stay::Passing, Stay::Import][below(&mut random, 3)];
            slots.plan(number, ask.claim(stay, PAGE), None);
        }
    }
}
