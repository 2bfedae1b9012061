//! Load by the minute, without requests (`minute,total_tokens_per_s`, BurstGPT).

use super::{
    error::TraceError,
    read::{ROWS_MAX, unpack},
};

/// Largest load of a minute, in whatever unit the file has.
const LOAD_MAX: f64 = 1e12;
pub(super) const COLUMNS: [&str; 2] = ["minute", "total_tokens_per_s"];

/// How the load goes up and down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Tokens per second, prompt and answer together, minute by minute.
    pub tokens_per_s: Vec<f64>,
}

/// Reads `minute,total_tokens_per_s`, plain or gzip. Minutes that the file leaves out have no load.
pub fn read_shape(name: &str, bytes: &[u8]) -> Result<Shape, TraceError> {
    let text = unpack(name, bytes)?;
    let mut rows = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(text.as_slice());
    let torn = |error: &csv::Error| {
        let line = error.position().map_or(0, csv::Position::line);
        TraceError::at(name, (line, 0), "the row", &error.to_string(), "CSV")
    };
    let header = rows.byte_headers().map_err(|error| torn(&error))?;
    if !header.iter().eq(COLUMNS.map(str::as_bytes)) {
        let found: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
        let expected = COLUMNS.join(",");
        return Err(TraceError::at(
            name,
            (1, 0),
            "the header",
            &found.join(","),
            expected,
        ));
    }
    let mut shape = Shape::default();
    for row in rows.byte_records() {
        let row = row.map_err(|error| torn(&error))?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |at: usize| String::from_utf8_lossy(row.get(at).unwrap_or_default());
        let minute: usize = cell(0).parse().unwrap_or(usize::MAX);
        if minute >= ROWS_MAX {
            let expected = format!("a whole number below {ROWS_MAX}");
            let place = (line, 1);
            return Err(TraceError::at(name, place, COLUMNS[0], &cell(0), expected));
        }
        let load: f64 = cell(1).parse().unwrap_or(f64::NAN);
        if !(0.0..=LOAD_MAX).contains(&load) {
            let place = (line, cell(0).len() as u64 + 2);
            let expected = format!("a number from 0 to {LOAD_MAX:e}");
            return Err(TraceError::at(name, place, COLUMNS[1], &cell(1), expected));
        }
        if shape.tokens_per_s.len() <= minute {
            shape.tokens_per_s.resize(minute + 1, 0.0);
        }
        shape.tokens_per_s[minute] = load;
    }
    if shape.tokens_per_s.iter().all(|load| *load == 0.0) {
        return Err(TraceError::of_file(name, "", "a minute with load"));
    }
    Ok(shape)
}
