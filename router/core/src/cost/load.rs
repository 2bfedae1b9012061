//! Timings as JSON: what a calibration file holds and what a worker says in its hello.

use super::Timings;

/// Longest calibration in bytes. The built-ins need 400.
pub const JSON_BYTES_MAX: usize = 16 << 10;

/// Largest value of any field: above every device, far below where sums lose microseconds.
pub const VALUE_MAX: f64 = 1e15;

/// Why a calibration was refused.
#[derive(Debug, thiserror::Error)]
pub enum TimingsError {
    /// Too long to be one.
    #[error("timings of {bytes} bytes are longer than {JSON_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not the right shape.
    #[error("timings are not valid JSON of all fields: {0}")]
    Json(#[from] serde_json::Error),
    /// A value outside its limits.
    #[error("timings `{name}`: {field} is {value}, must be finite and between 0 and {VALUE_MAX:e}")]
    Value {
        /// Name of the calibration.
        name: String,
        /// Which field.
        field: &'static str,
        /// What it held.
        value: f64,
    },
}

impl Timings {
    /// Reads and checks a calibration.
    pub fn from_json(json: &str) -> Result<Self, TimingsError> {
        if json.len() > JSON_BYTES_MAX {
            return Err(TimingsError::TooLong { bytes: json.len() });
        }
        let timings: Self = serde_json::from_str(json)?;
        timings.check()?;
        Ok(timings)
    }

    /// The calibration as JSON, as [`Timings::from_json`] reads it.
    pub fn to_json(&self) -> Result<String, TimingsError> {
        self.check()?;
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Checks every field: finite, at least 0, at most [`VALUE_MAX`].
    pub fn check(&self) -> Result<(), TimingsError> {
        for (field, value) in [
            ("step_prefill_us", self.step_prefill_us),
            ("step_decode_us", self.step_decode_us),
            ("weights_us", self.weights_us),
            ("memory_us_per_token", self.memory_us_per_token),
            ("compute_us_per_token", self.compute_us_per_token),
            ("attention_us_per_pair", self.attention_us_per_pair),
            ("context_us_per_token", self.context_us_per_token),
            ("batch_us_per_seq", self.batch_us_per_seq),
            ("mixed_penalty_ratio", self.mixed_penalty_ratio),
            ("handoff_bytes_per_s", self.handoff_bytes_per_s),
            ("handoff_fixed_us", self.handoff_fixed_us),
        ] {
            if !(0.0..=VALUE_MAX).contains(&value) {
                return Err(TimingsError::Value {
                    name: self.name.clone(),
                    field,
                    value,
                });
            }
        }
        Ok(())
    }
}
