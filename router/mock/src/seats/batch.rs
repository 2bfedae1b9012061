//! What comes of a step: KV, tokens, ends.

use dopd_core::units::Micros;
use dopd_router::wire::worker::{CloseReason, PromptLogprobs};

use super::{Seats, types::Phase};
use crate::{
    faults::{FaultKind, LIE_TOKEN},
    model,
};

/// One seat's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub(super) slot: u32,
    pub(super) life: u64,
    /// Positions to compute.
    pub(super) tokens: u32,
    /// What a test wants to go wrong with it.
    pub(super) spoil: Option<FaultKind>,
}

impl Row {
    /// Whose part.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// One step under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Decode rows first.
    pub rows: Vec<Row>,
    /// Sequences that decode.
    pub decode_seqs: u32,
    /// Positions that the decode rows attend to, summed.
    pub decode_context: u64,
    /// New tokens and context before them of each prompt chunk.
    pub prefill: Vec<(u32, u32)>,
    /// Its time as predicted, without what mixing costs.
    pub(super) plain_us: u64,
    /// The same with what mixing is believed to cost: what the router is told.
    pub(super) expected_us: u64,
}

impl Batch {
    /// Prompt tokens of the step.
    pub fn prefill_tokens(&self) -> u32 {
        self.prefill.iter().map(|&(new, _)| new).sum()
    }

    /// What it is expected to take, in microseconds.
    pub fn expected_us(&self) -> u32 {
        u32::try_from(self.expected_us).unwrap_or(u32::MAX)
    }

    /// Prompts, and sequences that decode.
    pub fn is_mixed(&self) -> bool {
        self.decode_seqs > 0 && !self.prefill.is_empty()
    }
}

/// Adds one position of a prompt: to the last run if it goes on there.
fn add_told(columns: &mut PromptLogprobs, slot: u32, position: u32, top: u32, told: model::Draw) {
    let goes_on = columns.slots.last() == Some(&slot)
        && columns
            .starts
            .last()
            .zip(columns.lens.last())
            .is_some_and(|(start, len)| start + len == position);
    if !goes_on {
        columns.slots.push(slot);
        columns.starts.push(position);
        columns.lens.push(0);
    }
    if let Some(len) = columns.lens.last_mut() {
        *len += 1;
    }
    columns.chosen.push(told.logprob());
    columns.top_lens.push(top);
    for (token, logprob) in told.top(top) {
        columns.top_tokens.push(token);
        columns.top_logprobs.push(logprob);
    }
}

impl Seats {
    /// The step is over: its KV, its tokens, its ends. Seats that ended meanwhile are passed over.
    pub fn finish_step(&mut self, now: Micros, batch: &Batch, step_us: u32) {
        self.now = now;
        self.steps += 1;
        self.columns.step_us = step_us;
        self.columns.step_expected_us = batch.expected_us();
        self.columns.step_prefill_tokens = batch.prefill_tokens();
        self.columns.step_decode_seqs = batch.decode_seqs;
        self.is_dirty = true;
        if let Some(belief) = self.belief.as_mut().filter(|_| batch.is_mixed()) {
            belief.measured(batch.plain_us, u64::from(step_us));
        }
        if batch.decode_seqs > 0 {
            self.residents.stepped(now);
        }
        for row in &batch.rows {
            self.compute(now, *row);
        }
        self.pump_all();
    }

    fn compute(&mut self, now: Micros, row: Row) {
        let Some(seat) = self
            .by_slot
            .get_mut(row.slot as usize)
            .and_then(Option::as_mut)
        else {
            return;
        };
        if seat.life != row.life || !seat.phase.is_stepping() {
            return;
        }
        let start = seat.computed;
        let end = start + row.tokens;
        if row.spoil == Some(FaultKind::Raise) {
            let why = "mock fault: this row was told to fail";
            return self.close(now, row.slot, CloseReason::Error, why);
        }
        // Read from the page, not remembered: a hand-off that moved wrong bytes draws wrong tokens.
        let mut entry = self.pool.entry_before(&seat.pages, start);
        for position in start..end {
            // A prompt that is not in `todo` any more is computed.
            let token = seat.token(position).unwrap_or_default();
            entry = model::next_entry(entry, token);
            if let Some(top) = seat.prompt_logprobs
                && (1..seat.prompt_tokens).contains(&position)
            {
                let told = self.columns.prompt_logprobs.get_or_insert_default();
                add_told(told, row.slot, position, top, model::told(entry, token));
            }
            self.pool.set_entry(&seat.pages, position, entry);
        }
        seat.computed = end;
        if end < super::types::count(seat.todo.len()) {
            return;
        }
        seat.todo = Vec::new();
        let mut drawn = model::draw(entry, &seat.sampling, seat.pos());
        if let Some(adjustments) = &seat.adjustments {
            drawn = drawn.biased(adjustments);
        }
        match row.spoil {
            Some(FaultKind::Lie) => drawn.token = LIE_TOKEN,
            Some(FaultKind::Wrong) => drawn.token ^= 1,
            _ => {}
        }
        seat.answer.push(drawn.token);
        let top = seat.sampling.top_logprobs;
        let reason = seat.end(drawn.token, model::EOS, self.config.model_len_max);
        self.add_token(row.slot, drawn, top);
        if let Some(reason) = reason {
            self.close(now, row.slot, reason, "");
        }
    }

    fn add_token(&mut self, slot: u32, drawn: model::Draw, top: Option<u32>) {
        let index = super::types::count(self.columns.tokens.len());
        self.columns.token_slots.push(slot);
        self.columns.tokens.push(drawn.token);
        let Some(top) = top else {
            return;
        };
        let logprobs = self.columns.logprobs.get_or_insert_default();
        logprobs.token_index.push(index);
        logprobs.chosen.push(drawn.logprob());
        logprobs.top_lens.push(top);
        for (token, logprob) in drawn.top(top) {
            logprobs.top_tokens.push(token);
            logprobs.top_logprobs.push(logprob);
        }
    }

    /// Whether a step would find something to do.
    pub fn has_work(&self) -> bool {
        self.stepping().next().is_some()
    }

    /// Whether some seat waits for its transport or its router only.
    pub fn is_frozen(&self, slot: u32) -> bool {
        self.seat(slot)
            .is_some_and(|seat| matches!(seat.phase, Phase::Frozen(_) | Phase::Sent(_)))
    }
}
