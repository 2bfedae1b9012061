//! Which prompt goes where next: the loop that hands what waits to workers, after every event.

use super::{
    Brain,
    explain::{Chosen, Considered},
    place::{Need, Place, choose},
    queue::Lane,
    sequences::Risk,
    table::Input,
};
use crate::{request::RejectReason, units::Micros};

impl Brain {
    /// Places what can be placed, and notes how fast that goes.
    pub(super) fn place_waiting(&mut self) {
        let before = self.places;
        self.place_all();
        let count = u32::try_from(self.places - before).unwrap_or(u32::MAX);
        // Without workers nothing is to be seen of them.
        let is_waiting = !self.queue.is_empty() && self.workers.is_any_usable();
        self.pace.placed(self.now, count, is_waiting);
    }

    /// Places from the front of the queue until one does not fit: the order is kept, so nothing
    /// starves.
    fn place_all(&mut self) {
        let mut quarantined = Vec::new();
        while let Some(key) = self.next_to_place(&quarantined) {
            let Some(sequence) = self.sequences.get(key) else {
                return;
            };
            let (lane, risk) = (sequence.queue_key.lane, self.sequences.risk(sequence));
            let need = Need {
                len: sequence.len(),
                answer_left: sequence.max_tokens.minus(sequence.answer),
                risk,
            };
            if let Some(why) = self.is_in_vain(sequence) {
                let is_late = why == RejectReason::DeadlineExceeded && sequence.deadline > self.now;
                self.hopeless_total += u64::from(is_late);
                self.end(key, Some((why, Micros(0))));
                continue;
            }
            let anybody = Need {
                risk: Risk::None,
                ..need
            };
            let mut considered = self.considered();
            if let Some(place) = self.choose(key, need, &mut considered) {
                self.note_place(key, place, &considered);
                self.apply(key, Input::Place(place));
                self.places += 1;
            } else if risk != Risk::None && self.choose(key, anybody, &mut considered).is_some() {
                self.note(key, Chosen::Wait, &considered);
                // There is room, but not in its company.
                quarantined.push(lane);
            } else {
                self.note(key, Chosen::Wait, &considered);
                return;
            }
        }
    }

    fn next_to_place(&mut self, quarantined: &[Lane]) -> Option<usize> {
        let open = self.open_lanes();
        let is_open = |lane| open.has(lane) && !quarantined.contains(&lane);
        self.queue.first(is_open)
    }

    fn choose(&self, key: usize, need: Need, considered: &mut Considered) -> Option<Place> {
        let sibling = self.siblings(key).next();
        let percent = self.config.keep_pool_percent;
        choose(
            &self.workers,
            &self.pairs,
            need,
            sibling,
            percent,
            considered,
        )
    }
}
