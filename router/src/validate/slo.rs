//! Latency targets that a client asks for: two fields of the body, or two headers.

use std::time::Duration;

use hyper::HeaderMap;

use super::{
    check::{count, invalid, shorten},
    spec::Params,
};
use crate::{config::records::LimitsConfig, error::Error, metrics::SloTargets};

/// Longest target in milliseconds: a day, as the longest life of a request.
const SLO_MS_MAX: i64 = 24 * 3_600_000;

const TTFT_HEADER: &str = "x-slo-ttft-ms";
const TPOT_HEADER: &str = "x-slo-tpot-ms";

/// What the head of a request says of its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SloHead {
    /// Asked for by its headers (gRPC: metadata).
    pub asked: SloTargets,
    /// The least that its key may ask for; `None`: that of the limits.
    pub least: SloTargets,
}

/// The least that a request may ask for, and the setting that says so.
struct Least {
    target: Duration,
    setting: String,
}

impl Least {
    fn new(setting: &str, key: Option<Duration>, limit_ms: u64) -> Self {
        match key {
            Some(target) => Self {
                target,
                setting: format!("{setting} of the key"),
            },
            None => Self {
                target: Duration::from_millis(limit_ms),
                setting: format!("limits.{setting}"),
            },
        }
    }

    /// The target that counts: the field's, else the header's.
    fn target(
        &self,
        (field, own): (&'static str, Option<i64>),
        (header, asked): (&'static str, Option<Duration>),
    ) -> Result<Option<Duration>, Error> {
        let own = own.map(|value| millis(field, value)).transpose()?;
        let name = if own.is_some() { field } else { header };
        let Some(target) = own.or(asked) else {
            return Ok(None);
        };
        if target >= self.target {
            return Ok(Some(target));
        }
        let message = format!(
            "{name} is {}, the least that may be asked for is {} ({})",
            target.as_millis(),
            self.target.as_millis(),
            self.setting
        );
        Err(invalid(name, message))
    }
}

/// The targets that it asks for: in the fields `slo_ttft_ms` and `slo_tpot_ms`, else by its head.
pub(super) fn slo(params: &Params, limits: &LimitsConfig) -> Result<SloTargets, Error> {
    let SloHead { asked, least } = params.slo_head;
    let ttft = Least::new("slo_ttft_ms_min", least.ttft, limits.slo_ttft_ms_min);
    let tpot = Least::new("slo_tpot_ms_min", least.tpot, limits.slo_tpot_ms_min);
    Ok(SloTargets {
        ttft: ttft.target(
            ("slo_ttft_ms", params.slo_ttft_ms),
            (TTFT_HEADER, asked.ttft),
        )?,
        tpot: tpot.target(
            ("slo_tpot_ms", params.slo_tpot_ms),
            (TPOT_HEADER, asked.tpot),
        )?,
    })
}

fn millis(name: &'static str, value: i64) -> Result<Duration, Error> {
    let ms = count(name, value, 1, SLO_MS_MAX)?;
    Ok(Duration::from_millis(ms.into()))
}

/// What the headers `x-slo-ttft-ms` and `x-slo-tpot-ms` (gRPC: metadata) ask for. A field of the
/// body has the last word.
pub fn slo_headers(headers: &HeaderMap) -> Result<SloTargets, Error> {
    Ok(SloTargets {
        ttft: header(headers, TTFT_HEADER)?,
        tpot: header(headers, TPOT_HEADER)?,
    })
}

fn header(headers: &HeaderMap, name: &'static str) -> Result<Option<Duration>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(invalid(name, format!("the header {name} comes twice")));
    }
    // Digits only: `parse` would take a sign.
    let digits = value.as_bytes();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let ms = value.to_str().ok().filter(|_| is_number);
    let ms = ms.and_then(|digits| digits.parse::<i64>().ok());
    match ms.map(|ms| millis(name, ms)) {
        Some(ms) => ms.map(Some),
        None => Err(invalid(
            name,
            format!(
                "{name} is {:?}, it must be whole milliseconds from 1 to {SLO_MS_MAX}",
                shorten(&String::from_utf8_lossy(digits)),
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn ask(values: &[&'static str]) -> Result<Option<u32>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TTFT_HEADER, HeaderValue::from_static(value));
        }
        let asked = slo_headers(&headers);
        asked
            .map(|slo| {
                slo.ttft
                    .map(|ttft| u32::try_from(ttft.as_millis()).unwrap())
            })
            .map_err(|error| error.message.into_owned())
    }

    #[test]
    fn headers_are_whole_milliseconds() {
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&["1"]), Ok(Some(1)));
        assert_eq!(ask(&["86400000"]), Ok(Some(86_400_000)));
        for wrong in [
            "",
            "0",
            "-1",
            "+1",
            "1.5",
            "86400001",
            "9999999999999999999999",
            "x",
        ] {
            let refused = ask(&[wrong]).unwrap_err();
            assert!(refused.contains(TTFT_HEADER), "{wrong}: {refused}");
            assert!(refused.contains(wrong), "{wrong}: {refused}");
            assert!(
                refused.ends_with("from 1 to 86400000"),
                "{wrong}: {refused}"
            );
        }
        assert!(ask(&["5", "5"]).unwrap_err().contains("twice"));
    }
}
