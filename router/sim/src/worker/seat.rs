//! A sequence's place at a simulated worker. Called by `worker`.

use dopd_core::{event::CloseReason, units::Micros};

use super::decoding::Resident;

/// A seat somewhere in the fleet, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatRef {
    pub(crate) worker: u32,
    pub(crate) slot: u32,
    /// Counts Opens of the run, so no two seats share one.
    pub(crate) life: u32,
}

/// What a command to open says, and what only the engine of the worker knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) life: u32,
    /// Place in the trace.
    pub(crate) request: u32,
    pub(crate) priority: i32,
    pub(crate) pages: u32,
    pub(crate) prompt: u32,
    /// Answer tokens that the client has.
    pub(crate) have: u32,
    /// After so many answer tokens it stops.
    pub(crate) output: u32,
    /// Its limit.
    pub(crate) max_tokens: u32,
    pub(crate) is_import: bool,
}

/// Where a seat stands: the rows of the hand-off's table that differ here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for KV.
    Reserved,
    /// Computes its prompt, or prompt and answer so far.
    Prefill,
    /// Decodes from the next boundary on.
    Joining,
    /// Decodes.
    Decode,
    /// Its last pages travel; it makes no tokens.
    Frozen,
}

/// A hand-off that a seat was told to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shipment {
    pub(crate) to: SeatRef,
    /// Positions that were handed to the link.
    pub(crate) written: u32,
    /// When the last of them has left.
    pub(crate) written_at: Micros,
}

/// A sequence's place.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) life: u32,
    pub(crate) request: u32,
    pub(crate) priority: i32,
    /// Answer tokens made when it last joined the batch, or before.
    pub(crate) pos: u32,
    /// Answer tokens that the router has heard of.
    pub(crate) told: u32,
    pub(crate) output: u32,
    pub(crate) max_tokens: u32,
    pub(crate) prompt: u32,
    /// Tokens to compute before the next token.
    pub(crate) todo: u32,
    /// Positions with KV, as of when it last joined the batch.
    pub(crate) computed: u32,
    /// Pages that were reserved or taken before it last joined the batch.
    pub(crate) pages: u32,
    /// Kept blocks that it holds, and their pages among `pages`.
    pub(crate) held: usize,
    pub(crate) shared_pages: u32,
    pub(crate) phase: Phase,
    pub(crate) resident: Resident,
    pub(crate) shipment: Option<Shipment>,
}

impl Seat {
    pub(crate) fn new(opening: &Opening) -> Self {
        Self {
            life: opening.life,
            request: opening.request,
            priority: opening.priority,
            pos: opening.have,
            told: opening.have,
            output: opening.output,
            max_tokens: opening.max_tokens,
            prompt: opening.prompt,
            todo: opening.prompt + opening.have,
            computed: 0,
            pages: opening.pages,
            held: 0,
            shared_pages: 0,
            phase: if opening.is_import {
                Phase::Reserved
            } else {
                Phase::Prefill
            },
            resident: Resident::default(),
            shipment: None,
        }
    }

    /// Why it ends with its last token.
    pub(crate) const fn end(&self) -> CloseReason {
        if self.output < self.max_tokens {
            CloseReason::Stop
        } else {
            CloseReason::Length
        }
    }

    /// Prompt tokens that are not computed yet.
    pub(crate) const fn left(&self) -> u32 {
        match self.phase {
            Phase::Prefill => self.todo - self.computed,
            _ => 0,
        }
    }
}
