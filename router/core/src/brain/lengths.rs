//! How long answers are of late: for each range of lengths, how many of those that came so far went
//! beyond it. The brain asks how many of those that made so many tokens go on to make more.
//!
//! Counted are passages, not answers: whoever makes the first token beyond a range has passed it,
//! whoever ends within it has not, and whoever is cut off within it, by its limit or its client,
//! says nothing about it. So sequences that still run are heard, and a fleet that has just begun,
//! or that takes more and more, is not taken in by the short answers, which end first. Each range
//! forgets at its own pace, a hundredth with each passage. One passage's weight is always a prior
//! with a heavy tail, so that whoever is longer than all before has a future as well.
//!
//! One fleet serves one model, so there is one such account: a prediction per request is worth
//! nothing for the sum over a pool, while forgetting is (docs/concepts/policy.md).

use crate::units::Tokens;

/// [1, 6), then half as long again each: the last begins at 44,892 tokens.
pub(super) const BUCKETS: usize = 24;

/// First edge after 1, and what each next one is multiplied with, rounded up.
const EDGE_FIRST: f64 = 6.0;
const EDGE_RATIO: f64 = 1.5;

/// What a passage weighs after one more.
const DECAY: f64 = 0.99;

/// Answers before this is believed; until then every sequence reserves its longest answer.
const ANSWERS_MIN: u32 = 32;

/// Median of the prior, which is log-logistic of shape 1.
const PRIOR_MEDIAN: f64 = 150.0;

/// Weight of the prior in each range.
const PRIOR_WEIGHT: f64 = 1.0;

/// Part of answers of at least so many tokens, by the prior.
fn prior(tokens: f64) -> f64 {
    PRIOR_MEDIAN / (PRIOR_MEDIAN + tokens - 1.0)
}

#[derive(Debug)]
pub(super) struct Lengths {
    edges: [u32; BUCKETS + 1],
    /// Part of those that reach a range that goes beyond it, by the prior.
    expected: [f64; BUCKETS],
    /// Who ended within the range, who went beyond.
    ended: [f64; BUCKETS],
    passed: [f64; BUCKETS],
    /// Part of answers that are at least as long as each edge.
    alive: [f64; BUCKETS + 1],
    answers: u32,
}

impl Lengths {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "edges are small and positive"
    )]
    pub(super) fn new() -> Self {
        let mut edges = [1; BUCKETS + 1];
        let mut edge = EDGE_FIRST;
        for at in edges.iter_mut().skip(1) {
            *at = libm::ceil(edge) as u32;
            edge *= EDGE_RATIO;
        }
        let mut expected = [0.0; BUCKETS];
        for (bucket, part) in expected.iter_mut().enumerate() {
            let [from, to] = [edges[bucket], edges[bucket + 1]];
            *part = prior(f64::from(to)) / prior(f64::from(from));
        }
        let mut lengths = Self {
            edges,
            expected,
            ended: [0.0; BUCKETS],
            passed: [0.0; BUCKETS],
            alive: [1.0; BUCKETS + 1],
            answers: 0,
        };
        lengths.count(0);
        lengths
    }

    /// Enough is known to promise pages by it.
    pub(super) const fn is_known(&self) -> bool {
        self.answers >= ANSWERS_MIN
    }

    /// An answer ended by itself.
    pub(super) fn ends(&mut self, answer: Tokens) {
        if answer.0 == 0 {
            return;
        }
        self.answers = self.answers.saturating_add(1);
        let bucket = self.bucket(answer.0);
        self.forget(bucket);
        self.ended[bucket] += 1.0;
        self.count(bucket);
    }

    /// An answer ended at its limit: another one that is known, no more.
    pub(super) const fn is_cut(&mut self) {
        self.answers = self.answers.saturating_add(1);
    }

    /// An answer in the range `bucket` has so many tokens now: the range it is in, which is written
    /// down for the next time.
    #[inline]
    pub(super) fn grows(&mut self, bucket: &mut u8, answer: Tokens) {
        let first = usize::from(*bucket);
        while let Some(&next) = self.edges.get(usize::from(*bucket) + 1)
            && answer.0 >= next
            && usize::from(*bucket) + 1 < BUCKETS
        {
            self.forget(usize::from(*bucket));
            self.passed[usize::from(*bucket)] += 1.0;
            *bucket += 1;
        }
        if usize::from(*bucket) > first {
            self.count(first);
        }
    }

    fn forget(&mut self, bucket: usize) {
        self.ended[bucket] *= DECAY;
        self.passed[bucket] *= DECAY;
    }

    /// Survival, from a range on that has changed.
    fn count(&mut self, first: usize) {
        for bucket in first..BUCKETS {
            let beyond = self.passed[bucket] + PRIOR_WEIGHT * self.expected[bucket];
            let all = self.passed[bucket] + self.ended[bucket] + PRIOR_WEIGHT;
            self.alive[bucket + 1] = self.alive[bucket] * beyond / all;
        }
    }

    fn bucket(&self, tokens: u32) -> usize {
        let beyond = self.edges.iter().skip(1).take(BUCKETS - 1);
        beyond.take_while(|&&edge| tokens >= edge).count()
    }

    /// Of those that made `made` tokens and go on, the part that makes more than each of `further`
    /// beyond that; these must not fall.
    pub(super) fn go_on<const N: usize>(&self, made: Tokens, further: [u32; N]) -> [f64; N] {
        let mut bucket = self.bucket(made.0.saturating_add(1));
        let whole = self.longer(made.0, &mut bucket);
        let mut last = (0, 1.0);
        further.map(|more| {
            if more != last.0 {
                let part = self.longer(made.0.saturating_add(more), &mut bucket) / whole;
                last = (more, if part < 1.0 { part } else { 1.0 });
            }
            last.1
        })
    }

    /// Part of answers of more than so many tokens; `bucket`: not beyond the range of that.
    fn longer(&self, tokens: u32, bucket: &mut usize) -> f64 {
        let next = tokens.saturating_add(1);
        while *bucket < BUCKETS && next >= self.edges[*bucket + 1] {
            *bucket += 1;
        }
        if *bucket == BUCKETS {
            let last = f64::from(self.edges[BUCKETS]);
            return self.alive[BUCKETS] * prior(f64::from(next)) / prior(last);
        }
        let (from, to) = (self.edges[*bucket], self.edges[*bucket + 1]);
        let part = f64::from(next - from) / f64::from(to - from);
        self.alive[*bucket] + (self.alive[*bucket + 1] - self.alive[*bucket]) * part
    }
}

#[cfg(test)]
mod tests;
