//! Step times for the mock engine: the same cost model that the brain predicts with.

use std::{fs, path::Path, sync::Mutex};

use dopd_core::cost::{StepShape, Timings};
use pyo3::{exceptions::PyValueError, prelude::*};

/// The calibration that was used last. A worker has one, and asks once per step.
static LAST: Mutex<Option<(String, Timings)>> = Mutex::new(None);

/// Microseconds of one step of the calibration `timings`: a built-in name or a JSON file.
///
/// `prefill`: per prompt its new tokens and those computed before. `decode_seqs` sequences decode
/// one token each and read `decode_context_sum` tokens of KV. Raises `ValueError` for a calibration
/// that is neither.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands a list over by value"
)]
pub(crate) fn step_time(
    timings: &str,
    prefill: Vec<(u32, u32)>,
    decode_seqs: u32,
    decode_context_sum: u64,
) -> PyResult<u64> {
    let mut last = LAST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let is_same = last.as_ref().is_some_and(|(name, _)| name == timings);
    if !is_same {
        *last = Some((timings.to_owned(), load(timings)?));
    }
    let step = StepShape {
        prefill: &prefill,
        decode_seqs,
        decode_context_sum,
    };
    Ok(last
        .as_ref()
        .map_or(0, |(_, timings)| timings.step_us(step)))
}

/// The calibration `name` (a built-in name or a JSON file) as JSON, as a worker's hello carries it.
#[pyfunction]
pub(crate) fn timings_json(name: &str) -> PyResult<String> {
    load(name)?
        .to_json()
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn load(name: &str) -> PyResult<Timings> {
    if let Some(timings) = Timings::builtin(name) {
        return Ok(timings);
    }
    let names = Timings::BUILTIN_NAMES.join(", ");
    let json = fs::read_to_string(Path::new(name)).map_err(|error| {
        let problem =
            format!("timings {name:?} are neither built in ({names}) nor a file: {error}");
        PyValueError::new_err(problem)
    })?;
    Timings::from_json(&json)
        .map_err(|error| PyValueError::new_err(format!("timings in {name}: {error}")))
}
