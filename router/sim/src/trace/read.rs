//! From the bytes of a file to a trace.

use std::io::Read as _;

use dopd_core::units::Micros;
use flate2::read::MultiGzDecoder;

use super::{error::TraceError, mooncake, table};
use crate::scenario::Trace;

/// Longest file, unpacked. The longest public trace (a day of Azure 2024) has 1.5 GB; cut it.
pub const BYTES_MAX: u64 = 1 << 30;
/// Most requests of a trace.
pub const ROWS_MAX: usize = 20_000_000;
/// Longest prompt or answer in tokens.
pub const TOKENS_MAX: u32 = 10_000_000;
/// Latest arrival in seconds: three years.
pub const SECONDS_MAX: f64 = 1e8;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A trace that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The requests, by arrival.
    pub trace: Trace,
    /// Rows of requests that failed at the source and so have no answer (BurstGPT).
    pub skipped_rows: u64,
}

/// Reads a trace: CSV (Azure, ServeGen, BurstGPT) or JSON lines (Mooncake), plain or gzip. `name`
/// heads tables and messages. Rows may be in any order.
pub fn read(name: &str, bytes: &[u8]) -> Result<Read, TraceError> {
    let text = unpack(name, bytes)?;
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let mut read = match first {
        None => return Err(TraceError::of_file(name, "", "a trace")),
        _ if text.starts_with(b"PAR1") => {
            return Err(TraceError::of_file(name, "Parquet", "CSV or JSON lines"));
        }
        Some(b'{') => mooncake::read(name, &text)?,
        Some(_) => table::read(name, &text)?,
    };
    if read.trace.requests.is_empty() {
        return Err(TraceError::of_file(
            name,
            "without requests",
            "at least one",
        ));
    }
    read.trace.requests.sort_by_key(|request| request.arrival);
    Ok(read)
}

/// The bytes as they were before gzip, if it was gzip.
pub(super) fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<u8>, TraceError> {
    let mut text = Vec::new();
    let taken = if bytes.starts_with(&GZIP) {
        MultiGzDecoder::new(bytes)
            .take(BYTES_MAX + 1)
            .read_to_end(&mut text)
    } else {
        bytes.take(BYTES_MAX + 1).read_to_end(&mut text)
    };
    if let Err(error) = taken {
        let expected = format!("whole gzip: {error}");
        return Err(TraceError::of_file(name, "gzip", expected));
    }
    if text.len() as u64 > BYTES_MAX {
        let expected = format!("at most {BYTES_MAX} bytes");
        return Err(TraceError::of_file(name, "longer", expected));
    }
    // A byte order mark, as spreadsheets write it, is no part of the first name.
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// Seconds as microseconds; `None` if they are no time within [`SECONDS_MAX`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to lie between 0 and 1e14"
)]
pub fn micros(seconds: f64) -> Option<Micros> {
    (0.0..=SECONDS_MAX)
        .contains(&seconds)
        .then(|| Micros(libm::round(seconds * 1e6) as u64))
}
