//! A brain to drive by hand: events in, actions out, as JSON. Called by `python/dopd/brain.py`.

use dopd_core::{
    brain::{Brain, BrainConfig},
    event::Event,
    units::Micros,
};
use pyo3::prelude::*;

use crate::columns::wrong;

/// A brain that Python tells what happens. The same type that serves.
#[pyclass(module = "dopd._router")]
pub(crate) struct RawBrain {
    brain: Brain,
}

#[pymethods]
impl RawBrain {
    #[new]
    fn new(config: &str) -> PyResult<Self> {
        let config: BrainConfig = serde_json::from_str(config).map_err(wrong)?;
        config.policy.check().map_err(wrong)?;
        Ok(Self {
            brain: Brain::new(config),
        })
    }

    /// The actions as JSON.
    fn handle(&mut self, now_us: u64, event: &str) -> PyResult<String> {
        let event: Event = serde_json::from_str(event).map_err(wrong)?;
        let actions = self.brain.handle(Micros(now_us), event);
        serde_json::to_string(&actions).map_err(wrong)
    }

    /// When it wants to be woken, in microseconds.
    fn next_wake(&self) -> Option<u64> {
        self.brain.next_wake().map(|at| at.0)
    }

    /// Its settings with every default, as JSON.
    #[staticmethod]
    fn settings(config: &str) -> PyResult<String> {
        let config: BrainConfig = serde_json::from_str(config).map_err(wrong)?;
        serde_json::to_string(&config).map_err(wrong)
    }
}
