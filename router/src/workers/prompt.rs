//! Log probabilities of prompts in a report: checked, then to the streams that asked.

use crate::{
    streams::{
        front::Front,
        messages::{Batch, RowKind},
        sink::TokenLogprobs,
    },
    wire::worker::{Open, PromptLogprobs, open},
    workers::{
        columns::{Spoiled, beyond_logprobs},
        link::{State, add_row},
        report::{Malformed, equal, malformed, position, sum, take},
    },
};

/// What a compute seat still has to tell of its prompt. Each position is told once, in order, so
/// what a worker can make us keep is bounded by the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    /// Position that comes next.
    next: u32,
    /// Tokens of the prompt.
    end: u32,
    /// Most alternatives at a position.
    top_max: u32,
}

impl Untold {
    /// What the seat of `open` is asked for.
    pub(super) fn of(open: &Open) -> Option<Self> {
        let is_computed = matches!(open.kind, Some(open::Kind::Compute(_)));
        (open.prompt_logprobs.filter(|_| is_computed)).map(|top_max| Self {
            // The first token has no log probability.
            next: 1,
            end: open.prompt_tokens,
            top_max,
        })
    }
}

impl Untold {
    /// What cannot be of a run.
    fn impossible(
        self,
        vocab_size: u32,
        start: u32,
        len: u32,
        values: &[TokenLogprobs],
    ) -> Option<String> {
        let Self { next, end, top_max } = self;
        if start != next || u64::from(start) + u64::from(len) > u64::from(end) {
            return Some(format!(
                "told of {len} prompt positions from {start}, {next} of {end} comes next"
            ));
        }
        if let Some(entry) = values.iter().find(|v| v.top.len() > top_max as usize) {
            let told = entry.top.len();
            return Some(format!(
                "told of {told} alternatives, {top_max} were asked for"
            ));
        }
        beyond_logprobs(vocab_size, values)
    }
}

/// Checks the lengths of the columns.
pub(super) fn check(p: &PromptLogprobs) -> Result<(), Malformed> {
    let positions = sum(&p.lens);
    let tops = sum(&p.top_lens);
    let pairs = [
        (
            "prompt_logprobs.slots",
            p.slots.len(),
            "starts",
            p.starts.len(),
        ),
        ("prompt_logprobs.slots", p.slots.len(), "lens", p.lens.len()),
        (
            "sum of prompt_logprobs.lens",
            positions,
            "chosen",
            p.chosen.len(),
        ),
        (
            "sum of prompt_logprobs.lens",
            positions,
            "top_lens",
            p.top_lens.len(),
        ),
        (
            "sum of prompt_logprobs.top_lens",
            tops,
            "top_tokens",
            p.top_tokens.len(),
        ),
        (
            "sum of prompt_logprobs.top_lens",
            tops,
            "top_logprobs",
            p.top_logprobs.len(),
        ),
    ];
    pairs.into_iter().try_for_each(equal)
}

/// Takes checked columns run by run to their streams.
pub(super) fn deliver(
    state: &mut State,
    front: &Front,
    columns: &PromptLogprobs,
    vocab_size: u32,
    spoiled: &mut Spoiled,
) -> Result<(), Malformed> {
    let mut rest = Rest {
        chosen: &columns.chosen,
        top_lens: &columns.top_lens,
        top_tokens: &columns.top_tokens,
        top_logprobs: &columns.top_logprobs,
    };
    let runs = columns.slots.iter().zip(&columns.starts).zip(&columns.lens);
    for ((&slot, &start), &len) in runs {
        let State { slots, batches, .. } = &mut *state;
        let seat = slots.get_mut(slot as usize).and_then(Option::as_mut);
        let Some((untold, seat)) = seat.and_then(|seat| Some((seat.untold?, seat))) else {
            return malformed(format!(
                "prompt_logprobs.slots holds {slot}, which was not asked for any"
            ));
        };
        let values = rest.take(len);
        if seat.spoiled.is_some() || spoiled.iter().any(|(known, _)| *known == slot) {
            continue;
        }
        if let Some(why) = untold.impossible(vocab_size, start, len, &values) {
            spoiled.push((slot, why));
            continue;
        }
        seat.untold = Some(Untold {
            next: start + len,
            ..untold
        });
        if seat.key.thread == front.index {
            front.prompt_logprobs(seat.key, seat.life, start, &values);
        } else {
            add_run(batches, seat, start, &values);
        }
    }
    Ok(())
}

fn add_run(
    batches: &mut Vec<Option<Box<Batch>>>,
    seat: &super::link::Seat,
    start: u32,
    values: &[TokenLogprobs],
) {
    let kind = RowKind::Prompt { start };
    add_row(batches, (seat.key, seat.life), &[], values, kind);
}

/// What is left of the columns over positions.
struct Rest<'a> {
    chosen: &'a [f32],
    top_lens: &'a [u32],
    top_tokens: &'a [u32],
    top_logprobs: &'a [f32],
}

impl Rest<'_> {
    /// The next `len` positions.
    fn take(&mut self, len: u32) -> Vec<TokenLogprobs> {
        let lens = take(&mut self.top_lens, len);
        let chosen = take(&mut self.chosen, len);
        (lens.iter().zip(chosen))
            .map(|(&len, &chosen)| {
                let tokens = take(&mut self.top_tokens, len);
                position(chosen, tokens, take(&mut self.top_logprobs, len))
            })
            .collect()
    }
}
