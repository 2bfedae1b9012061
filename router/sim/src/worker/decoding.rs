//! Who decodes at a worker: the batch as a whole, so that a step costs the same whatever its size.
//!
//! Every resident makes one token per decode step. So its length, its slack and the step at which
//! it ends or needs a page follow from the number of steps, and nothing is touched in between.
//! Called by `worker`.

use std::{cmp::Reverse, collections::BinaryHeap};

use dopd_core::units::Micros;

/// A member of the batch since it joined.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// Decode steps of the worker when it joined.
    at: u64,
    /// Positions with KV when it joined.
    computed: u32,
    /// When it began minus the pace of the steps before: smaller has less slack.
    key: i64,
    /// It takes a page every `page_tokens` steps from now on.
    is_growing: bool,
}

/// What is due at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// It makes its last token.
    Last,
    /// Its reserved pages are full.
    Grow,
}

/// A due entry: after so many decode steps, the seat and its life, what.
pub(crate) type Entry = (u64, u32, u32, Due);

/// All residents of a worker.
#[derive(Debug)]
pub(crate) struct Decoding {
    page_tokens: u32,
    /// Time per token that residents are to keep.
    pace_us: i64,
    pub(crate) seqs: u32,
    /// Positions with KV of all residents.
    pub(crate) context: u64,
    /// Decode steps made.
    pub(crate) steps: u64,
    due: BinaryHeap<Reverse<Entry>>,
    /// Residents that take a page at steps of this remainder.
    growing: Vec<u32>,
    /// By slack, the least first.
    keys: Vec<i64>,
}

impl Decoding {
    pub(crate) fn new(page_tokens: u32, pace_us: i64) -> Self {
        Self {
            page_tokens,
            pace_us,
            seqs: 0,
            context: 0,
            steps: 0,
            due: BinaryHeap::new(),
            growing: vec![0; page_tokens as usize],
            keys: Vec::new(),
        }
    }

    /// One more takes part from the next step on. It ends after `left` tokens; `pages` are its.
    pub(crate) fn join(
        &mut self,
        now: Micros,
        (slot, life): (u32, u32),
        computed: u32,
        left: u32,
        pages: u32,
    ) -> Resident {
        let at = self.steps;
        let mut resident = Resident {
            at,
            computed,
            key: signed(now.0) - self.pace_us * signed(at),
            is_growing: false,
        };
        self.seqs += 1;
        self.context += u64::from(computed);
        let place = self.keys.partition_point(|&key| key <= resident.key);
        self.keys.insert(place, resident.key);
        let last = at + u64::from(left);
        self.due.push(Reverse((last, slot, life, Due::Last)));
        let room = u64::from(pages) * u64::from(self.page_tokens);
        let full = at + room.saturating_sub(u64::from(computed));
        if full <= at {
            self.grow(&mut resident);
        } else if full < last {
            self.due.push(Reverse((full, slot, life, Due::Grow)));
        }
        resident
    }

    /// Its reserved pages are full: it takes one more now, and then every `page_tokens` steps.
    pub(crate) fn grow(&mut self, resident: &mut Resident) {
        resident.is_growing = true;
        let phase = self.phase(resident);
        self.growing[phase] += 1;
    }

    pub(crate) fn leave(&mut self, resident: &Resident) {
        self.seqs -= 1;
        self.context -= u64::from(self.computed(resident));
        if resident.is_growing {
            let phase = self.phase(resident);
            self.growing[phase] -= 1;
        }
        let place = self.keys.partition_point(|&key| key < resident.key);
        if self.keys.get(place) == Some(&resident.key) {
            self.keys.remove(place);
        }
    }

    /// Tokens made since it joined.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it ends after u32 tokens at most"
    )]
    pub(crate) const fn made(&self, resident: &Resident) -> u32 {
        (self.steps - resident.at) as u32
    }

    /// Positions with KV.
    pub(crate) const fn computed(&self, resident: &Resident) -> u32 {
        resident.computed + self.made(resident)
    }

    /// Pages that the step after `ahead` further ones takes.
    pub(crate) fn pages_for(&self, ahead: u64) -> u32 {
        self.growing[self.remainder(self.steps + ahead)]
    }

    /// So many steps are over.
    pub(crate) fn advance(&mut self, steps: u64) {
        self.steps += steps;
        self.context += steps * u64::from(self.seqs);
    }

    /// After how many steps something is due; stale entries count.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse(entry)| entry.0)
    }

    /// What is due by now, one by one; may be of a seat that is gone.
    pub(crate) fn pop_due(&mut self) -> Option<Entry> {
        let &Reverse(entry) = self.due.peek()?;
        if entry.0 > self.steps {
            return None;
        }
        self.due.pop();
        Some(entry)
    }

    /// Time that the resident at this quantile can spare; `None` without residents.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the places of a list"
    )]
    pub(crate) fn slack_us(&self, now: Micros, quantile: f64) -> Option<i64> {
        let last = self.keys.len().checked_sub(1)?;
        let place = libm::floor(quantile.clamp(0.0, 1.0) * self.keys.len() as f64) as usize;
        let key = self.keys[place.min(last)];
        Some(self.pace_us * signed(self.steps) + key - signed(now.0))
    }

    fn phase(&self, resident: &Resident) -> usize {
        let page = u64::from(self.page_tokens);
        let back = u64::from(resident.computed) % page;
        self.remainder(resident.at + page - back)
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than `page_tokens`")]
    fn remainder(&self, steps: u64) -> usize {
        (steps % u64::from(self.page_tokens)) as usize
    }
}

/// Times and steps of a run are far below 2^63.
#[expect(
    clippy::cast_possible_wrap,
    reason = "simulated times are far below 2^63"
)]
const fn signed(value: u64) -> i64 {
    value as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step by step, one resident by one, as a worker does.
    #[test]
    fn pages_and_ends_are_those_of_counting_one_by_one() {
        let page = 16;
        let mut batch = Decoding::new(page, 1_000);
        let mut naive: Vec<(u32, u32, u32, Resident)> = Vec::new();
        let seeds = [
            (1, 5, 1),
            (17, 40, 2),
            (16, 33, 1),
            (100, 7, 9),
            (31, 64, 2),
        ];
        for (slot, (computed, left, pages)) in (0..).zip(seeds) {
            let resident = batch.join(Micros(slot), (0, 0), computed, left, pages);
            naive.push((computed, left, pages, resident));
        }
        batch.due.clear();
        for &(computed, left, pages, resident) in &naive {
            let full = (pages * page).saturating_sub(computed);
            if full > 0 && full < left {
                let slot = naive.iter().position(|seat| seat.3.key == resident.key);
                let slot = u32::try_from(slot.unwrap()).unwrap();
                batch
                    .due
                    .push(Reverse((u64::from(full), slot, 0, Due::Grow)));
            }
        }
        for _ in 0..64 {
            while let Some((_, slot, _, _)) = batch.pop_due() {
                let resident = &mut naive[slot as usize].3;
                let mut grown = *resident;
                batch.grow(&mut grown);
                *resident = grown;
            }
            let mut wanted = 0;
            for (computed, _, pages, _) in &mut naive {
                if *computed == *pages * page {
                    *pages += 1;
                    wanted += 1;
                }
                *computed += 1;
            }
            assert_eq!(batch.pages_for(0), wanted, "after {} steps", batch.steps);
            batch.advance(1);
            let sum: u32 = naive.iter().map(|seat| seat.0).sum();
            assert_eq!(batch.context, u64::from(sum));
        }
    }

    #[test]
    fn slack_is_that_of_the_resident_at_the_quantile() {
        let mut batch = Decoding::new(16, 950);
        assert_eq!(batch.slack_us(Micros(0), 0.05), None);
        let early = batch.join(Micros(1_000), (0, 0), 10, 100, 10);
        batch.advance(2);
        let late = batch.join(Micros(9_000), (1, 1), 10, 100, 10);
        batch.advance(3);
        let now = Micros(12_000);
        // 5 tokens in 11 ms; 3 tokens in 3 ms.
        assert_eq!(batch.slack_us(now, 0.05), Some(5 * 950 - 11_000));
        assert_eq!(batch.slack_us(now, 0.5), Some(3 * 950 - 3_000));
        batch.leave(&early);
        assert_eq!(batch.slack_us(now, 0.05), Some(3 * 950 - 3_000));
        batch.leave(&late);
        assert_eq!((batch.seqs, batch.context), (0, 0));
    }
}
