//! Steps: continuous batching with chunked prefill. Decode rows are always in; prompts share what
//! is left of the token budget, oldest first.

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
    life: u64,
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
}

impl Batch {
    /// Prompt tokens of the step.
    pub fn prefill_tokens(&self) -> u32 {
        self.prefill.iter().map(|&(new, _)| new).sum()
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
    /// Step boundary: freezes what may freeze, then says what the next step computes. `None`:
    /// nothing.
    ///
    /// `pages_left_max`: pages that the link writes within one decode step.
    pub fn begin_step(&mut self, pages_left_max: u32) -> Option<Batch> {
        let mut active = std::mem::take(&mut self.active);
        let mut batch = Batch::default();
        active.retain(|&(slot, life)| {
            let is_alive = self.seat(slot).is_some_and(|seat| seat.life == life);
            if is_alive {
                self.freeze_if_near(slot, pages_left_max);
                self.add_decode(&mut batch, slot);
            }
            is_alive
        });
        let rows = super::types::count(batch.rows.len());
        let mut budget = self.config.batch_tokens_max.saturating_sub(rows);
        for &(slot, _) in &active {
            if budget == 0 {
                break;
            }
            budget -= self.add_prefill(&mut batch, slot, budget);
        }
        self.active = active;
        (!batch.rows.is_empty()).then_some(batch)
    }

    fn add_decode(&self, batch: &mut Batch, slot: u32) {
        if let Some(seat) = self.seat(slot)
            && seat.phase.is_stepping()
            && seat.is_prefilled()
        {
            batch.decode_seqs += 1;
            batch.decode_context += u64::from(seat.computed);
            batch.rows.push(Row {
                slot,
                life: seat.life,
                tokens: 1,
                spoil: None,
            });
        }
    }

    /// Adds a chunk of at most `budget` tokens; returns its size.
    fn add_prefill(&self, batch: &mut Batch, slot: u32, budget: u32) -> u32 {
        let Some(seat) = self.seat(slot) else {
            return 0;
        };
        if !seat.phase.is_stepping() || seat.todo.is_empty() {
            return 0;
        }
        let tokens = budget.min(super::types::count(seat.todo.len()) - seat.computed);
        batch.prefill.push((tokens, seat.computed));
        batch.rows.push(Row {
            slot,
            life: seat.life,
            tokens,
            spoil: None,
        });
        tokens
    }

    /// The step is over: its KV, its tokens, its ends. Seats that ended meanwhile are passed over.
    pub fn finish_step(&mut self, now: Micros, batch: &Batch, step_us: u32) {
        self.steps += 1;
        self.columns.step_us = step_us;
        self.columns.step_prefill_tokens = batch.prefill_tokens();
        self.columns.step_decode_seqs = batch.decode_seqs;
        self.is_dirty = true;
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
        if end.div_ceil(model::PAGE_SIZE) as usize > seat.pages.len() {
            return self.close(now, row.slot, CloseReason::Preempted, "its pages are full");
        }
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
