//! More than the first: those that go next, without a change.

use std::{collections::BTreeSet, ops::Bound};

use super::{Class, DEMOTIONS_MAX, Head, LANES, Lane, WaitQueue};

impl WaitQueue {
    /// The next `count` at most, in the order in which they would go if nothing else came; nobody
    /// where more step behind first.
    pub(in crate::brain) fn scan(
        &mut self,
        is_open: impl Fn(Lane) -> bool,
        count: usize,
    ) -> Vec<usize> {
        let mut found = Vec::with_capacity(count.min(self.len()));
        for lane in LANES.into_iter().filter(|&lane| is_open(lane)) {
            let owed = self.owed().filter(|_| lane == Lane::Fresh);
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
        found.truncate(if self.has_more_late { 0 } else { count });
        found
    }

    /// The next of one class, as if each prompt were charged when it goes.
    fn scan_class(&mut self, class: Class, count: usize) -> Vec<usize> {
        loop {
            let mut turns = self.turns(class, count);
            let (mut found, mut late) = (Vec::new(), Vec::new());
            while found.len() < count
                && !self.has_more_late
                && let Some((head, service)) = turns.pop_first()
            {
                let spot = head.spot();
                let line = self.lines.get(&spot.line());
                let Some((line, &item)) =
                    line.and_then(|line| Some((line, line.items.get(&spot.at)?)))
                else {
                    continue;
                };
                let rest = (Bound::Excluded(spot.at), Bound::Unbounded);
                let next = line.items.range(rest).next().map(|(&at, _)| at);
                let service = if self.is_to_demote(&spot, &item) {
                    late.push(spot);
                    self.has_more_late = self.demoted.len() + late.len() > DEMOTIONS_MAX;
                    service
                } else {
                    found.push(item.sequence);
                    self.share.with_prompt(spot.account, service, item.tokens)
                };
                if let Some((rank, arrival)) = next {
                    let head = Head {
                        turn: self.share.turn_at(service),
                        rank,
                        arrival,
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
            if self.has_more_late {
                return found;
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
                self.refresh(head.account, head.class);
            }
        }
    }
}
