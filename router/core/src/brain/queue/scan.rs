//! More than the first: those that go next, without a change.

use std::{collections::BTreeSet, ops::Bound};

use super::{Class, Head, LANES, Lane, Spot, WaitQueue};

impl WaitQueue {
    /// The next `count` at most, in the order in which they would go if nothing else came.
    pub(in crate::brain) fn scan(
        &mut self,
        is_open: impl Fn(Lane) -> bool,
        count: usize,
    ) -> Vec<usize> {
        let mut found = Vec::with_capacity(count.min(self.items.len()));
        for lane in LANES.into_iter().filter(|&lane| is_open(lane)) {
            let owed = self.owed().filter(|_| lane == Lane::Fresh);
            let owed = owed.map(|(_, item)| item.sequence);
            found.extend(owed);
            for is_late in [false, true] {
                let mut class = Class {
                    lane,
                    is_late,
                    priority: i32::MIN,
                };
                while found.len() < count
                    && let Some(head) = self.head(class)
                {
                    let room = count - found.len() + 1;
                    let next = self.scan_class(head.class, room);
                    found.extend(next.into_iter().filter(|&sequence| Some(sequence) != owed));
                    let Some(priority) = head.class.priority.checked_add(1) else {
                        break;
                    };
                    class.priority = priority;
                }
            }
        }
        found.truncate(count);
        found
    }

    /// The next of one class, as if each prompt were charged when it goes.
    fn scan_class(&mut self, class: Class, count: usize) -> Vec<usize> {
        loop {
            let mut turns = self.turns(class, count);
            let (mut found, mut late) = (Vec::new(), Vec::new());
            while found.len() < count
                && let Some((head, service)) = turns.pop_first()
            {
                let spot = head.spot();
                let Some(&item) = self.items.get(&spot) else {
                    continue;
                };
                let service = if self.is_to_demote(&spot, &item) {
                    late.push(spot);
                    service
                } else {
                    found.push(item.sequence);
                    self.share.with_prompt(spot.account, service, item.tokens)
                };
                let end = Spot {
                    rank: i64::MAX,
                    arrival: u64::MAX,
                    ..spot
                };
                let rest = (Bound::Excluded(spot), Bound::Included(end));
                if let Some((next, _)) = self.items.range(rest).next() {
                    let head = Head {
                        turn: self.share.turn_at(service),
                        rank: next.rank,
                        arrival: next.arrival,
                        ..head
                    };
                    turns.insert((head, service));
                }
            }
            if late.is_empty() {
                return found;
            }
            for spot in late {
                self.demote(spot);
            }
        }
    }

    /// The first heads of a class and what their tenants were charged, up to date.
    fn turns(&mut self, class: Class, count: usize) -> BTreeSet<(Head, u128)> {
        loop {
            let of_class = |head: &&Head| head.class == class;
            let first = self.heads.range(Head::least(class)..).take_while(of_class);
            let heads: Vec<Head> = first.take(count).copied().collect();
            let is_stale = |head: &&Head| head.turn != self.share.turn(head.account);
            let stale: Vec<Head> = heads.iter().filter(is_stale).copied().collect();
            if stale.is_empty() {
                let service = |head: Head| (head, self.share.service(head.account));
                return heads.into_iter().map(service).collect();
            }
            for head in stale {
                self.refresh(head.class, head.account);
            }
        }
    }
}
