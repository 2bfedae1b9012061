//! The simulator for Python: traces, runs, and a brain to drive by hand.
//!
//! Called by `python/dopd/sim` and `python/dopd/brain.py`; columns go in as buffers of 8-byte values
//! and out as bytes. The interpreter is free while a trace is read, made or run.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use dopd_core::{
    brain::{Brain, BrainConfig},
    event::Event,
    units::{Micros, Tokens},
};
use dopd_sim::{
    outcome::{Ending, Outcome},
    policies,
    report::Figures,
    run,
    scenario::{SloRule, Trace, TraceRequest},
    setup::{KINDS, Setup},
    trace,
};
use pyo3::{buffer::PyBuffer, exceptions::PyValueError, prelude::*, types::PyBytes};

/// Progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

fn wrong(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Columns by name, each little-endian values of 8 bytes.
type Columns<'py> = Vec<(&'static str, Bound<'py, PyBytes>)>;

fn column<'py, T>(
    py: Python<'py>,
    rows: &[T],
    value: impl Fn(&T) -> i64,
) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, rows.len() * 8, |bytes| {
        for (row, to) in rows.iter().zip(bytes.chunks_exact_mut(8)) {
            to.copy_from_slice(&value(row).to_le_bytes());
        }
        Ok(())
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Arrivals and lengths.
#[pyclass(frozen, module = "dopd._router")]
pub(crate) struct SimTrace {
    trace: Arc<Trace>,
    #[pyo3(get)]
    skipped_rows: u64,
}

impl SimTrace {
    fn new(trace: Trace) -> Self {
        Self {
            trace: Arc::new(trace),
            skipped_rows: 0,
        }
    }
}

#[pymethods]
impl SimTrace {
    #[staticmethod]
    fn read(py: Python<'_>, name: &str, data: &[u8]) -> PyResult<Self> {
        let read = py.detach(|| trace::read(name, data)).map_err(wrong)?;
        Ok(Self {
            trace: Arc::new(read.trace),
            skipped_rows: read.skipped_rows,
        })
    }

    /// Names of the files that `spec` needs, as it names them: (a, b, shape).
    #[staticmethod]
    fn files(spec: &str) -> PyResult<(Option<String>, Option<String>, Option<String>)> {
        let spec = trace::Spec::parse(spec).map_err(wrong)?;
        Ok(match spec.process {
            trace::Process::Shift { a, b, .. } => (Some(a), Some(b), None),
            trace::Process::Minutes { shape } => (spec.lengths, None, Some(shape)),
            trace::Process::Renewal { .. } => (spec.lengths, None, None),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (spec, seed, *, a=None, b=None, shape=None))]
    fn make(
        py: Python<'_>,
        spec: &str,
        seed: u64,
        a: Option<&Bound<'_, Self>>,
        b: Option<&Bound<'_, Self>>,
        shape: Option<&[u8]>,
    ) -> PyResult<Self> {
        let spec = trace::Spec::parse(spec).map_err(wrong)?;
        let name = match &spec.process {
            trace::Process::Minutes { shape } => shape.clone(),
            _ => String::new(),
        };
        let held = |one: Option<&Bound<'_, Self>>| one.map(|one| Arc::clone(&one.get().trace));
        let (a, b) = (held(a), held(b));
        let made = py.detach(|| {
            let shape = shape
                .map(|bytes| trace::read_shape(&name, bytes))
                .transpose()?;
            let sources = trace::Sources {
                a: a.as_deref(),
                b: b.as_deref(),
                shape: shape.as_ref(),
            };
            Ok::<_, trace::TraceError>(trace::make(&spec, sources, seed))
        });
        Ok(Self::new(made.map_err(wrong)?))
    }

    #[staticmethod]
    #[pyo3(signature = (name, arrival_s, prompt_tokens, output_tokens, tenant=None, priority=None))]
    fn of(
        py: Python<'_>,
        name: String,
        arrival_s: &Bound<'_, PyAny>,
        prompt_tokens: &Bound<'_, PyAny>,
        output_tokens: &Bound<'_, PyAny>,
        tenant: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let times = PyBuffer::<f64>::get(arrival_s)?.to_vec(py)?;
        let prompts = numbers(prompt_tokens)?;
        let outputs = numbers(output_tokens)?;
        let tenants = tenant.map(numbers).transpose()?;
        let priorities = priority.map(numbers).transpose()?;
        let count = times.len();
        let same = |other: &[i64]| other.len() == count;
        let all = [&prompts, &outputs]
            .into_iter()
            .chain(&tenants)
            .chain(&priorities);
        if !all.into_iter().all(|column| same(column)) {
            return Err(wrong("the columns differ in length"));
        }
        let mut requests = Vec::with_capacity(count);
        for at in 0..count {
            requests.push(TraceRequest {
                arrival: trace::micros(times[at]).ok_or_else(|| {
                    let limit = trace::SECONDS_MAX;
                    wrong(format!(
                        "arrival_s[{at}] is {}, must be 0 to {limit:e} seconds",
                        times[at]
                    ))
                })?,
                prompt_tokens: tokens("prompt_tokens", at, prompts[at])?,
                output_tokens: tokens("output_tokens", at, outputs[at])?,
                tenant: narrow("tenant", at, tenants.as_ref().map_or(0, |all| all[at]))?,
                priority: narrow("priority", at, priorities.as_ref().map_or(0, |all| all[at]))?,
                key: None,
                blocks: Arc::from([]),
            });
        }
        requests.sort_by_key(|request| request.arrival);
        Ok(Self::new(Trace {
            name,
            block_tokens: 0,
            requests,
        }))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.trace.name
    }

    fn __len__(&self) -> usize {
        self.trace.requests.len()
    }

    fn scaled(&self, py: Python<'_>, factor: f64, seed: u64) -> PyResult<Self> {
        if !(factor > 0.0 && factor <= trace::FACTOR_MAX) {
            let limit = trace::FACTOR_MAX;
            return Err(wrong(format!(
                "a rate factor of {factor} is not above 0 and at most {limit}"
            )));
        }
        let rows = self.trace.requests.len() as f64 * factor;
        if rows > trace::ROWS_MAX as f64 {
            let limit = trace::ROWS_MAX;
            return Err(wrong(format!(
                "a rate factor of {factor} makes {rows:.0} requests, more than {limit}"
            )));
        }
        Ok(Self::new(
            py.detach(|| trace::scale(&self.trace, factor, seed)),
        ))
    }

    fn first_seconds(&self, seconds: f64) -> Self {
        Self::new(trace::first_seconds((*self.trace).clone(), seconds))
    }

    /// The same requests, ordered by keys in microseconds, one each.
    fn with_keys(&self, keys: &Bound<'_, PyAny>) -> PyResult<Self> {
        let keys = numbers(keys)?;
        let mut made = (*self.trace).clone();
        if keys.len() != made.requests.len() {
            return Err(wrong("the columns differ in length"));
        }
        for (request, key) in made.requests.iter_mut().zip(keys) {
            request.key = Some(key);
        }
        Ok(Self::new(made))
    }

    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Columns<'py>> {
        let rows = &self.trace.requests;
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
            ("priority", column(py, rows, |row| i64::from(row.priority))?),
        ])
    }
}

fn numbers(buffer: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    PyBuffer::<i64>::get(buffer)?.to_vec(buffer.py())
}

fn tokens(field: &str, at: usize, value: i64) -> PyResult<u32> {
    let limit = trace::TOKENS_MAX;
    u32::try_from(value)
        .ok()
        .filter(|tokens| (1..=limit).contains(tokens))
        .ok_or_else(|| wrong(format!("{field}[{at}] is {value}, must be 1 to {limit}")))
}

fn narrow<T: TryFrom<i64>>(field: &str, at: usize, value: i64) -> PyResult<T> {
    T::try_from(value).map_err(|_| wrong(format!("{field}[{at}] is {value}, which does not fit")))
}

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

/// Runs `trace` on what `setup` (JSON) describes. `progress(ended, requests)` is called now and then;
/// what it raises ends the run.
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

/// (device, model, name of the timings) of every built-in calibration.
#[pyfunction]
pub(crate) fn sim_kinds() -> Vec<(&'static str, &'static str, &'static str)> {
    KINDS
        .iter()
        .map(|kind| (kind.device, kind.model, kind.timings))
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
