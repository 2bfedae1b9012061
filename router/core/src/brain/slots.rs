//! The table "Slot at the router" of the hand-off's design, and the account that hangs on it.
//!
//! One [`Slots`] per session. A page counts as used from the plan until `closed` was read, so a
//! worker that is told to open always has room, unless it serves another router as well. Slot
//! numbers are small: a freed one is taken first.

use crate::{
    action::Violation,
    ids::SlotId,
    units::{Pages, Tokens},
};

/// Column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// Nobody's.
    Free,
    /// Reserved in the account; nothing was sent.
    Planned,
    /// Open was sent, `closed` was not read.
    Open,
    /// Close was sent, `closed` was not read.
    Closing,
}

/// Row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotInput {
    /// Open goes out.
    OpenGoesOut,
    /// The brain wants it closed.
    WantClosed,
    /// The worker said opened, arrived or token.
    Said,
    /// The worker said closed, finished included.
    Closed,
}

/// What to do. "session lost" frees the whole table at once and has no cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotCell {
    /// Harmless.
    Ignore,
    /// Protocol error.
    Break,
    /// OPEN.
    ToOpen,
    /// FREE, nothing is sent.
    ToFree,
    /// Close goes out; CLOSING.
    SendClose,
    /// Hand it to the sequence.
    Tell,
    /// Hand it to the sequence; FREE.
    TellThenFree,
}

/// The cell.
#[expect(
    clippy::match_same_arms,
    reason = "one block a row, as in the design's table"
)]
pub(super) const fn slot_cell(input: SlotInput, state: SlotState) -> SlotCell {
    use self::SlotState::{Closing, Free, Open, Planned};
    match (input, state) {
        (SlotInput::OpenGoesOut, Free | Planned) => SlotCell::ToOpen,
        (SlotInput::OpenGoesOut, Open | Closing) => SlotCell::Break,

        (SlotInput::WantClosed, Free | Closing) => SlotCell::Ignore,
        (SlotInput::WantClosed, Planned) => SlotCell::ToFree,
        (SlotInput::WantClosed, Open) => SlotCell::SendClose,

        (SlotInput::Said | SlotInput::Closed, Free | Planned) => SlotCell::Break,
        (SlotInput::Said, Open) => SlotCell::Tell,
        (SlotInput::Said, Closing) => SlotCell::Ignore,

        (SlotInput::Closed, Open) => SlotCell::TellThenFree,
        (SlotInput::Closed, Closing) => SlotCell::ToFree,
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: SlotState,
    /// Key of the sequence; read only while PLANNED or OPEN.
    sequence: usize,
    pages: Pages,
    /// Prompt tokens still to compute here.
    prefill: Tokens,
    /// It computes its prompt here, or did; else the KV came from elsewhere.
    is_compute: bool,
}

/// All slots of one session, with their account.
#[derive(Debug, Default)]
pub(super) struct Slots {
    rows: Vec<Slot>,
    free: Vec<SlotId>,
    pages_used: u64,
    seats_used: u32,
    prefill_planned: u64,
    prefill_open: u64,
}

impl Slots {
    /// Takes a free slot into the account: PLANNED. `prefill`: prompt tokens to compute; none at an
    /// import.
    pub(super) fn plan(
        &mut self,
        sequence: usize,
        pages: Pages,
        prefill: Option<Tokens>,
    ) -> SlotId {
        let is_compute = prefill.is_some();
        let prefill = prefill.unwrap_or_default();
        let slot = Slot {
            state: SlotState::Planned,
            sequence,
            pages,
            prefill,
            is_compute,
        };
        self.pages_used += u64::from(pages.0);
        self.seats_used += 1;
        self.prefill_planned += u64::from(prefill.0);
        if let Some(id) = self.free.pop() {
            self.rows[id.0 as usize] = slot;
            return id;
        }
        let id = SlotId(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
        self.rows.push(slot);
        id
    }

    /// Open goes out. Returns the pages to ask for; `None`: the slot is not the brain's to open.
    pub(super) fn open(&mut self, id: SlotId) -> Option<Pages> {
        let slot = self.rows.get_mut(id.0 as usize)?;
        match slot_cell(SlotInput::OpenGoesOut, slot.state) {
            SlotCell::ToOpen => {
                slot.state = SlotState::Open;
                self.prefill_planned -= u64::from(slot.prefill.0);
                self.prefill_open += u64::from(slot.prefill.0);
                Some(slot.pages)
            }
            _ => None,
        }
    }

    /// The brain wants the slot closed. True: Close has to go out.
    pub(super) fn close(&mut self, id: SlotId) -> bool {
        match slot_cell(SlotInput::WantClosed, self.state(id)) {
            SlotCell::SendClose => {
                self.prefill_done(id);
                self.rows[id.0 as usize].state = SlotState::Closing;
                true
            }
            SlotCell::ToFree => {
                self.release(id);
                false
            }
            _ => false,
        }
    }

    /// The worker said opened, arrived or token of the slot: whose is it, if anybody still cares.
    pub(super) fn said(&self, id: SlotId) -> Result<Option<usize>, Violation> {
        match slot_cell(SlotInput::Said, self.state(id)) {
            SlotCell::Break => Err(Violation::NoSuchSeat),
            SlotCell::Tell => Ok(self.rows.get(id.0 as usize).map(|slot| slot.sequence)),
            _ => Ok(None),
        }
    }

    /// The worker said closed or finished of the slot: whose was it, if anybody still cares. The
    /// slot is FREE then.
    pub(super) fn closed(&mut self, id: SlotId) -> Result<Option<usize>, Violation> {
        match slot_cell(SlotInput::Closed, self.state(id)) {
            SlotCell::Break => Err(Violation::NoSuchSeat),
            SlotCell::TellThenFree => {
                let sequence = self.rows[id.0 as usize].sequence;
                self.release(id);
                Ok(Some(sequence))
            }
            _ => {
                self.release(id);
                Ok(None)
            }
        }
    }

    /// The prompt of the slot is computed, or will not be.
    pub(super) fn prefill_done(&mut self, id: SlotId) {
        if let Some(slot) = self.rows.get_mut(id.0 as usize) {
            let tokens = u64::from(std::mem::take(&mut slot.prefill).0);
            match slot.state {
                SlotState::Planned => self.prefill_planned -= tokens,
                _ => self.prefill_open -= tokens,
            }
        }
    }

    /// The prompt of the slot is not computed yet.
    pub(super) fn is_prefilling(&self, id: SlotId) -> bool {
        self.rows
            .get(id.0 as usize)
            .is_some_and(|slot| slot.prefill.0 > 0)
    }

    /// The slot computes its prompt, or has.
    pub(super) fn is_compute(&self, id: SlotId) -> bool {
        self.rows
            .get(id.0 as usize)
            .is_some_and(|slot| slot.is_compute)
    }

    /// FREE, out of the account.
    fn release(&mut self, id: SlotId) {
        self.prefill_done(id);
        let slot = &mut self.rows[id.0 as usize];
        slot.state = SlotState::Free;
        self.pages_used -= u64::from(slot.pages.0);
        self.seats_used -= 1;
        self.free.push(id);
    }

    fn state(&self, id: SlotId) -> SlotState {
        self.rows
            .get(id.0 as usize)
            .map_or(SlotState::Free, |slot| slot.state)
    }

    /// Slots that are PLANNED or OPEN, and whose.
    pub(super) fn owned(&self) -> impl Iterator<Item = (SlotId, usize)> {
        (0..).map(SlotId).zip(&self.rows).filter_map(|(id, slot)| {
            matches!(slot.state, SlotState::Planned | SlotState::Open)
                .then_some((id, slot.sequence))
        })
    }

    pub(super) const fn pages_used(&self) -> u64 {
        self.pages_used
    }

    pub(super) const fn seats_used(&self) -> u32 {
        self.seats_used
    }

    /// Prompt tokens of planned seats, and of open ones that are not computed as far as the brain
    /// knows.
    pub(super) const fn prefill(&self) -> (u64, u64) {
        (self.prefill_planned, self.prefill_open)
    }
}
