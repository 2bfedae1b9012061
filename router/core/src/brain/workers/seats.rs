//! What opens, reports and ends do to a worker's account. Each change goes to all of its books.

use super::Worker;
use crate::{
    action::Violation,
    fleet::WorkerLoad,
    ids::SlotId,
    units::{Pages, Tokens},
};

impl Worker {
    /// Open goes out. Returns the pages to ask for.
    pub(in crate::brain) fn open(&mut self, slot: SlotId) -> Option<Pages> {
        let (_, before) = self.slots.prefill();
        let pages = self.slots.open(slot);
        let (_, after) = self.slots.prefill();
        self.unseen[0] = self.unseen[0].saturating_add(after.saturating_sub(before));
        pages
    }

    /// A report came.
    pub(in crate::brain) fn heard(&mut self, load: WorkerLoad) {
        self.load = load;
        if self.learned.hear(&load) || self.facts.timings.is_instant() {
            self.predict();
        }
        self.unseen = [0, self.unseen[0]];
    }

    /// A Close goes out, or need not. True: it has to.
    pub(in crate::brain) fn close(&mut self, slot: SlotId) -> bool {
        self.residents.remove(slot);
        self.slots.close(slot)
    }

    /// It said closed of a seat; see [`Slots::closed`].
    pub(in crate::brain) fn closed(&mut self, slot: SlotId) -> Result<Option<usize>, Violation> {
        self.residents.remove(slot);
        self.slots.closed(slot)
    }

    /// A seat made tokens, so its prompt is computed.
    pub(in crate::brain) fn made(&mut self, slot: SlotId, tokens: Tokens) {
        self.residents.grew(slot, tokens.0);
        self.residents.runs(slot);
        if self.slots.is_prefilling(slot) {
            self.residents.computed(slot);
            self.slots.prefill_done(slot);
        }
    }
}
