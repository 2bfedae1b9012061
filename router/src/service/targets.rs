//! Which latency targets a request has: its own, else its key's, else the operator's.

use std::time::Duration;

use dopd_core::{request::Slo, units::Micros};

use crate::{config::records::SloConfig, metrics::SloTargets};

/// The targets of a request of so many prompt tokens. What it asks for itself is taken as it is;
/// what others ask of all requests grows with the prompt.
pub(super) fn targets(
    own: SloTargets,
    key: SloTargets,
    all: &SloConfig,
    prompt_tokens: u32,
) -> SloTargets {
    let least_ms = u64::from(prompt_tokens).saturating_mul(all.ttft_ms_per_1k_tokens) / 1_000;
    let general = key.ttft.or(all.ttft_ms.map(Duration::from_millis));
    let general = general.map(|ttft| ttft.max(Duration::from_millis(least_ms)));
    SloTargets {
        ttft: own.ttft.or(general),
        tpot: own
            .tpot
            .or(key.tpot)
            .or(all.tpot_ms.map(Duration::from_millis)),
    }
}

/// The same for the brain.
pub(super) fn slo(targets: SloTargets) -> Slo {
    let micros = |target: Duration| Micros(u64::try_from(target.as_micros()).unwrap_or(u64::MAX));
    Slo {
        ttft: targets.ttft.map(micros),
        tpot: targets.tpot.map(micros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SloTargets = SloTargets {
        ttft: None,
        tpot: None,
    };

    fn asked(ttft_ms: u64, tpot_ms: u64) -> SloTargets {
        SloTargets {
            ttft: Some(Duration::from_millis(ttft_ms)),
            tpot: Some(Duration::from_millis(tpot_ms)),
        }
    }

    fn all(ttft_ms: Option<u64>, per_1k: u64) -> SloConfig {
        SloConfig {
            ttft_ms,
            ttft_ms_per_1k_tokens: per_1k,
            tpot_ms: Some(80),
        }
    }

    #[test]
    fn the_request_goes_before_its_key_and_that_before_the_operator() {
        let config = all(Some(500), 0);
        let of = |own, key| targets(own, key, &config, 10);
        assert_eq!(of(NONE, NONE), asked(500, 80));
        assert_eq!(of(NONE, asked(300, 40)), asked(300, 40));
        assert_eq!(of(asked(200, 20), asked(300, 40)), asked(200, 20));
        assert_eq!(targets(NONE, NONE, &SloConfig::default(), 9), NONE);
    }

    #[test]
    fn the_general_target_grows_with_the_prompt() {
        let config = all(Some(500), 200);
        let of = |own, key, tokens| {
            let ttft = targets(own, key, &config, tokens).ttft;
            ttft.map(|ttft| ttft.as_millis())
        };
        assert_eq!(of(NONE, NONE, 1_000), Some(500));
        assert_eq!(of(NONE, NONE, 10_000), Some(2_000));
        assert_eq!(of(NONE, asked(300, 1), 10_000), Some(2_000));
        assert_eq!(of(asked(250, 1), NONE, 10_000), Some(250));
        let huge = all(Some(1), u64::MAX);
        assert!(targets(NONE, NONE, &huge, u32::MAX).ttft > Some(Duration::from_millis(1)));
        // Without a target there is nothing to grow.
        assert_eq!(targets(NONE, NONE, &all(None, 200), 10_000).ttft, None);
    }

    #[test]
    fn the_brain_counts_in_microseconds() {
        let expected = Slo {
            ttft: Some(Micros(2_000)),
            tpot: Some(Micros(1_000)),
        };
        assert_eq!(slo(asked(2, 1)), expected);
        assert_eq!(slo(NONE), Slo::default());
    }
}
