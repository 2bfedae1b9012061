//! What a report does, column by column: tokens to their streams, the rest to the brain.

use dopd_core::{
    event::{CloseReason, ClosedSeat, StepReport},
    fleet::WorkerLoad,
    ids::SlotId,
    units::{Micros, Pages, Tokens},
};

use crate::{
    streams::{
        front::Front,
        messages::{Batch, BrainInput, Ended, Flush, Reported, RowKind},
        sink::TokenLogprobs,
    },
    wire::worker::{Close, Grant, Report, command},
    workers::{
        hello,
        link::{Kept, Link, Phase, Seat, State, add_row},
        links, prompt,
        report::{LogprobCursor, Malformed, check, close_reason, malformed, take},
    },
};

impl Link {
    /// Handles a report of this link's session; an error breaks the stream. `is_stuck`: what the
    /// watchdog says of the worker. Returns how many sequences it spoiled: what cannot be true of
    /// one sequence is no reason to end all others.
    pub(super) fn report(&self, mut report: Report, is_stuck: bool) -> Result<u32, Malformed> {
        check(&report, self.identity.pages_total)?;
        let Some(role) = hello::role(report.role) else {
            return malformed(format!("role is {}", report.role));
        };
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        opened(state, &report)?;
        let mut spoiled = Vec::new();
        let arrived = arrived(state, &report, self.identity.vocab_size, &mut spoiled)?;
        if let Some(logprobs) = &report.prompt_logprobs {
            let vocab_size = self.identity.vocab_size;
            prompt::deliver(state, &self.front, logprobs, vocab_size, &mut spoiled)?;
        }
        let reused = self.reused(state, &report, &mut spoiled)?;
        let tokens = self.tokens(state, &report, &mut spoiled)?;
        let count = spoiled
            .into_iter()
            .map(|(slot, why)| self.spoil(state, slot, why))
            .sum();
        let closed = self.closed(state, &mut report)?;
        let links = links::take(&mut report);
        let step = StepReport {
            session: self.identity.session,
            role,
            role_epoch: report.role_epoch,
            draining: report.draining,
            is_stuck,
            load: load(&report),
            opened: report.opened_slots.iter().copied().map(SlotId).collect(),
            arrived,
            tokens,
            closed,
            reused,
            stored: report.stored_hashes,
            evicted: report.evicted_hashes,
        };
        self.post_batches_of(state);
        let grants: Vec<Grant> = report.opened_grants;
        let reported = Reported {
            report: step,
            grants,
            links,
        };
        self.front
            .outbox
            .to_brain(BrainInput::Reported(Box::new(reported)));
        Ok(count)
    }

    /// What seats found in the cache, to their streams.
    fn reused(
        &self,
        state: &mut State,
        report: &Report,
        spoiled: &mut Spoiled,
    ) -> Result<Vec<(SlotId, Tokens)>, Malformed> {
        let mut reused = Vec::with_capacity(report.reused_slots.len());
        for (&slot, &tokens) in report.reused_slots.iter().zip(&report.reused_tokens) {
            let State { slots, batches, .. } = &mut *state;
            let seat = slots.get_mut(slot as usize).and_then(Option::as_mut);
            let Some(seat) = seat.filter(|seat| matches!(seat.phase, Phase::Running)) else {
                return malformed(format!("reused_slots holds {slot}, which computes nothing"));
            };
            if seat.spoiled.is_some() {
                continue;
            }
            if tokens > seat.prompt {
                let prompt = seat.prompt;
                spoiled.push((
                    slot,
                    format!("reused {tokens} of {prompt} tokens of its prompt"),
                ));
                continue;
            }
            if seat.key.thread == self.front.index {
                self.front.reused(seat.key, seat.life, tokens);
            } else {
                let kind = RowKind::Reused { tokens };
                add_row(batches, (seat.key, seat.life), &[], &[], kind);
            }
            reused.push((SlotId(slot), Tokens(tokens)));
        }
        Ok(reused)
    }

    /// Fails the sequence of `slot`: its seat is closed, and once it is, that was an error. Returns
    /// 1 if that is news.
    fn spoil(&self, state: &mut State, slot: u32, why: String) -> u32 {
        let Some(seat) = state.seat(slot).filter(|seat| seat.spoiled.is_none()) else {
            return 0;
        };
        let (worker, request) = (&self.identity.name, seat.sequence.request.0);
        tracing::error!(worker, slot, request, why, "a worker said what cannot be");
        seat.spoiled = Some(why.into());
        if !seat.closing {
            seat.closing = true;
            self.outgoing.push(command::Kind::Close(Close { slot }));
        }
        1
    }

    /// Frees the slots that ended and tells their streams.
    fn closed(&self, state: &mut State, report: &mut Report) -> Result<Vec<ClosedSeat>, Malformed> {
        let mut closed = Vec::with_capacity(report.closed_slots.len() + state.voids.len());
        for (row, slot) in report.closed_slots.iter().copied().enumerate() {
            let reason = report.closed_reasons.get(row).copied().unwrap_or_default();
            let why = close_reason(reason)?;
            let Some(mut seat) = state.take(slot) else {
                return malformed(format!("closed_slots holds {slot}, which is not open"));
            };
            let note = (report.closed_messages.get_mut(row).map(std::mem::take))
                .filter(|message| !message.is_empty())
                .map(|message| clip(message).into_boxed_str());
            let (why, note) = match seat.spoiled.take() {
                Some(spoiled) => (CloseReason::Error, Some(spoiled)),
                None => (why, note),
            };
            if let Some(note) = &note {
                let (worker, request) = (&self.identity.name, seat.sequence.request.0);
                // All but a failure of the engine is the course of things: a hand-off that its
                // request outran, a place that was gone.
                if why == CloseReason::Error {
                    tracing::warn!(worker, slot, request, ?why, note, "seat closed");
                } else {
                    tracing::debug!(worker, slot, request, ?why, note, "seat closed");
                }
            }
            let retry_ms = report.closed_retry_ms.get(row).copied().unwrap_or(0);
            closed.push(ClosedSeat {
                slot: SlotId(slot),
                why,
                retry_after: Micros::from_millis(u64::from(retry_ms)),
            });
            self.seat_ended(state, SlotId(slot), seat, Ended { why, note });
        }
        closed.extend(state.voids.drain(..).map(|slot| ClosedSeat {
            slot,
            why: CloseReason::Asked,
            retry_after: Micros(0),
        }));
        Ok(closed)
    }

    fn seat_ended(&self, state: &mut State, slot: SlotId, mut seat: Seat, ended: Ended) {
        if let Phase::Arrived(kept) = &mut seat.phase {
            if !seat.closing {
                kept.flush.finished = Some(ended.why);
                state.ended.push((slot, seat));
            }
        } else if seat.key.thread == self.front.index {
            self.front.closed(seat.key, seat.life, &ended);
        } else {
            state.row(&seat, &[], &[], RowKind::Closed(ended));
        }
    }
}

/// Only checks: grants go to the brain's thread with the event.
fn opened(state: &mut State, report: &Report) -> Result<(), Malformed> {
    for slot in report.opened_slots.iter().copied() {
        match state.seat(slot) {
            Some(seat) if matches!(seat.phase, Phase::Importing) => seat.is_answered = true,
            _ => return malformed(format!("opened_slots holds {slot}, which imports nothing")),
        }
    }
    Ok(())
}

/// Slots of which something was said that cannot be, and what.
pub(super) type Spoiled = Vec<(u32, String)>;

/// Import seats become arrived ones.
fn arrived(
    state: &mut State,
    report: &Report,
    vocab_size: u32,
    spoiled: &mut Spoiled,
) -> Result<Vec<(SlotId, Tokens)>, Malformed> {
    let mut arrived = Vec::with_capacity(report.arrived_slots.len());
    let mut tails = report.arrived_tails.as_slice();
    for (row, slot) in report.arrived_slots.iter().copied().enumerate() {
        let pos = report.arrived_pos.get(row).copied().unwrap_or_default();
        let len = report
            .arrived_tail_lens
            .get(row)
            .copied()
            .unwrap_or_default();
        let tail = take(&mut tails, len);
        let Some(seat) = state
            .seat(slot)
            .filter(|s| matches!(s.phase, Phase::Importing))
        else {
            return malformed(format!("arrived_slots holds {slot}, which imports nothing"));
        };
        seat.is_answered = true;
        if seat.spoiled.is_some() {
            continue;
        }
        let have = seat.pos;
        if u64::from(have) + u64::from(len) != u64::from(pos) || pos > seat.max {
            let why = format!(
                "arrived at {pos} of at most {} tokens with a tail of {len}, it had {have}",
                seat.max
            );
            spoiled.push((slot, why));
            continue;
        }
        if let Some(why) = beyond(vocab_size, tail) {
            spoiled.push((slot, why));
            continue;
        }
        seat.pos = pos;
        seat.phase = Phase::Arrived(Box::new(Kept {
            flush: Flush {
                have,
                tail: len,
                finished: None,
                is_legacy: false,
            },
            tokens: tail.to_vec(),
            logprobs: Vec::new(),
        }));
        arrived.push((SlotId(slot), Tokens(pos)));
    }
    Ok(arrived)
}

impl Link {
    /// Tokens to their streams, or to where they wait for a Switch.
    fn tokens(
        &self,
        state: &mut State,
        report: &Report,
        spoiled: &mut Spoiled,
    ) -> Result<Vec<(SlotId, Tokens)>, Malformed> {
        let mut counts = Vec::with_capacity(report.token_slots.len());
        let mut logprobs = LogprobCursor::new(report.logprobs.as_ref());
        let vocab_size = self.identity.vocab_size;
        let mut start = 0;
        for (row, slot) in report.token_slots.iter().copied().enumerate() {
            let count = report.token_counts.get(row).copied().unwrap_or(1);
            let end = start + count as usize;
            let made = report.tokens.get(start..end).unwrap_or_default();
            let values = logprobs.take(start, end);
            start = end;
            let State { slots, batches, .. } = &mut *state;
            let Some(seat) = slots.get_mut(slot as usize).and_then(Option::as_mut) else {
                return malformed(format!("token_slots holds {slot}, which is not open"));
            };
            seat.is_answered = true;
            if seat.spoiled.is_some() || spoiled.iter().any(|(known, _)| *known == slot) {
                continue;
            }
            if let Some(why) = impossible(seat, vocab_size, made, values) {
                spoiled.push((slot, why));
                continue;
            }
            seat.pos += count;
            route(seat, slot, &self.front, batches, made, values)?;
            counts.push((SlotId(slot), Tokens(count)));
        }
        Ok(counts)
    }
}

/// What cannot be of the tokens that a seat made.
fn impossible(
    seat: &Seat,
    vocab_size: u32,
    made: &[u32],
    logprobs: &[TokenLogprobs],
) -> Option<String> {
    if made.len() > seat.max.saturating_sub(seat.pos) as usize {
        let (made, pos, max) = (made.len(), seat.pos, seat.max);
        return Some(format!("made {made} tokens after {pos} of at most {max}"));
    }
    beyond(vocab_size, made).or_else(|| beyond_logprobs(vocab_size, logprobs))
}

/// Tokens that the vocabulary does not have.
fn beyond(vocab_size: u32, tokens: &[u32]) -> Option<String> {
    let token = tokens.iter().find(|token| **token >= vocab_size)?;
    Some(format!(
        "made token {token}, the vocabulary has {vocab_size}"
    ))
}

/// The same among alternatives.
pub(super) fn beyond_logprobs(vocab_size: u32, logprobs: &[TokenLogprobs]) -> Option<String> {
    let mut tops = logprobs.iter().flat_map(|entry| &entry.top);
    let (token, _) = tops.find(|(token, _)| *token >= vocab_size)?;
    Some(format!(
        "has a log probability of token {token}, the vocabulary has {vocab_size}"
    ))
}

/// Tokens of one seat to where they belong.
fn route(
    seat: &mut Seat,
    slot: u32,
    front: &Front,
    batches: &mut Vec<Option<Box<Batch>>>,
    made: &[u32],
    logprobs: &[TokenLogprobs],
) -> Result<(), Malformed> {
    match &mut seat.phase {
        Phase::Running if seat.key.thread == front.index => {
            front.tokens(seat.key, seat.life, made, logprobs);
        }
        Phase::Running => {
            add_row(
                batches,
                (seat.key, seat.life),
                made,
                logprobs,
                RowKind::Tokens,
            );
        }
        Phase::Arrived(kept) => {
            kept.tokens.extend_from_slice(made);
            kept.logprobs.extend_from_slice(logprobs);
        }
        Phase::Importing => {
            return malformed(format!("token_slots holds {slot}, which has not arrived"));
        }
    }
    Ok(())
}

fn load(report: &Report) -> WorkerLoad {
    WorkerLoad {
        step: report.step,
        step_us: report.step_us,
        pages_free: Pages(report.pages_free),
        pages_cached: Pages(report.pages_cached),
        pages_fenced: Pages(report.pages_fenced),
        pages_owned: Pages(report.pages_owned),
        running: report.running,
        prefill_tokens_queued: Tokens(report.prefill_tokens_queued),
        step_prefill_tokens: Tokens(report.step_prefill_tokens),
        step_decode_seqs: report.step_decode_seqs,
        step_expected_us: report.step_expected_us,
        decode_step_us: report.decode_step_us,
        mixed_penalty_permille: report.mixed_penalty_permille,
        steps_mixed: report.steps_mixed,
        steps_paused: report.steps_paused,
        preempted: report.preempted,
    }
}

/// Bytes of a worker's message that are kept: it may end in a client's error.
const NOTE_BYTES_MAX: usize = 512;

fn clip(mut message: String) -> String {
    let mut end = message.len().min(NOTE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    message
}
