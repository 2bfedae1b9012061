//! The invariants of handoff.md section 7 that one worker can check of itself, by name. Called
//! after every event in tests.

use std::collections::HashMap;

use super::{Seats, types::Phase};
use crate::pages::PageState;

impl Seats {
    /// Checks every invariant of this worker; the error names the first that fails.
    pub fn check(&self) -> Result<(), String> {
        self.page_has_one_owner()?;
        self.accounting_closes()?;
        self.fence_implies_live_link()?;
        self.seat_has_session()?;
        self.tickets_match_seats()
    }

    fn open_seats(&self) -> impl Iterator<Item = (usize, &super::Seat)> {
        let all = self.by_slot.iter().enumerate();
        all.filter_map(|(slot, seat)| Some((slot, seat.as_deref()?)))
    }

    /// Every owned page belongs to one seat, every fenced page to one fence.
    fn page_has_one_owner(&self) -> Result<(), String> {
        let mut owners: HashMap<u32, String> = HashMap::new();
        let seats = self
            .open_seats()
            .map(|(slot, seat)| (format!("seat {slot}"), &seat.pages, PageState::Owned));
        let fences = self.fences.iter();
        let fences =
            fences.map(|(nonce, f)| (format!("fence {nonce}"), &f.pages, PageState::Fenced));
        for (owner, pages, state) in seats.chain(fences) {
            for &page in pages {
                if self.pool.state(page) != state {
                    let is = self.pool.state(page);
                    return Err(format!(
                        "page_has_one_owner: page {page} of {owner} is {is:?}"
                    ));
                }
                if let Some(other) = owners.insert(page, owner.clone()) {
                    return Err(format!(
                        "page_has_one_owner: page {page}: {other} and {owner}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// free + owned + fenced = total (nothing is cached here).
    fn accounting_closes(&self) -> Result<(), String> {
        let owned: usize = self.open_seats().map(|(_, seat)| seat.pages.len()).sum();
        let fenced: usize = self.fences.values().map(|fence| fence.pages.len()).sum();
        let sum = self.pool.free() as usize + owned + fenced;
        let live = self.open_seats().count();
        if sum != self.pool.total() as usize || fenced != self.pool.fenced() as usize {
            let (free, total) = (self.pool.free(), self.pool.total());
            return Err(format!(
                "accounting_closes: {free} free + {owned} owned + {fenced} fenced, {total} in all"
            ));
        }
        if live != self.live as usize {
            return Err(format!(
                "accounting_closes: {live} seats, {} counted",
                self.live
            ));
        }
        Ok(())
    }

    /// A fence stands only as long as something could land.
    fn fence_implies_live_link(&self) -> Result<(), String> {
        let dead = self
            .fences
            .values()
            .find(|f| !self.links_in.contains(&f.link));
        match dead {
            Some(fence) => Err(format!("fence_implies_live_link: link {}", fence.link)),
            None => Ok(()),
        }
    }

    fn seat_has_session(&self) -> Result<(), String> {
        match (self.session, self.open_seats().next()) {
            (None, Some((slot, _))) => Err(format!("seat_has_session: seat {slot} has none")),
            _ => Ok(()),
        }
    }

    /// Books by ticket and seats say the same.
    fn tickets_match_seats(&self) -> Result<(), String> {
        let (mut imports, mut shipments) = (0, 0);
        for (slot, seat) in self.open_seats() {
            let (book, nonce) = match &seat.phase {
                Phase::Reserved { nonce } | Phase::Exposed { nonce, .. } => {
                    imports += 1;
                    (&self.imports, *nonce)
                }
                phase => match phase.shipment() {
                    Some(shipment) => {
                        shipments += 1;
                        (&self.shipments, shipment.nonce)
                    }
                    None => continue,
                },
            };
            if book.get(&nonce).map(|&slot| slot as usize) != Some(slot) {
                return Err(format!("tickets_match_seats: seat {slot}, nonce {nonce}"));
            }
        }
        if (imports, shipments) != (self.imports.len(), self.shipments.len()) {
            return Err("tickets_match_seats: a ticket without a seat".to_owned());
        }
        Ok(())
    }

    /// `terminal_state_is_clean`: no seat, no fence, no ticket, every page free.
    pub fn is_clean(&self) -> bool {
        self.live == 0
            && self.fences.is_empty()
            && self.imports.is_empty()
            && self.shipments.is_empty()
            && self.pool.free() == self.pool.total()
    }
}
