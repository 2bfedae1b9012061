//! Mooncake's JSON lines: `{"timestamp", "input_length", "output_length", "hash_ids"}`.

use std::sync::Arc;

use dopd_core::units::Micros;
use serde::Deserialize;

use super::{
    error::TraceError,
    read::{ROWS_MAX, Read, SECONDS_MAX, TOKENS_MAX, micros},
};
use crate::scenario::{Trace, TraceRequest};

/// Tokens of one `hash_ids` block.
const BLOCK_TOKENS: u32 = 512;
/// The source wrote its stamps every three seconds.
const STAMP: Micros = Micros(3_000_000);

#[derive(Deserialize)]
struct Row {
    timestamp: f64,
    input_length: f64,
    output_length: f64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

pub(super) fn read(name: &str, text: &[u8]) -> Result<Read, TraceError> {
    let mut requests = Vec::new();
    for (number, line) in (1_u64..).zip(text.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if requests.len() == ROWS_MAX {
            let expected = format!("at most {ROWS_MAX} requests");
            let place = (number, 0);
            return Err(TraceError::at(name, place, "the row", "one more", expected));
        }
        requests.push(request(name, number, line)?);
    }
    requests.sort_by_key(|request| request.arrival);
    spread(&mut requests);
    Ok(Read {
        trace: Trace {
            name: name.to_owned(),
            block_tokens: BLOCK_TOKENS,
            requests,
        },
        skipped_rows: 0,
    })
}

fn request(name: &str, number: u64, line: &[u8]) -> Result<TraceRequest, TraceError> {
    let shown = String::from_utf8_lossy(line);
    let row: Row = serde_json::from_slice(line).map_err(|error| {
        let place = (number, error.column() as u64);
        let what = error.to_string();
        let why = what.split(" at line").next().unwrap_or_default();
        let expected = format!(
            "JSON with the numbers timestamp, input_length, output_length and the list \
             hash_ids: {why}"
        );
        TraceError::at(name, place, "the row", &shown, expected)
    })?;
    let wrong = |field: &str, value: f64, expected: String| {
        let column = shown.find(&format!("\"{field}\"")).unwrap_or(0) as u64 + 1;
        TraceError::at(name, (number, column), field, &value.to_string(), expected)
    };
    let tokens = |field: &str, value: f64| {
        whole(value).ok_or_else(|| {
            let expected = format!("a whole number from 1 to {TOKENS_MAX}");
            wrong(field, value, expected)
        })
    };
    let arrival = micros(row.timestamp / 1e3).ok_or_else(|| {
        let expected = format!("milliseconds from 0 to {:e}", SECONDS_MAX * 1e3);
        wrong("timestamp", row.timestamp, expected)
    })?;
    let prompt_tokens = tokens("input_length", row.input_length)?;
    let blocks_max = prompt_tokens.div_ceil(BLOCK_TOKENS) as usize;
    if row.hash_ids.len() > blocks_max {
        let expected = format!("at most {blocks_max} blocks for {prompt_tokens} tokens");
        return Err(wrong("hash_ids", row.hash_ids.len() as f64, expected));
    }
    Ok(TraceRequest {
        arrival,
        prompt_tokens,
        output_tokens: tokens("output_length", row.output_length)?,
        tenant: 0,
        priority: 0,
        key: None,
        blocks: Arc::from(row.hash_ids),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and between 1 and TOKENS_MAX"
)]
fn whole(value: f64) -> Option<u32> {
    let is_whole = (1.0..=f64::from(TOKENS_MAX)).contains(&value) && value % 1.0 <= 0.0;
    is_whole.then_some(value as u32)
}

/// Rows of one stamp came at any time until the next one: spread evenly, over 3 s at most.
fn spread(requests: &mut [TraceRequest]) {
    let mut start = 0;
    while start < requests.len() {
        let stamp = requests[start].arrival;
        let count = requests[start..]
            .iter()
            .take_while(|row| row.arrival == stamp)
            .count();
        let next = requests.get(start + count).map(|row| row.arrival);
        let span = next.map_or(STAMP, |next| next.since(stamp).min(STAMP));
        for (rank, row) in (0_u64..).zip(&mut requests[start..start + count]) {
            row.arrival = stamp.plus(Micros(span.0 * rank / count as u64));
        }
        start += count;
    }
}
