//! `grpc-timeout`: how long the client waits, for the whole stream.

use std::time::Duration;

use hyper::HeaderMap;

use crate::error::{Error, Reason};

const HEADER: &str = "grpc-timeout";
/// Most digits, by gRPC's own rule.
const DIGITS_MAX: usize = 8;

/// The client's time, if it named one. A malformed value is an error: taken as "no time-out" it
/// would make a request endless by accident.
pub(super) fn of(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    parse(text).map(Some).ok_or_else(|| {
        let shown: String = text.chars().take(16).collect();
        let message = format!(
            "grpc-timeout is {shown:?}, it must be 1 to {DIGITS_MAX} digits and one of H M S m u n"
        );
        Error::new(Reason::InvalidValue, message).with_field(HEADER)
    })
}

fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    let well_formed = (1..=DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let value: u64 = well_formed.then(|| digits.parse().ok())??;
    Some(match unit {
        'H' => Duration::from_secs(value * 3_600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grpc_allows_is_a_time() {
        assert_eq!(parse("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse("0m"), Some(Duration::ZERO));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for bad in [
            "",
            "S",
            "1",
            "-1S",
            "+1S",
            "1x",
            "999999999S",
            "1 S",
            "1\u{b5}",
            "\u{b5}",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
