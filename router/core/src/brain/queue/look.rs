//! What others ask of the queue.

use super::{Class, Item, Lane, QueueKey, Seen, Spot, WaitQueue};
use crate::units::Micros;

impl WaitQueue {
    /// All that wait; tenants one after the other.
    pub(in crate::brain) fn iter(&self) -> impl Iterator<Item = usize> {
        self.items.values().map(|item| item.sequence)
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
        self.items.len()
    }

    pub(in crate::brain) fn is_empty(&self) -> bool {
        self.items.is_empty()
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
        let least_late = Spot {
            class: class(true, i32::MIN),
            account: 0,
            rank: i64::MIN,
            arrival: 0,
        };
        let last = self.items.range(..least_late).next_back();
        let last = last
            .map(|(spot, _)| spot.class)
            .filter(|class| class.lane == Lane::Fresh);
        let last_of_its = self.of(class(false, priority), account).next_back();
        let goes_before = last.is_some_and(|last| last.priority > priority)
            || last_of_its.is_some_and(|(spot, _)| spot.rank > rank);
        (!goes_before).then(|| self.share.in_time(account))
    }

    /// Sequences that stepped behind since this was last asked.
    pub(in crate::brain) fn take_demoted(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.demoted)
    }

    /// Nobody may take the room that this one waits for: it ran before, or is owed its turn.
    pub(in crate::brain) fn keeps_room_for(&self, key: QueueKey, sequence: usize) -> bool {
        let owes = || {
            self.owed()
                .is_some_and(|(_, item)| item.sequence == sequence)
        };
        key.lane != Lane::Fresh || owes()
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
        let classes = self
            .tops
            .range(from..=to)
            .rev()
            .map(|(&(_, class), _)| class);
        classes
            .flat_map(move |class| self.of(class, account).rev())
            .map(|(_, &item)| (item.sequence, item))
    }
}
