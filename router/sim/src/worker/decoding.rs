//! Who decodes at a worker: the batch as a whole, so that a step costs the same whatever its size.
//!
//! Every resident makes one token per decode step. So its length, its slack and the step at which
//! it ends or needs a page follow from the number of steps, and nothing is touched in between.
//! Called by `worker`.

use std::{cmp::Reverse, collections::BinaryHeap};

use dopd_core::{
    step::{Residents, Stay, StepPolicy},
    units::Micros,
};

/// A member of the batch since it joined.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// Counts joins: a seat may leave for a hand-off, stay after all, and join anew.
    pub(crate) join: u32,
    /// Decode steps of the worker when it joined.
    at: u64,
    /// Positions with KV when it joined.
    computed: u32,
    /// Its slack.
    stay: Option<Stay>,
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

/// A due entry: after so many decode steps, the slot, [`Resident::join`], what.
pub(crate) type Entry = (u64, u32, u32, Due);

/// All residents of a worker.
#[derive(Debug)]
pub(crate) struct Decoding {
    page_tokens: u32,
    policy: StepPolicy,
    pub(crate) seqs: u32,
    /// Positions with KV of all residents.
    pub(crate) context: u64,
    /// Decode steps made.
    pub(crate) steps: u64,
    /// Their remainder by `page_tokens`.
    phase: u32,
    joins: u32,
    due: BinaryHeap<Reverse<Entry>>,
    /// Residents that take a page at steps of this remainder.
    growing: Vec<u32>,
    /// Their slack.
    pub(crate) residents: Residents,
}

impl Decoding {
    pub(crate) fn new(page_tokens: u32, policy: StepPolicy) -> Self {
        Self {
            page_tokens,
            policy,
            seqs: 0,
            context: 0,
            steps: 0,
            phase: 0,
            joins: 0,
            due: BinaryHeap::new(),
            growing: vec![0; page_tokens as usize],
            residents: Residents::new(),
        }
    }

    /// One more takes part from the next step on. It ends after `left` tokens; `pages` are its.
    pub(crate) fn join(
        &mut self,
        now: Micros,
        slot: u32,
        computed: u32,
        left: u32,
        pages: u32,
    ) -> Resident {
        let at = self.steps;
        self.joins = self.joins.wrapping_add(1);
        let join = self.joins;
        let mut resident = Resident {
            join,
            at,
            computed,
            // Where it decoded before is not known here: its slack begins at nought.
            stay: Some(self.residents.join(&self.policy, now, Micros(0), now, 1)),
            is_growing: false,
        };
        self.seqs += 1;
        self.context += u64::from(computed);
        let last = at + u64::from(left);
        self.due.push(Reverse((last, slot, join, Due::Last)));
        let room = u64::from(pages) * u64::from(self.page_tokens);
        let full = at + room.saturating_sub(u64::from(computed));
        if full <= at {
            self.grow(&mut resident);
        } else if full < last {
            self.due.push(Reverse((full, slot, join, Due::Grow)));
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
        if let Some(stay) = resident.stay {
            self.residents.leave(stay);
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
    pub(crate) fn pages_for(&self, ahead: u32) -> u32 {
        self.growing[((self.phase + ahead) % self.page_tokens) as usize]
    }

    /// A step ended.
    pub(crate) fn advance(&mut self, now: Micros) {
        self.steps += 1;
        self.phase = (self.phase + 1) % self.page_tokens;
        self.context += u64::from(self.seqs);
        self.residents.stepped(now);
    }

    /// After how many steps something is due; stale entries count.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse(entry)| entry.0)
    }

    /// What is due by now, one by one; may be of a resident that left.
    pub(crate) fn pop_due(&mut self) -> Option<Entry> {
        let &Reverse(entry) = self.due.peek()?;
        if entry.0 > self.steps {
            return None;
        }
        self.due.pop();
        Some(entry)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Step by step, one resident by one, as a worker does.
    #[test]
    fn pages_and_ends_are_those_of_counting_one_by_one() {
        let page = 16;
        let mut batch = Decoding::new(page, StepPolicy::default());
        let mut naive: Vec<(u32, u32, u32, Resident)> = Vec::new();
        let seeds = [
            (1, 90, 1),
            (17, 90, 2),
            (16, 90, 1),
            (100, 90, 9),
            (31, 90, 2),
        ];
        for (slot, (computed, left, pages)) in (0..).zip(seeds) {
            let resident = batch.join(Micros(slot), 0, computed, left, pages);
            naive.push((computed, left, pages, resident));
        }
        batch.due.clear();
        for &(computed, left, pages, resident) in &naive {
            let full = (pages * page).saturating_sub(computed);
            if full > 0 && full < left {
                let slot = naive.iter().position(|seat| seat.3.stay == resident.stay);
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
            batch.advance(Micros(0));
            let sum: u32 = naive.iter().map(|seat| seat.0).sum();
            assert_eq!(batch.context, u64::from(sum));
        }
    }
}
