//! How long answers are of late: a histogram in which each answer weighs a little less than the
//! next. The brain asks it how many of those that made so many tokens go on to make more.
//!
//! What is told of an answer that was cut off, at its limit or by its client, is that it would have
//! been longer: its weight goes to the lengths beyond, as they are known. One answer's weight is
//! always a prior with a heavy tail, so that whoever is longer than all before has a future as
//! well. One fleet serves one model, so there is one histogram; a prediction per request is worth
//! nothing for the sum over a pool, while forgetting is (docs/concepts/policy.md).

use crate::units::Tokens;

/// [1, 6), then half as long again each: the last begins at 44,892 tokens.
const BUCKETS: usize = 24;

/// First edge after 1, and what each next one is multiplied with, rounded up.
const EDGE_FIRST: f64 = 6.0;
const EDGE_RATIO: f64 = 1.5;

/// What an answer weighs after one more.
const DECAY: f64 = 0.99;

/// Answers before the histogram is believed; until then every sequence reserves its longest answer.
const ANSWERS_MIN: u32 = 32;

/// Median of the prior, which is log-logistic of shape 1: S(x) = median / (median + x).
const PRIOR_MEDIAN: f64 = 150.0;

/// Weight of the prior, in answers.
const PRIOR_WEIGHT: f64 = 1.0;

#[derive(Debug)]
pub(super) struct Lengths {
    edges: [f64; BUCKETS + 1],
    weights: [f64; BUCKETS],
    /// Weight at or above each edge.
    above: [f64; BUCKETS + 1],
    /// Answers learnt, as far as that matters.
    answers: u32,
}

impl Lengths {
    pub(super) fn new() -> Self {
        let mut edges = [1.0; BUCKETS + 1];
        let mut edge = EDGE_FIRST;
        for at in edges.iter_mut().skip(1) {
            *at = libm::ceil(edge);
            edge *= EDGE_RATIO;
        }
        Self {
            edges,
            weights: [0.0; BUCKETS],
            above: [0.0; BUCKETS + 1],
            answers: 0,
        }
    }

    /// Enough is known to promise pages by it.
    pub(super) const fn is_known(&self) -> bool {
        self.answers >= ANSWERS_MIN
    }

    /// An answer ended; `is_whole`: by itself, else it was cut off.
    pub(super) fn learn(&mut self, answer: Tokens, is_whole: bool) {
        if answer.0 == 0 {
            return;
        }
        self.answers = self.answers.saturating_add(1);
        let bucket = self.bucket(f64::from(answer.0));
        let beyond = self.above[bucket + 1];
        for (number, weight) in self.weights.iter_mut().enumerate() {
            let share = *weight / beyond;
            *weight *= DECAY;
            if is_whole || beyond <= 0.0 {
                *weight += f64::from(u8::from(number == bucket));
            } else if number > bucket {
                *weight += share;
            }
        }
        for number in (0..BUCKETS).rev() {
            self.above[number] = self.above[number + 1] + self.weights[number];
        }
    }

    fn bucket(&self, tokens: f64) -> usize {
        let beyond = self.edges.iter().skip(1).take(BUCKETS - 1);
        beyond.take_while(|&&edge| tokens >= edge).count()
    }

    /// Of those that made `made` tokens and go on, the part that makes more than each of `further`
    /// beyond that; these must not fall.
    pub(super) fn go_on<const N: usize>(&self, made: Tokens, further: [u32; N]) -> [f64; N] {
        let made = f64::from(made.0);
        let mut bucket = self.bucket(made + 1.0);
        let whole = self.longer(made, &mut bucket);
        further.map(|more| {
            let part = self.longer(made + f64::from(more), &mut bucket) / whole;
            libm::fmin(part, 1.0)
        })
    }

    /// Weight of answers of more than so many tokens, the prior included; from this bucket on.
    fn longer(&self, tokens: f64, bucket: &mut usize) -> f64 {
        let next = tokens + 1.0;
        while *bucket + 1 < BUCKETS && next >= self.edges[*bucket + 1] {
            *bucket += 1;
        }
        let (from, to) = (self.edges[*bucket], self.edges[*bucket + 1]);
        let part = libm::fmin((next - from) / (to - from), 1.0);
        let prior = PRIOR_WEIGHT * PRIOR_MEDIAN / (PRIOR_MEDIAN + tokens);
        self.above[*bucket] - self.weights[*bucket] * part + prior
    }
}

#[cfg(test)]
mod tests;
