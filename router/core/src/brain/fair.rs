//! What long prompts are owed. Shortest-first gives up the longest ones when it gets tight; this
//! gives some of that back.
//!
//! The longest tenth of the last 1,000 prompts carries a deficit. Each of its outcomes adds what it
//! was due, `fair_ratio` of the rate at which the others meet their target for the first token,
//! less what it got. The deficit brings its prompts forward: `key = arrival + ageing * prefill * m`
//! with `m = max(-3, 1 - deficit / 10)`.

use std::collections::VecDeque;

use crate::units::Tokens;

/// Prompts whose lengths count.
const LENGTHS: usize = 1_000;

/// Before so many, nobody is long.
const LENGTHS_MIN: usize = 100;

/// One in so many is long.
const LONG: usize = 10;

/// Outcomes of the others that their rate goes back over.
const OUTCOMES: u32 = 200;

const DEFICIT_MAX: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Fair {
    ratio: f64,
    /// The last lengths, as they came and in order.
    recent: VecDeque<Tokens>,
    sorted: Vec<Tokens>,
    /// Rate at which the others pass.
    pass: f64,
    outcomes: u32,
    deficit: f64,
}

impl Fair {
    pub(super) const fn new(ratio: f64) -> Self {
        Self {
            ratio,
            recent: VecDeque::new(),
            sorted: Vec::new(),
            pass: 0.0,
            outcomes: 0,
            deficit: 0.0,
        }
    }

    fn is_on(&self) -> bool {
        self.ratio > 0.0
    }

    /// A prompt came. Returns whether it is one of the long ones. Moves the lengths between it and
    /// the one that goes, 4 KB at most: less than what trees of 1,000 would do.
    pub(super) fn arrived(&mut self, length: Tokens) -> bool {
        if !self.is_on() {
            return false;
        }
        let is_long = self.is_long(length);
        let to = self.sorted.partition_point(|&other| other < length);
        if self.recent.len() == LENGTHS
            && let Some(oldest) = self.recent.pop_front()
        {
            let from = self.sorted.partition_point(|&other| other < oldest);
            if from < to {
                self.sorted.copy_within(from + 1..to, from);
                self.sorted[to - 1] = length;
            } else {
                self.sorted.copy_within(to..from, to + 1);
                self.sorted[to] = length;
            }
        } else {
            self.sorted.insert(to, length);
        }
        self.recent.push_back(length);
        is_long
    }

    /// A prompt of this length is one of the long ones.
    pub(super) fn is_long(&self, length: Tokens) -> bool {
        let count = self.sorted.len();
        let shortest = self.sorted.get(count - count / LONG);
        count >= LENGTHS_MIN && shortest.is_some_and(|&shortest| length >= shortest)
    }

    /// A prompt met its target for the first token or did not.
    pub(super) fn heard(&mut self, is_long: bool, has_passed: bool) {
        if !self.is_on() {
            return;
        }
        let got = f64::from(u8::from(has_passed));
        if !is_long {
            self.outcomes = (self.outcomes + 1).min(OUTCOMES);
            self.pass += (got - self.pass) / f64::from(self.outcomes);
        } else if self.outcomes > 0 {
            let after = self.deficit + self.ratio * self.pass - got;
            self.deficit = after.clamp(0.0, DEFICIT_MAX);
        }
    }

    /// `m` of a prompt.
    pub(super) fn weight(&self, is_long: bool) -> f64 {
        if is_long {
            libm::fmax(-3.0, 1.0 - 0.1 * self.deficit)
        } else {
            1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_tenth_is_that_of_the_last_thousand() {
        let mut fair = Fair::new(0.5);
        let mut lengths = Vec::new();
        for number in 0_u32..5_000 {
            // Lengths that drift, so that a threshold of long ago would be wrong.
            let length = Tokens(number / 5 + number.wrapping_mul(2_654_435_761) % 1_000);
            let from = lengths.len().saturating_sub(LENGTHS);
            let mut last: Vec<Tokens> = lengths[from..].to_vec();
            last.sort_unstable();
            let at = last.len() - last.len() / LONG;
            let wanted = last.len() >= LENGTHS_MIN && length >= last[at];
            assert_eq!(fair.arrived(length), wanted, "prompt {number}");
            lengths.push(length);
        }
        assert_eq!(fair.recent.len(), LENGTHS);
        assert_eq!(fair.sorted.len(), LENGTHS);
    }

    #[test]
    fn deficit_grows_by_what_is_owed_and_is_bounded() {
        let mut fair = Fair::new(0.5);
        fair.heard(true, false);
        assert!(
            (fair.weight(true) - 1.0).abs() < 1e-9,
            "nobody else passed yet"
        );
        (0..400).for_each(|_| fair.heard(false, true));
        (0..10).for_each(|_| fair.heard(true, false));
        assert!(
            (fair.weight(true) - 0.5).abs() < 1e-9,
            "half of ten was due"
        );
        assert!((fair.weight(false) - 1.0).abs() < 1e-9);
        (0..4).for_each(|_| fair.heard(true, true));
        assert!(
            (fair.weight(true) - 0.7).abs() < 1e-9,
            "half a point back for each"
        );
        (0..1_000).for_each(|_| fair.heard(true, false));
        assert!((fair.weight(true) + 3.0).abs() < 1e-9);
        (0..300).for_each(|_| fair.heard(true, true));
        assert!(
            (fair.weight(true) - 1.0).abs() < 1e-9,
            "nothing is saved up"
        );
    }

    #[test]
    fn ratio_of_zero_is_off() {
        let mut fair = Fair::new(0.0);
        assert!((0..2_000).all(|length| !fair.arrived(Tokens(length))));
        fair.heard(false, true);
        fair.heard(true, false);
        assert!((fair.weight(true) - 1.0).abs() < 1e-9);
        assert!(fair.recent.is_empty());
    }
}
