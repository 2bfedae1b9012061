//! Where a caller stands with its quotas, in the headers of every answer, as OpenAI's.

use std::time::{Duration, Instant};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::auth::{Caller, Standing};

/// Limit, rest and reset, of requests and of tokens.
const HEADERS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

/// Adds a caller's standing to `headers`; nothing where it has no quota.
pub(super) fn tell(caller: &Caller, headers: &mut HeaderMap) {
    for (names, standing) in HEADERS.into_iter().zip(caller.standing(Instant::now())) {
        let Some(standing) = standing else { continue };
        let Standing {
            limit,
            remaining,
            reset,
        } = standing;
        let [name_limit, name_remaining, name_reset] = names;
        headers.insert(name_limit, limit.into());
        headers.insert(name_remaining, remaining.into());
        if let Ok(reset) = HeaderValue::from_str(&written(reset)) {
            headers.insert(name_reset, reset);
        }
    }
}

/// A time as OpenAI writes it: `120ms`, `6.5s`, `1m0s`.
fn written(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{}s", time.as_secs_f64()),
        _ => format!("{}m{}s", millis / 60_000, millis % 60_000 / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_does() {
        for (millis, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (6_500, "6.5s"),
            (60_000, "1m0s"),
            (359_999, "5m59s"),
        ] {
            assert_eq!(written(Duration::from_millis(millis)), text);
        }
    }
}
