//! Pages that a step needs: a sequence that outgrows its own takes free ones, and if there are too
//! few somebody loses all of its pages (`closed` with PREEMPTED; the router computes it again).
//!
//! The rule, the same in Python's workers: of all seats whose pages come free at once (RESERVED,
//! and RUN to GOING) the one with the greatest (priority, arrival at this worker) goes, be it the
//! one in need. So the oldest of the most urgent always gets on, and whatever is done again was
//! begun last. EXPOSED (its pages would be fenced), FROZEN and SENT (as good as gone) are never
//! chosen.

use dopd_core::units::Micros;
use dopd_router::wire::worker::{CloseReason, KvScrub};

use super::{Batch, Seats, types::Phase};
use crate::model::PAGE_SIZE;

impl Seats {
    /// Gives every row of the step the pages that it will write. False: there were too few, and
    /// somebody was preempted; plan again.
    pub(super) fn grow(&mut self, now: Micros, batch: &Batch) -> bool {
        let scrub = self.session.map_or(KvScrub::Never, |terms| terms.scrub);
        for row in &batch.rows {
            let seat = self.by_slot.get_mut(row.slot as usize);
            let Some(seat) = seat.and_then(Option::as_mut) else {
                continue;
            };
            let needed = (seat.computed + row.tokens).div_ceil(PAGE_SIZE);
            let missing = needed.saturating_sub(super::types::count(seat.pages.len()));
            if missing == 0 {
                continue;
            }
            if let Some(pages) = self.pool.allocate(missing, seat.tenant, scrub) {
                seat.pages.extend(pages);
                continue;
            }
            let slot = self.victim().unwrap_or(row.slot);
            self.preempt(now, slot);
            return false;
        }
        true
    }

    /// Whose pages go to those in need.
    fn victim(&self) -> Option<u32> {
        let seats = self.by_slot.iter().zip(0..);
        let seats = seats.filter_map(|(seat, slot)| Some((seat.as_deref()?, slot)));
        seats
            .filter(|(seat, _)| seat.phase.is_stepping() || seat.phase.is_reserved())
            .max_by_key(|(seat, _)| (seat.priority, seat.life))
            .map(|(_, slot)| slot)
    }

    /// Ends a seat whose pages are needed elsewhere.
    pub(super) fn preempt(&mut self, now: Micros, slot: u32) {
        self.preempted += 1;
        self.close(now, slot, CloseReason::Preempted, "its pages were needed");
    }

    /// Whether a test may take this seat's pages: not while it waits for its transport or its
    /// router.
    pub(super) fn is_preemptible(&self, slot: u32) -> bool {
        self.seat(slot)
            .is_some_and(|seat| !matches!(seat.phase, Phase::Frozen(_) | Phase::Sent(_)))
    }
}
