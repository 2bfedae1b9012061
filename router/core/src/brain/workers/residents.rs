//! What the seats of a worker are to its load: who decodes there or will, against which targets,
//! and what of their prompts is still to compute. Kept beside `slots`, by the same numbers.

use crate::{ids::SlotId, units::Micros};

/// Longest prompt that is added up: twelve days, so that 16 million of them fit in 64 bits whatever
/// step times a worker tells.
const WORK_US_MAX: u64 = 1 << 40;

/// One seat, from its plan until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::brain) struct Resident {
    /// Its target per token.
    pub(in crate::brain) tpot: Micros,
    /// Tokens of its KV here, once its prompt is computed.
    pub(in crate::brain) kv: u64,
    /// Predicted time of what is to compute of its prompt, alone.
    pub(in crate::brain) work_us: u64,
    /// It decodes here; else it goes on to another worker.
    pub(in crate::brain) stays: bool,
    /// Its KV is here: it made a token, or arrived.
    pub(in crate::brain) runs: bool,
}

/// All seats of one session.
#[derive(Debug, Default)]
pub(in crate::brain) struct Residents {
    rows: Vec<Option<Resident>>,
    /// Targets of those that stay, with how many have each, the tightest first. Most are the same.
    tpots: Vec<(Micros, u32)>,
    seqs: u32,
    running: u32,
    /// Tokens of KV of all, and of those that stay.
    kv: u64,
    context: u64,
    work_us: u64,
}

impl Residents {
    pub(in crate::brain) fn add(&mut self, slot: SlotId, mut resident: Resident) {
        self.remove(slot);
        resident.work_us = resident.work_us.min(WORK_US_MAX);
        let at = slot.0 as usize;
        if self.rows.len() <= at {
            self.rows.resize(at + 1, None);
        }
        self.rows[at] = Some(resident);
        self.kv += resident.kv;
        self.work_us += resident.work_us;
        if resident.stays {
            self.count(resident);
        }
    }

    pub(in crate::brain) fn remove(&mut self, slot: SlotId) {
        let row = self.rows.get_mut(slot.0 as usize);
        let Some(resident) = row.and_then(Option::take) else {
            return;
        };
        self.kv -= resident.kv;
        self.work_us -= resident.work_us;
        if !resident.stays {
            return;
        }
        self.seqs -= 1;
        self.running -= u32::from(resident.runs);
        self.context -= resident.kv;
        if let Ok(place) = self.place_of(resident.tpot) {
            self.tpots[place].1 -= 1;
            if self.tpots[place].1 == 0 {
                self.tpots.remove(place);
            }
        }
    }

    /// Its prompt is computed.
    pub(in crate::brain) fn computed(&mut self, slot: SlotId) {
        if let Some(resident) = self.get_mut(slot) {
            let done_us = std::mem::take(&mut resident.work_us);
            self.work_us -= done_us;
        }
    }

    /// It made so many tokens.
    pub(in crate::brain) fn grew(&mut self, slot: SlotId, tokens: u32) {
        if let Some(resident) = self.get_mut(slot) {
            resident.kv += u64::from(tokens);
            let stays = resident.stays;
            self.kv += u64::from(tokens);
            self.context += if stays { u64::from(tokens) } else { 0 };
        }
    }

    /// Its hand-off was given up: it decodes here.
    pub(in crate::brain) fn stays(&mut self, slot: SlotId) {
        if let Some(resident) = self.get_mut(slot)
            && !std::mem::replace(&mut resident.stays, true)
        {
            let resident = *resident;
            self.count(resident);
        }
    }

    /// Its KV is here.
    pub(in crate::brain) fn runs(&mut self, slot: SlotId) {
        if let Some(resident) = self.get_mut(slot)
            && !std::mem::replace(&mut resident.runs, true)
        {
            let stays = resident.stays;
            self.running += u32::from(stays);
        }
    }

    fn count(&mut self, resident: Resident) {
        self.seqs += 1;
        self.running += u32::from(resident.runs);
        self.context += resident.kv;
        match self.place_of(resident.tpot) {
            Ok(place) => self.tpots[place].1 += 1,
            Err(place) => self.tpots.insert(place, (resident.tpot, 1)),
        }
    }

    fn place_of(&self, tpot: Micros) -> Result<usize, usize> {
        self.tpots.binary_search_by_key(&tpot, |&(other, _)| other)
    }

    fn get_mut(&mut self, slot: SlotId) -> Option<&mut Resident> {
        self.rows.get_mut(slot.0 as usize)?.as_mut()
    }

    /// Sequences that decode here, or will.
    pub(in crate::brain) const fn seqs(&self) -> u32 {
        self.seqs
    }

    /// Sequences that decode here now.
    pub(in crate::brain) const fn running(&self) -> u32 {
        self.running
    }

    /// Tokens of KV of all seats.
    pub(in crate::brain) const fn kv(&self) -> u64 {
        self.kv
    }

    /// Tokens of KV that those that stay read in a step.
    pub(in crate::brain) const fn context(&self) -> u64 {
        self.context
    }

    /// Predicted time of all prompts, as if nothing of them were computed.
    pub(in crate::brain) const fn work_us(&self) -> u64 {
        self.work_us
    }

    /// Tightest target of those that stay, from so much on.
    pub(in crate::brain) fn tightest(&self, from: Micros) -> Option<Micros> {
        let tight = self.tpots.partition_point(|&(tpot, _)| tpot < from);
        self.tpots.get(tight).map(|&(tpot, _)| tpot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(tpot: u64, kv: u64, work_us: u64, stays: bool) -> Resident {
        Resident {
            tpot: Micros(tpot),
            kv,
            work_us,
            stays,
            runs: false,
        }
    }

    #[test]
    fn sums_follow_the_seats() {
        let mut residents = Residents::default();
        residents.add(SlotId(3), resident(80, 100, 7, true));
        residents.add(SlotId(0), resident(30, 50, 5, false));
        let sums = |of: &Residents| (of.seqs(), of.kv(), of.context(), of.work_us());
        assert_eq!(sums(&residents), (1, 150, 100, 12));
        assert_eq!(residents.tightest(Micros(0)), Some(Micros(80)));
        residents.grew(SlotId(0), 1);
        assert_eq!(sums(&residents), (1, 151, 100, 12), "it reads nothing here");
        residents.stays(SlotId(0));
        residents.stays(SlotId(0));
        residents.grew(SlotId(0), 1);
        residents.computed(SlotId(0));
        residents.computed(SlotId(0));
        assert_eq!(sums(&residents), (2, 152, 152, 7));
        assert_eq!(residents.tightest(Micros(0)), Some(Micros(30)));
        assert_eq!(residents.tightest(Micros(31)), Some(Micros(80)));
        residents.runs(SlotId(0));
        residents.runs(SlotId(0));
        assert_eq!(residents.running(), 1);
        residents.remove(SlotId(0));
        assert_eq!(residents.running(), 0);
        residents.remove(SlotId(0));
        residents.remove(SlotId(9));
        assert_eq!(sums(&residents), (1, 100, 100, 7));
        residents.remove(SlotId(3));
        assert_eq!(sums(&residents), (0, 0, 0, 0));
        assert_eq!(residents.tightest(Micros(0)), None);
    }
}
