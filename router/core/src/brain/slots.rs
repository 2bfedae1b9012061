//! The table "Slot at the router" of the hand-off's design, and the account that hangs on it.
//!
//! One [`Slots`] per session. A page counts as used from the plan until `closed` was read, so a
//! worker that is told to open always has room, unless it serves another router as well. Slot
//! numbers are small: a freed one is taken first.

use super::{
    lengths::Lengths,
    peak::{Claim, Peak, reach},
};
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
    claim: Claim,
    /// Prompt tokens still to compute here.
    prefill: Tokens,
    /// It computes its prompt here, or did; else the KV came from elsewhere.
    is_compute: bool,
}

/// All slots of one session, with their account.
#[derive(Debug)]
pub(super) struct Slots {
    rows: Vec<Slot>,
    free: Vec<SlotId>,
    page_size: u32,
    /// Deviations above the mean that growing seats are promised.
    peak_z: f64,
    /// See [`reach`].
    peak_reach: f64,
    /// Pages promised to seats that do not grow.
    fixed: u64,
    /// What growing seats need, now and later, and at the worst time.
    peak: Peak,
    /// Unknown since claims were promised or taken back.
    peak_pages: Option<u64>,
    /// Pages that all seats have now, as far as the brain knows.
    held: u64,
    seats_used: u32,
    prefill_planned: u64,
    prefill_open: u64,
}

impl Slots {
    pub(super) fn new(page_size: u32, peak_z: f64) -> Self {
        Self {
            rows: Vec::new(),
            free: Vec::new(),
            page_size,
            peak_z,
            peak_reach: reach(peak_z),
            fixed: 0,
            peak: Peak::default(),
            peak_pages: Some(0),
            held: 0,
            seats_used: 0,
            prefill_planned: 0,
            prefill_open: 0,
        }
    }

    /// Takes a free slot into the account: PLANNED. `prefill`: prompt tokens to compute; none at an
    /// import.
    pub(super) fn plan(
        &mut self,
        sequence: usize,
        claim: Claim,
        prefill: Option<Tokens>,
    ) -> SlotId {
        let is_compute = prefill.is_some();
        let prefill = prefill.unwrap_or_default();
        let slot = Slot {
            state: SlotState::Planned,
            sequence,
            claim,
            prefill,
            is_compute,
        };
        self.promise(&claim);
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
                Some(slot.claim.pages())
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
        let claim = slot.claim;
        self.take_back(&claim);
        self.seats_used -= 1;
        self.free.push(id);
    }

    fn promise(&mut self, claim: &Claim) {
        self.held += u64::from(claim.pages().0);
        match claim {
            Claim::Fixed(pages) | Claim::Passing(pages, _) => self.fixed += u64::from(pages.0),
            Claim::Grows(curve) => {
                self.peak.add(curve);
                self.peak_pages = None;
            }
        }
    }

    fn take_back(&mut self, claim: &Claim) {
        self.held -= u64::from(claim.pages().0);
        match claim {
            Claim::Fixed(pages) | Claim::Passing(pages, _) => self.fixed -= u64::from(pages.0),
            Claim::Grows(curve) => {
                self.peak.remove(curve);
                self.peak_pages = None;
            }
        }
    }

    /// All changes of an event are in: whoever asks for the peak now need not work it out.
    pub(super) fn settle(&mut self) {
        self.peak_pages = Some(self.peak_pages());
    }

    fn peak_pages(&self) -> u64 {
        self.peak_pages
            .unwrap_or_else(|| self.peak.pages(self.peak_z, self.page_size))
    }

    /// The sequence of a slot has so many answer tokens: it may have begun another page.
    pub(super) fn grew(&mut self, id: SlotId, made: Tokens, lengths: &Lengths) {
        let Some(slot) = self.rows.get_mut(id.0 as usize) else {
            return;
        };
        if let Some(new) = slot.claim.grown(made, self.page_size, lengths) {
            let old = std::mem::replace(&mut slot.claim, new);
            self.take_back(&old);
            self.promise(&new);
        }
    }

    /// Pages that would be promised with one more claim.
    pub(super) fn pages_with(&self, claim: &Claim) -> u64 {
        match claim {
            Claim::Fixed(pages) | Claim::Passing(pages, _) => {
                self.pages_used() + u64::from(pages.0)
            }
            Claim::Grows(curve) => self.fixed + self.peak.pages_with(curve, self.peak_z),
        }
    }

    /// No less than [`Slots::pages_with`] of any claim of a sequence whose longest answer fills so
    /// many pages, without drawing its curve.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast stops at the ends of u64"
    )]
    pub(super) fn pages_with_longest(&self, longest: Pages) -> u64 {
        /// What is rounded up on the way.
        const ROUNDED: u64 = 2;
        let more = (f64::from(longest.0) * self.peak_reach) as u64;
        self.pages_used()
            .saturating_add(more)
            .saturating_add(ROUNDED)
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

    /// Pages that are promised: to those that do not grow, and to those that do at the worst time.
    pub(super) fn pages_used(&self) -> u64 {
        self.fixed + self.peak_pages()
    }

    /// Pages that all seats have now, as far as the brain knows.
    pub(super) const fn pages_held(&self) -> u64 {
        self.held
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
