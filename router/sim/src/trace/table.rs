//! CSV: Azure 2023 and 2024, ServeGen as generated, BurstGPT. Columns are found by their names.

use std::sync::Arc;

use csv::{ByteRecord, ReaderBuilder};
use dopd_core::units::Micros;

use super::{
    error::TraceError,
    read::{ROWS_MAX, Read, SECONDS_MAX, TOKENS_MAX, micros},
    shape,
};
use crate::scenario::{Trace, TraceRequest};

const ARRIVAL: [&str; 2] = ["arrival_s", "timestamp"];
const PROMPT: [&str; 3] = ["prompt_tokens", "contexttokens", "request tokens"];
const OUTPUT: [&str; 3] = ["output_tokens", "generatedtokens", "response tokens"];
const TENANT: [&str; 2] = ["client", "tenant"];
const PRIORITY: [&str; 1] = ["priority"];
/// Of BurstGPT: a request that failed has no response tokens.
const FAILS_BY_ZERO: &str = "response tokens";
const EXPECTED: &str = "columns arrival_s, prompt_tokens, output_tokens (ServeGen: client), \
     TIMESTAMP, ContextTokens, GeneratedTokens (Azure) or Timestamp, Request tokens, \
     Response tokens (BurstGPT)";
const BY_MINUTE: &str = "requests; for a load by the minute \
     write minutes:shape=FILE,rate=R,prompt=N,output=N";

/// Where the columns are.
struct Columns {
    names: Vec<String>,
    arrival: usize,
    prompt: usize,
    output: usize,
    tenant: Option<usize>,
    priority: Option<usize>,
}

pub(super) fn read(name: &str, text: &[u8]) -> Result<Read, TraceError> {
    let mut rows = ReaderBuilder::new().flexible(true).from_reader(text);
    let header = rows.byte_headers().map_err(|error| torn(name, &error))?;
    let columns = Columns::of(name, header)?;
    let mut read = Read {
        trace: Trace {
            name: name.to_owned(),
            ..Trace::default()
        },
        skipped_rows: 0,
    };
    let mut first_date = None;
    let mut record = ByteRecord::new();
    while rows
        .read_byte_record(&mut record)
        .map_err(|error| torn(name, &error))?
    {
        let line = record.position().map_or(0, csv::Position::line);
        if read.trace.requests.len() == ROWS_MAX {
            let expected = format!("at most {ROWS_MAX} requests");
            return Err(TraceError::at(
                name,
                (line, 0),
                "the row",
                "one more",
                expected,
            ));
        }
        let row = Row {
            name,
            line,
            columns: &columns,
            record: &record,
        };
        match row.request(&mut first_date)? {
            Some(request) => read.trace.requests.push(request),
            None => read.skipped_rows += 1,
        }
    }
    Ok(read)
}

fn torn(name: &str, error: &csv::Error) -> TraceError {
    let line = error.position().map_or(0, csv::Position::line);
    TraceError::at(name, (line, 0), "the row", &error.to_string(), "CSV")
}

impl Columns {
    fn of(name: &str, header: &ByteRecord) -> Result<Self, TraceError> {
        let names: Vec<String> = header
            .iter()
            .map(|field| String::from_utf8_lossy(field).trim().to_lowercase())
            .collect();
        let find = |known: &[&str]| names.iter().position(|name| known.contains(&name.as_str()));
        let needed = |known: &[&str]| {
            find(known).ok_or_else(|| {
                let is_shape = names == shape::COLUMNS;
                let expected = if is_shape { BY_MINUTE } else { EXPECTED };
                TraceError::at(name, (1, 0), "the header", &names.join(","), expected)
            })
        };
        Ok(Self {
            arrival: needed(&ARRIVAL)?,
            prompt: needed(&PROMPT)?,
            output: needed(&OUTPUT)?,
            tenant: find(&TENANT),
            priority: find(&PRIORITY),
            names: names.clone(),
        })
    }
}

/// One row, with what its messages need.
struct Row<'a> {
    name: &'a str,
    line: u64,
    columns: &'a Columns,
    record: &'a ByteRecord,
}

impl Row<'_> {
    /// The request; `None` for one that failed at the source. `first_date`: the trace's start, if
    /// it tells dates.
    fn request(&self, first_date: &mut Option<f64>) -> Result<Option<TraceRequest>, TraceError> {
        let columns = self.columns;
        let prompt_tokens = self.tokens(columns.prompt, 1)?;
        let may_fail = columns.names[columns.output] == FAILS_BY_ZERO;
        let output_tokens = self.tokens(columns.output, u32::from(!may_fail))?;
        let arrival = self.arrival(first_date)?;
        let tenant = columns.tenant.map_or(Ok(0), |at| {
            self.number(at, "a whole number from 0 to 4294967295")
        })?;
        let priority = columns
            .priority
            .map_or(Ok(0), |at| self.number(at, "a whole number"))?;
        Ok((output_tokens > 0).then(|| TraceRequest {
            arrival,
            prompt_tokens,
            output_tokens,
            tenant,
            priority,
            key: None,
            blocks: Arc::from([]),
        }))
    }

    fn arrival(&self, first_date: &mut Option<f64>) -> Result<Micros, TraceError> {
        let at = self.columns.arrival;
        let field = self.field(at)?;
        let seconds = match date_s(field) {
            Some(date) => date - *first_date.get_or_insert(date),
            None => field.parse().unwrap_or(f64::NAN),
        };
        micros(seconds).ok_or_else(|| {
            let expected = format!(
                "seconds from 0 to {SECONDS_MAX:e}, or a date not before that of the first row"
            );
            self.wrong(at, field, expected)
        })
    }

    fn tokens(&self, at: usize, least: u32) -> Result<u32, TraceError> {
        let expected = format!("a whole number from {least} to {TOKENS_MAX}");
        let tokens: u32 = self.number(at, &expected)?;
        if (least..=TOKENS_MAX).contains(&tokens) {
            return Ok(tokens);
        }
        Err(self.wrong(at, &tokens.to_string(), expected))
    }

    fn number<T: std::str::FromStr>(&self, at: usize, expected: &str) -> Result<T, TraceError> {
        let field = self.field(at)?;
        let digits = field.strip_suffix(".0").unwrap_or(field);
        digits.parse().map_err(|_| self.wrong(at, field, expected))
    }

    fn field(&self, at: usize) -> Result<&str, TraceError> {
        let Some(field) = self.record.get(at) else {
            let (cells, names) = (self.record.len(), &self.columns.names);
            let all = names.len();
            let expected = format!("a value: the row has {cells} columns, the header {all}");
            return Err(TraceError::at(
                self.name,
                (self.line, 0),
                &names[at],
                "",
                expected,
            ));
        };
        std::str::from_utf8(field)
            .map(str::trim)
            .map_err(|_| self.wrong(at, &String::from_utf8_lossy(field), "text in UTF-8"))
    }

    fn wrong(&self, at: usize, value: &str, expected: impl Into<String>) -> TraceError {
        let before: usize = self.record.iter().take(at).map(|cell| cell.len() + 1).sum();
        let place = (self.line, before as u64 + 1);
        TraceError::at(self.name, place, &self.columns.names[at], value, expected)
    }
}

/// Seconds since 1970 of `2023-11-16 18:17:03.9799600`, with `T` or a zone `+00:00` as well.
fn date_s(field: &str) -> Option<f64> {
    let (date, time) = field.split_once([' ', 'T'])?;
    let time = time.trim_end_matches('Z').trim_end_matches("+00:00");
    let mut days = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (days.next()?.ok()?, days.next()?.ok()?, days.next()?.ok()?);
    let mut parts = time.splitn(3, ':').map(str::parse::<f64>);
    let (hour, minute, second) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    let is_real = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0.0..24.0).contains(&hour)
        && (0.0..60.0).contains(&minute)
        && (0.0..61.0).contains(&second);
    if !is_real {
        return None;
    }
    // Days of the Gregorian calendar, years beginning in March (Hinnant, days_from_civil).
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let whole_days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    Some(whole_days as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second)
}
