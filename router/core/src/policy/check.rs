//! Limits of a policy's constants: a brain that runs within them computes no NaN and no endless
//! loop.

use super::PolicyConfig;
use crate::units::{Micros, Tokens};

/// Longest time of any rule: a year.
const TIME_MAX: Micros = Micros::from_millis(365 * 86_400_000);

/// A constant outside of its limits.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// A ratio.
    #[error("policy: {field} is {value}, must be a number between {min} and {max}")]
    Ratio {
        /// Which.
        field: &'static str,
        /// What it is.
        value: f64,
        /// The least.
        min: f64,
        /// The greatest.
        max: f64,
    },
    /// A time or a count.
    #[error("policy: {field} is {value}, must be between {min} and {max}")]
    Whole {
        /// Which, with its unit.
        field: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
}

impl PolicyConfig {
    /// Checks every constant. Called wherever a policy comes from outside.
    pub fn check(&self) -> Result<(), PolicyError> {
        let step = &self.step;
        for (field, value, min, max) in [
            ("ttft_prefill_ratio", self.ttft_prefill_ratio, 0.0, 1e6),
            ("ageing_ratio", self.ageing_ratio, 0.0, 1e6),
            ("fair_ratio", self.fair_ratio, 0.0, 1.0),
            ("steal_wait_ratio", self.steal_wait_ratio, 0.0, 1e6),
            ("steal_kv_ratio", self.steal_kv_ratio, 0.0, 1.0),
            ("keep_step_ratio", self.keep_step_ratio, 0.0, 100.0),
            ("place_kv_ratio", self.place_kv_ratio, 0.0, 1.0),
            ("place_step_ratio", self.place_step_ratio, 0.0, 100.0),
            ("linger_ratio", self.linger_ratio, 0.0, 1e6),
            ("peak_z", self.peak_z, 0.0, 100.0),
            ("step.mixed_step_ratio", step.mixed_step_ratio, 0.0, 100.0),
            ("step.pace_ratio", step.pace_ratio, 0.0, 100.0),
            ("step.slack_quantile", step.slack_quantile, 0.0, 1.0),
            (
                "step.mixed_penalty_start",
                step.mixed_penalty_start,
                0.0,
                2.0,
            ),
        ] {
            // Not a comparison that NaN passes.
            if !(min..=max).contains(&value) {
                return Err(PolicyError::Ratio {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        self.check_times()
    }

    fn check_times(&self) -> Result<(), PolicyError> {
        let step = &self.step;
        let (time_max, tokens_max) = (TIME_MAX.0, u64::from(u32::MAX));
        let tokens = |tokens: Tokens| u64::from(tokens.0);
        for (field, value, min, max) in [
            ("ttft in us", self.ttft.0, 1, time_max),
            ("tpot in us", self.tpot.0, 1, time_max),
            ("late_max in us", self.late_max.0, 0, time_max),
            (
                "prefill_tokens_max",
                tokens(self.prefill_tokens_max),
                1,
                tokens_max,
            ),
            ("steal_scan", u64::from(self.steal_scan), 1, 1_000),
            ("linger_tokens", tokens(self.linger_tokens), 1, tokens_max),
            (
                "step.chunk_tokens",
                tokens(step.chunk_tokens),
                1,
                tokens_max,
            ),
            ("step.tpot in us", step.tpot.0, 1, time_max),
            ("step.pause_max in us", step.pause_max.0, 0, time_max),
            (
                "step.pause_min in us",
                step.pause_min.0,
                0,
                step.pause_max.0,
            ),
            (
                "step.probe_every",
                u64::from(step.probe_every),
                1,
                u64::from(u32::MAX),
            ),
            (
                "step.idle_slice_max in us",
                step.idle_slice_max.0,
                1,
                time_max,
            ),
        ] {
            if !(min..=max).contains(&value) {
                return Err(PolicyError::Whole {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::StepPolicy;

    #[test]
    fn own_policies_are_within_the_limits() {
        assert_eq!(PolicyConfig::default().check(), Ok(()));
        assert_eq!(PolicyConfig::plain().check(), Ok(()));
    }

    #[test]
    fn every_ratio_refuses_what_is_no_number() {
        let json = serde_json::to_value(PolicyConfig::default()).unwrap();
        let mut ratios = 0;
        for (path, object) in [("", &json), ("step.", &json["step"])] {
            for (name, value) in object.as_object().unwrap() {
                if !value.is_f64() {
                    continue;
                }
                ratios += 1;
                for (text, bad) in [("-1e-9", -1e-9), ("1e300", 1e300)] {
                    let mut changed = json.clone();
                    if path.is_empty() {
                        changed[name] = bad.into();
                    } else {
                        changed["step"][name] = bad.into();
                    }
                    let policy: PolicyConfig = serde_json::from_value(changed).unwrap();
                    let error = policy.check().unwrap_err().to_string();
                    assert!(
                        error.contains(&format!("{path}{name} is")),
                        "{text}: {error}"
                    );
                }
            }
        }
        assert_eq!(ratios, 14);
    }

    #[test]
    fn nan_is_refused_by_name_value_and_limit() {
        let policy = PolicyConfig {
            ageing_ratio: f64::NAN,
            ..PolicyConfig::default()
        };
        let error = policy.check().unwrap_err();
        let wanted = "policy: ageing_ratio is NaN, must be a number between 0 and 1000000";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn times_and_counts_have_limits() {
        let own = PolicyConfig::default;
        let step = StepPolicy::default;
        let zero = PolicyConfig {
            ttft: Micros(0),
            ..own()
        };
        let error = zero.check().unwrap_err().to_string();
        let wanted = "policy: ttft in us is 0, must be between 1 and 31536000000000";
        assert_eq!(error, wanted);
        let inverted = PolicyConfig {
            step: StepPolicy {
                pause_min: Micros(200),
                pause_max: Micros(100),
                ..step()
            },
            ..own()
        };
        let error = inverted.check().unwrap_err().to_string();
        assert!(
            error.contains("pause_min in us is 200, must be between 0 and 100"),
            "{error}"
        );
        for probe_every in [0, 1] {
            let policy = PolicyConfig {
                step: StepPolicy {
                    probe_every,
                    ..step()
                },
                ..own()
            };
            assert_eq!(policy.check().is_ok(), probe_every > 0);
        }
    }
}
