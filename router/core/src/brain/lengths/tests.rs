//! What the account says of lengths that are known.

use super::*;

/// An answer of that length, from its first token to its end or to where it was cut off.
fn answer(lengths: &mut Lengths, tokens: u32, is_whole: bool) {
    let mut bucket = 0;
    (1..=tokens).for_each(|made| lengths.grows(&mut bucket, Tokens(made)));
    if is_whole {
        lengths.ends(Tokens(tokens));
    }
}

fn taught(lengths: impl IntoIterator<Item = u32>) -> Lengths {
    let mut learner = Lengths::new();
    for length in lengths {
        answer(&mut learner, length, true);
    }
    learner
}

/// Part of those with `made` tokens that go on for more than `further`.
fn part(lengths: &Lengths, made: u32, further: u32) -> f64 {
    lengths.go_on(Tokens(made), [further])[0]
}

#[test]
fn edges_are_those_of_the_study() {
    let lengths = Lengths::new();
    assert_eq!(lengths.edges[..8], [1, 6, 9, 14, 21, 31, 46, 69]);
    assert_eq!(lengths.edges[15], 1_752);
    assert!(lengths.edges.windows(2).all(|two| two[0] < two[1]));
}

#[test]
fn nothing_is_known_before_enough_answers() {
    assert!(!taught([100; 31]).is_known());
    assert!(taught([100; 32]).is_known());
    assert!(!taught([0; 100]).is_known(), "no token is no answer");
}

#[test]
fn survival_is_that_of_the_lengths_seen() {
    let lengths = taught((0..2_000).map(|number| 1 + number * 617 % 1_000));
    for (made, further) in [(0, 100), (0, 500), (200, 300), (600, 200)] {
        let exact = f64::from(1_000 - made - further) / f64::from(1_000 - made);
        let said = part(&lengths, made, further);
        assert!(
            (said - exact).abs() < 0.1,
            "{made} {further}: {said} {exact}"
        );
    }
}

#[test]
fn parts_begin_at_one_and_never_rise() {
    let lengths = taught((0..300).map(|number| 20 + number % 400));
    for made in [0, 5, 30, 300, 1_000, 100_000, u32::MAX] {
        let further = [0, 1, 5, 20, 100, 300, 400, 1_000, 5_000, 100_000];
        let parts = lengths.go_on(Tokens(made), further);
        assert!((parts[0] - 1.0).abs() < f64::EPSILON);
        assert!(parts.windows(2).all(|two| two[0] >= two[1]), "{parts:?}");
        assert!(parts.iter().all(|part| *part > 0.0), "{parts:?}");
    }
}

#[test]
fn longer_than_all_before_has_the_future_of_the_prior() {
    let lengths = taught([50; 200]);
    for made in [10_000, 500_000] {
        let half = part(&lengths, made, made + 150);
        assert!((half - 0.5).abs() < 0.02, "{made}: {half}");
    }
}

#[test]
fn what_is_recent_counts() {
    let lengths = taught([1_000; 500].into_iter().chain([20; 300]));
    assert!(part(&lengths, 0, 100) < 0.1);
}

#[test]
fn sequences_that_run_are_heard() {
    let mut lengths = taught((0..400).map(|number| if number % 2 == 0 { 10 } else { 300 }));
    let before = part(&lengths, 0, 200);
    (0..60).for_each(|_| answer(&mut lengths, 300, false));
    let after = part(&lengths, 0, 200);
    assert!(before < 0.55 && after > 0.65, "{before} {after}");
}

#[test]
fn who_is_cut_off_says_nothing_of_where_it_was() {
    let mut lengths = taught((0..400).map(|number| 100 + number * 7 % 200));
    let before = part(&lengths, 150, 50);
    (0..200).for_each(|_| answer(&mut lengths, 155, false));
    assert!((part(&lengths, 154, 46) - before).abs() < 0.15);
    assert!(part(&lengths, 0, 100) > 0.9);
}
