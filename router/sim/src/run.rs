//! The one call: a scenario in, its outcome out.

use std::ops::ControlFlow;

use dopd_core::units::Micros;

use crate::{engine::Engine, error::SimError, outcome::Outcome, scenario::Scenario};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests that ended.
    pub ended: usize,
    /// Requests of the trace.
    pub requests: usize,
    /// Simulated time.
    pub now: Micros,
}

/// How exactly, and how long, it is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often a worker that decodes tells how many tokens those made that go on. First and last
    /// tokens, and every step that computes a prompt, are told at once, whatever this is. 0: each
    /// step is told, as a real worker does; a run takes several times as long then.
    pub tell_every: Micros,
    /// What has not ended so long after the last arrival is unfinished.
    pub drain_max: Micros,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tell_every: Micros::from_millis(1_000),
            drain_max: Micros::from_millis(3_600_000),
        }
    }
}

/// Simulates a scenario. Deterministic: the same scenario has the same outcome on every machine.
/// `progress` is called every few thousand requests; if it breaks, the run ends.
///
/// # Errors
///
/// The scenario cannot run, and why; or it was stopped.
pub fn run(
    scenario: &Scenario,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, SimError> {
    run_with(scenario, Options::default(), progress)
}

/// The same with other options.
///
/// # Errors
///
/// As [`run`].
pub fn run_with(
    scenario: &Scenario,
    options: Options,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, SimError> {
    Engine::new(scenario, options)?.run(progress)
}
