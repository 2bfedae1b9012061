//! Python module `dopd._router`: the router's `main`, the cost model that mock workers sleep by,
//! the simulator.
//!
//! Called by `python/dopd/cli/native.py`, `python/dopd/engine/mock.py`, `python/dopd/sim`; types in
//! `python/dopd/_router.pyi`. Nothing is decided here.

mod brain;
mod columns;
mod sim;
mod timings;
mod trace;

use std::{collections::BTreeMap, path::PathBuf};

use dopd_router::{GpuCount, Launch, WorkerTable};
use pyo3::{exceptions::PyKeyboardInterrupt, prelude::*};

/// The module; kept small, because every worker imports it.
#[pymodule]
mod _router {
    #[pymodule_export]
    use super::brain::RawBrain;
    #[pymodule_export]
    use super::sim::{SimRun, sim_kinds, sim_policies, sim_prefill, sim_scenario, simulate};
    #[pymodule_export]
    use super::timings::{step_time, timings_json};
    #[pymodule_export]
    use super::trace::SimTrace;
    #[pymodule_export]
    use super::{commands, main};

    /// Version of the router, equal to that of the package.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "a name in Python")]
    const version: &str = env!("CARGO_PKG_VERSION");
}

/// The commands and flags of the router as JSON.
#[pyfunction]
fn commands() -> String {
    dopd_router::commands("dopd")
}

/// Runs `dopd ARGV...` in this process and returns its exit code. The interpreter is free
/// meanwhile.
#[pyfunction]
#[pyo3(signature = (argv, *, worker_command=None, known_models=None, worker_table=None, gpus=None))]
fn main(
    py: Python<'_>,
    argv: Vec<String>,
    worker_command: Option<Vec<String>>,
    known_models: Option<BTreeMap<String, Option<PathBuf>>>,
    worker_table: Option<Py<PyAny>>,
    gpus: Option<Py<PyAny>>,
) -> PyResult<i32> {
    let launch = Launch {
        argv,
        worker_command,
        known_models: known_models.unwrap_or_default().into_iter().collect(),
        worker_table: worker_table.map(worker_half),
        gpus: gpus.map(gpu_count),
        program: "dopd",
    };
    let code = py.detach(|| dopd_router::main(&launch));
    // Python's own handler has noted the Ctrl-C that ended the router; it is dealt with.
    match py.check_signals() {
        Err(error) if !error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
        _ => Ok(code),
    }
}

/// Python's count of GPUs as the router calls it.
fn gpu_count(function: Py<PyAny>) -> GpuCount {
    GpuCount::new(move || {
        Python::attach(|py| function.call0(py)?.extract::<u32>(py))
            .map_err(|error: PyErr| error.to_string())
    })
}

/// Python's half of the settings as the router calls it.
fn worker_half(function: Py<PyAny>) -> WorkerTable {
    WorkerTable::new(move |table| {
        Python::attach(|py| function.call1(py, (table,))?.extract::<String>(py))
            .map_err(|error: PyErr| error.to_string())
    })
}
