//! A report's columns, checked: whoever reads them after this can index without fear.

use crate::{
    streams::{deliver::LOGPROB_UNKNOWN, sink::TokenLogprobs},
    wire::worker::{CloseReason as WireReason, Logprobs, Report},
    workers::{links, prompt},
};
use dopd_core::event::CloseReason;

/// Why a report was not understood; the stream is broken for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

/// Shorthand for the many checks.
pub(super) fn malformed<T>(message: String) -> Result<T, Malformed> {
    Err(Malformed(message))
}

/// Checks the lengths of all columns of `report`, and its pages against those of the Hello.
pub(super) fn check(report: &Report, pages_total: u32) -> Result<(), Malformed> {
    check_lengths(report)?;
    links::check(report)?;
    let Report {
        pages_free,
        pages_owned,
        pages_cached,
        pages_fenced,
        ..
    } = report;
    let pages = [*pages_free, *pages_owned, *pages_cached, *pages_fenced];
    // A page that is counted twice may have two owners, and its KV be anybody's. Too few is a leak,
    // which costs room but no answer: the session goes on.
    if sum(&pages) > pages_total as usize {
        return malformed(format!(
            "{pages_free} free, {pages_owned} owned, {pages_cached} cached and {pages_fenced} \
             fenced pages are more than the {pages_total} of the pool"
        ));
    }
    if let Some(logprobs) = &report.logprobs {
        check_logprobs(logprobs, report.tokens.len())?;
    }
    match &report.prompt_logprobs {
        Some(logprobs) => prompt::check(logprobs),
        None => Ok(()),
    }
}

/// Most prefixes that a report may say are stored or evicted.
const HASHES_MAX: usize = 4_096;

/// Two columns, or the sum of one and another, that must agree.
type Pair<'a> = (&'a str, usize, &'a str, usize);

fn check_lengths(r: &Report) -> Result<(), Malformed> {
    let arrived = r.arrived_slots.len();
    let closed = r.closed_slots.len();
    let tails = sum(&r.arrived_tail_lens);
    let pairs: [Pair<'_>; 6] = [
        (
            "reused_slots",
            r.reused_slots.len(),
            "reused_tokens",
            r.reused_tokens.len(),
        ),
        (
            "opened_slots",
            r.opened_slots.len(),
            "opened_grants",
            r.opened_grants.len(),
        ),
        ("arrived_slots", arrived, "arrived_pos", r.arrived_pos.len()),
        (
            "arrived_slots",
            arrived,
            "arrived_tail_lens",
            r.arrived_tail_lens.len(),
        ),
        (
            "sum of arrived_tail_lens",
            tails,
            "arrived_tails",
            r.arrived_tails.len(),
        ),
        (
            "closed_slots",
            closed,
            "closed_reasons",
            r.closed_reasons.len(),
        ),
    ];
    pairs.into_iter().try_for_each(equal)?;
    optional("closed_retry_ms", r.closed_retry_ms.len(), closed)?;
    optional("closed_messages", r.closed_messages.len(), closed)?;
    let hashes = r.stored_hashes.len() + r.evicted_hashes.len();
    if hashes > HASHES_MAX {
        return malformed(format!(
            "stored_hashes and evicted_hashes hold {hashes} entries, at most {HASHES_MAX}"
        ));
    }
    let (slots, tokens) = (r.token_slots.len(), r.tokens.len());
    if r.token_counts.is_empty() {
        return equal(("token_slots", slots, "tokens", tokens));
    }
    equal(("token_slots", slots, "token_counts", r.token_counts.len()))?;
    equal((
        "sum of token_counts",
        sum(&r.token_counts),
        "tokens",
        tokens,
    ))?;
    if r.token_counts.contains(&0) {
        return malformed("token_counts holds a 0".to_owned());
    }
    Ok(())
}

fn check_logprobs(l: &Logprobs, tokens: usize) -> Result<(), Malformed> {
    let entries = l.token_index.len();
    let tops = sum(&l.top_lens);
    let pairs: [Pair<'_>; 4] = [
        (
            "logprobs.token_index",
            entries,
            "logprobs.chosen",
            l.chosen.len(),
        ),
        (
            "logprobs.token_index",
            entries,
            "logprobs.top_lens",
            l.top_lens.len(),
        ),
        (
            "sum of logprobs.top_lens",
            tops,
            "logprobs.top_tokens",
            l.top_tokens.len(),
        ),
        (
            "sum of logprobs.top_lens",
            tops,
            "logprobs.top_logprobs",
            l.top_logprobs.len(),
        ),
    ];
    pairs.into_iter().try_for_each(equal)?;
    if !l.token_index.is_sorted_by(|a, b| a < b) {
        return malformed("logprobs.token_index does not rise".to_owned());
    }
    if let Some(last) = l
        .token_index
        .last()
        .filter(|last| **last as usize >= tokens)
    {
        return malformed(format!(
            "logprobs.token_index holds {last} of {tokens} tokens"
        ));
    }
    Ok(())
}

/// The first `count` items of `rest`, which is left with the others.
pub(super) fn take<'a, T>(rest: &mut &'a [T], count: u32) -> &'a [T] {
    let (head, tail) = rest.split_at_checked(count as usize).unwrap_or((rest, &[]));
    *rest = tail;
    head
}

/// Sum without overflow.
pub(super) fn sum(column: &[u32]) -> usize {
    column.iter().map(|n| *n as usize).sum()
}

pub(super) fn equal((a, a_len, b, b_len): Pair<'_>) -> Result<(), Malformed> {
    if a_len == b_len {
        return Ok(());
    }
    malformed(format!("{a} and {b} do not agree: {a_len} and {b_len}"))
}

fn optional(column: &str, len: usize, closed: usize) -> Result<(), Malformed> {
    if len == 0 || len == closed {
        return Ok(());
    }
    malformed(format!(
        "{column} has {len} entries, closed_slots has {closed}"
    ))
}

/// The core's reason; unspecified and unknown ones are malformed.
pub(super) fn close_reason(reason: i32) -> Result<CloseReason, Malformed> {
    match WireReason::try_from(reason) {
        Ok(WireReason::Stop) => Ok(CloseReason::Stop),
        Ok(WireReason::Length) => Ok(CloseReason::Length),
        Ok(WireReason::Asked) => Ok(CloseReason::Asked),
        Ok(WireReason::Refused) => Ok(CloseReason::Refused),
        Ok(WireReason::Lost) => Ok(CloseReason::Lost),
        Ok(WireReason::Preempted) => Ok(CloseReason::Preempted),
        Ok(WireReason::Error) => Ok(CloseReason::Error),
        Ok(WireReason::Unspecified) | Err(_) => malformed(format!("closed_reasons holds {reason}")),
    }
}

/// Walks a checked log probability column in step with the tokens.
#[derive(Debug)]
pub(super) struct LogprobCursor<'a> {
    columns: Option<&'a Logprobs>,
    entry: usize,
    top: usize,
    row: Vec<TokenLogprobs>,
}

impl<'a> LogprobCursor<'a> {
    /// At the start of the report.
    pub(super) fn new(columns: Option<&'a Logprobs>) -> Self {
        Self {
            columns,
            entry: 0,
            top: 0,
            row: Vec::new(),
        }
    }

    /// The entries of tokens `start..end` of the report; ranges must be asked for in order.
    pub(super) fn take(&mut self, start: usize, end: usize) -> &[TokenLogprobs] {
        self.row.clear();
        let Some(columns) = self.columns else {
            return &self.row;
        };
        while let Some(index) = columns.token_index.get(self.entry).map(|i| *i as usize) {
            if index >= end {
                break;
            }
            let len = columns.top_lens.get(self.entry).copied().unwrap_or(0) as usize;
            if index >= start {
                let range = self.top..self.top + len;
                let tokens = columns.top_tokens.get(range.clone()).unwrap_or_default();
                let values = columns.top_logprobs.get(range).unwrap_or_default();
                let chosen = columns.chosen.get(self.entry).copied();
                let chosen = chosen.unwrap_or(LOGPROB_UNKNOWN);
                self.row.push(position(chosen, tokens, values));
            }
            self.entry += 1;
            self.top += len;
        }
        &self.row
    }
}

/// One position, as sinks get it.
pub(super) fn position(chosen: f32, tokens: &[u32], values: &[f32]) -> TokenLogprobs {
    let values = values.iter().copied().map(finite);
    TokenLogprobs {
        chosen: finite(chosen),
        top: tokens.iter().copied().zip(values).collect(),
    }
}

/// A log probability that JSON can show: minus infinity and NaN become "very unlikely".
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        LOGPROB_UNKNOWN
    }
}
