//! Traces for Python: read, made, scaled. Called by `python/dopd/sim`.

use std::sync::Arc;

use dopd_sim::{
    scenario::{Trace, TraceRequest},
    trace,
};
use pyo3::{buffer::PyBuffer, prelude::*};

use crate::columns::{Columns, column, signed, wrong};

/// Arrivals and lengths.
#[pyclass(frozen, module = "dopd._router")]
pub(crate) struct SimTrace {
    pub(crate) trace: Arc<Trace>,
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
