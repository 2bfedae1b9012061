//! The simulator for Python: runs and what came of them.
//!
//! Called by `python/dopd/sim` and `python/dopd/brain.py`; columns go in as buffers of 8-byte
//! values and out as bytes. The interpreter is free while a trace is read, made or run.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use dopd_core::units::{Micros, Tokens};
use dopd_sim::{
    outcome::{Ending, Outcome},
    policies,
    report::Figures,
    run,
    scenario::{SloRule, Trace},
    setup::{KINDS, Setup},
};
use pyo3::prelude::*;

use crate::{
    columns::{Columns, column, signed, wrong},
    trace::SimTrace,
};

/// Progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What came of a run.
#[pyclass(frozen, module = "dopd._router")]
pub(crate) struct SimRun {
    outcome: Outcome,
    slo: SloRule,
    #[pyo3(get)]
    wall_s: f64,
}

#[pymethods]
impl SimRun {
    /// [`Figures`] as JSON.
    fn figures(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| serde_json::to_string(&Figures::of(&self.outcome, &self.slo)))
            .map_err(wrong)
    }

    #[getter]
    fn events(&self) -> u64 {
        self.outcome.events
    }

    /// Request by request; -1 where there is no such moment.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Columns<'py>> {
        let rows = &self.outcome.requests;
        let moment = |at: Option<Micros>| at.map_or(-1, |at| signed(at.0));
        Ok(vec![
            ("arrival_us", column(py, rows, |row| signed(row.arrival.0))?),
            (
                "prompt_tokens",
                column(py, rows, |row| i64::from(row.prompt_tokens))?,
            ),
            (
                "output_tokens",
                column(py, rows, |row| i64::from(row.output_tokens))?,
            ),
            ("tenant", column(py, rows, |row| i64::from(row.tenant))?),
            (
                "ttft_target_us",
                column(py, rows, |row| signed(row.ttft_target.0))?,
            ),
            ("first_us", column(py, rows, |row| moment(row.first))?),
            ("end_us", column(py, rows, |row| moment(row.end))?),
            (
                "is_finished",
                column(py, rows, |row| i64::from(row.ending == Ending::Finished))?,
            ),
            (
                "is_stolen",
                column(py, rows, |row| i64::from(row.is_stolen))?,
            ),
            ("is_kept", column(py, rows, |row| i64::from(row.is_kept))?),
            (
                "preemptions",
                column(py, rows, |row| i64::from(row.preemptions))?,
            ),
            (
                "cached_tokens",
                column(py, rows, |row| i64::from(row.cached_tokens))?,
            ),
        ])
    }
}

/// Runs `trace` on what `setup` (JSON) describes. `progress(ended, requests)` is called now and
/// then; what it raises ends the run.
#[pyfunction]
#[pyo3(signature = (trace, setup, progress=None))]
pub(crate) fn simulate(
    py: Python<'_>,
    trace: &SimTrace,
    setup: &str,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<SimRun> {
    let scenario = Setup::from_json(setup)
        .and_then(|setup| setup.scenario(Arc::clone(&trace.trace)))
        .map_err(wrong)?;
    let progress = progress.map(|call| call.clone().unbind());
    let start = Instant::now();
    let mut told = start;
    let mut raised = None;
    let outcome = py.detach(|| {
        run(&scenario, &mut |at| {
            if told.elapsed() < PROGRESS_EVERY {
                return ControlFlow::Continue(());
            }
            told = Instant::now();
            let said = Python::attach(|py| {
                py.check_signals()?;
                if let Some(call) = &progress {
                    call.call1(py, (at.ended, at.requests))?;
                }
                Ok(())
            });
            match said {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    raised = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    if let Some(error) = raised {
        return Err(error);
    }
    Ok(SimRun {
        outcome: outcome.map_err(wrong)?,
        slo: scenario.slo,
        wall_s: start.elapsed().as_secs_f64(),
    })
}

/// (name, help) of every policy.
#[pyfunction]
pub(crate) fn sim_policies() -> Vec<(&'static str, &'static str)> {
    policies::NAMES.to_vec()
}

/// (device, model, targets in ms if nobody sets others) of every built-in calibration.
#[pyfunction]
pub(crate) fn sim_kinds() -> Vec<(&'static str, &'static str, (f64, f64))> {
    KINDS
        .iter()
        .map(|kind| (kind.device, kind.model, kind.tight_ms))
        .collect()
}

/// Seconds of unloaded prefills of so many tokens, on the first worker of `setup` (JSON).
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands a list over by value"
)]
pub(crate) fn sim_prefill(setup: &str, prompt_tokens: Vec<u32>) -> PyResult<Vec<f64>> {
    let scenario = Setup::from_json(setup)
        .and_then(|setup| setup.scenario(Arc::new(Trace::default())))
        .map_err(wrong)?;
    let timings = scenario.fleet.first().map(|worker| &worker.timings);
    let seconds = |tokens: &u32| {
        timings.map_or(0.0, |timings| {
            timings.prefill_us(Tokens(*tokens)).0 as f64 / 1e6
        })
    };
    Ok(prompt_tokens.iter().map(seconds).collect())
}

/// What `setup` (JSON) comes to in full: the scenario without its trace, as JSON.
#[pyfunction]
pub(crate) fn sim_scenario(setup: &str) -> PyResult<String> {
    let scenario = Setup::from_json(setup)
        .and_then(|setup| setup.scenario(Arc::new(Trace::default())))
        .map_err(wrong)?;
    serde_json::to_string(&serde_json::json!({
        "brain": scenario.brain,
        "fleet": scenario.fleet,
        "slo": scenario.slo,
    }))
    .map_err(wrong)
}
