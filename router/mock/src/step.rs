//! How long a step takes: `core/cost`, the same formula that the brain predicts with.

use std::{path::Path, time::Duration};

use dopd_core::cost::{JSON_BYTES_MAX, StepShape, Timings};

use crate::{model::PAGE_BYTES, seats::Batch};

/// Assumed rate of a data link: 1 GB/s, until it is measured.
const LINK_BYTES_PER_US: u64 = 1_000;

/// Step times of a mock worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace(Timings);

impl Pace {
    /// Steps follow each other as fast as the machine computes them.
    pub fn instant() -> Self {
        Self(Timings::instant())
    }

    /// Every step takes this long, whatever is in it.
    pub fn fixed(time: Duration) -> Self {
        let micros = time.as_secs_f64() * 1e6;
        Self(Timings {
            name: format!("fixed-{}us", time.as_micros()),
            step_prefill_us: micros,
            step_decode_us: micros,
            ..Timings::instant()
        })
    }

    /// By the name of a calibration, or from a file with one.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some(timings) = Timings::builtin(name) {
            return Ok(Self(timings));
        }
        let path = Path::new(name);
        let failed = |why: String| format!("--mock-timings {name}: {why}");
        if !path.is_file() {
            return Err(failed("neither a known calibration nor a file".to_owned()));
        }
        let size = path
            .metadata()
            .map_err(|error| failed(error.to_string()))?
            .len();
        if size > JSON_BYTES_MAX as u64 {
            return Err(failed(format!("{size} bytes, at most {JSON_BYTES_MAX}")));
        }
        let json = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let timings = Timings::from_json(&json).map_err(|error| failed(error.to_string()))?;
        Ok(Self(timings))
    }

    /// What it calculates with.
    pub fn timings(&self) -> &Timings {
        &self.0
    }

    /// Duration of a step, with what mixing costs in truth.
    pub fn step_time(&self, batch: &Batch) -> Duration {
        let shape = StepShape {
            prefill: &batch.prefill,
            decode_seqs: batch.decode_seqs,
            decode_context_sum: batch.decode_context,
        };
        Duration::from_micros(self.0.step_us(shape))
    }

    /// Step times for the hello.
    pub fn timings_json(&self) -> String {
        // The values were checked when they were read.
        self.0.to_json().unwrap_or_default()
    }

    /// Pages that a link writes within one decode step: a source with as few left may freeze.
    pub fn pages_per_step(&self) -> u32 {
        let step = StepShape {
            decode_seqs: 1,
            ..StepShape::default()
        };
        let pages = self.0.step_us(step) * LINK_BYTES_PER_US / u64::from(PAGE_BYTES);
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}
