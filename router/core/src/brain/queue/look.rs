//! What others ask of the queue.

use super::{Class, Head, Item, Lane, QueueKey, Spot, WaitQueue};
use crate::units::Micros;

/// What the queue makes of a sequence, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::brain) struct Seen {
    /// By the policy's order: microseconds, or zero.
    pub(in crate::brain) rank: i64,
    /// It can no longer meet its target, as far as anybody looked.
    pub(in crate::brain) is_late: bool,
    /// Tokens that its tenant was charged, by weight.
    pub(in crate::brain) service: u64,
}

impl WaitQueue {
    /// All that wait; tenants one after the other.
    pub(in crate::brain) fn iter(&self) -> impl Iterator<Item = usize> {
        let items = self.lines.values().flat_map(|line| line.items.values());
        items.map(|item| item.sequence)
    }

    /// Tokens to compute of all that wait.
    pub(in crate::brain) const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Predicted prefill of all that wait, on a worker of the fastest kind.
    pub(in crate::brain) const fn work_us(&self) -> Micros {
        Micros(self.work_us)
    }

    pub(in crate::brain) fn len(&self) -> usize {
        self.counts.as_flattened().iter().sum()
    }

    pub(in crate::brain) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many of its tenant a newcomer has before it, all of them, if that can be told at once:
    /// not if it goes before one of them, and nobody knows how many it goes before.
    pub(in crate::brain) fn ahead(
        &self,
        account: usize,
        priority: i32,
        rank: i64,
    ) -> Option<usize> {
        let class = |is_late, priority| Class {
            lane: Lane::Fresh,
            is_late,
            priority,
        };
        let least_late = Head::least(class(true, i32::MIN));
        let last = self.heads.range(..least_late).next_back();
        let last = last
            .map(|head| head.class)
            .filter(|class| class.lane == Lane::Fresh);
        let line = self.lines.get(&(account, class(false, priority)));
        let last_of_its = line.and_then(|line| line.items.last_key_value());
        let goes_before = last.is_some_and(|last| last.priority > priority)
            || last_of_its.is_some_and(|(&(last, _), _)| last > rank);
        (!goes_before).then(|| self.share.in_time(account))
    }

    /// Nobody goes before more have stepped behind, at the next event.
    pub(in crate::brain) const fn has_more_late(&self) -> bool {
        self.has_more_late
    }

    /// Sequences that stepped behind since this was last asked.
    pub(in crate::brain) fn take_demoted(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.demoted)
    }

    /// Nobody may take the room that this one waits for: it ran before, or is owed its turn.
    pub(in crate::brain) fn keeps_room_for(&self, key: QueueKey, sequence: usize) -> bool {
        key.lane != Lane::Fresh || self.owed() == Some(sequence)
    }

    /// Who has waited so long that nobody may cost it its turn.
    pub(in crate::brain) fn overdue(&self) -> Option<usize> {
        self.guard.overdue(self.now)
    }

    fn find(&self, key: QueueKey) -> Option<(Spot, Item)> {
        [false, true].into_iter().find_map(|is_late| {
            let spot = Spot::of(key, is_late);
            let item = self.lines.get(&spot.line())?.items.get(&spot.at)?;
            Some((spot, *item))
        })
    }

    /// What the queue makes of a sequence that waits.
    pub(in crate::brain) fn seen(&self, key: QueueKey) -> Option<Seen> {
        /// Of a token, in the count.
        const PARTS_BITS: u32 = 32;
        let (spot, item) = self.find(key)?;
        let service = self.share.service(key.account) >> PARTS_BITS;
        Some(Seen {
            rank: key.rank,
            is_late: spot.class.is_late || (self.demotes && item.start_by < self.now),
            service: u64::try_from(service).unwrap_or(u64::MAX),
        })
    }

    /// Sequences of an account that never ran, the one that goes last first: the late ones, then,
    /// unless `only_late`, the others.
    pub(in crate::brain) fn last_of(
        &self,
        account: usize,
        only_late: bool,
    ) -> impl Iterator<Item = (usize, Item)> {
        let class = |is_late, priority| Class {
            lane: Lane::Fresh,
            is_late,
            priority,
        };
        let from = (account, class(only_late, i32::MIN));
        let to = (account, class(true, i32::MAX));
        let lines = self.lines.range(from..=to).rev();
        let items = lines.flat_map(|(_, line)| line.items.values().rev());
        items.map(|&item| (item.sequence, item))
    }
}
