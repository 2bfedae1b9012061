//! From a command line to a running router and back: the only room that knows all others.
//!
//! [`main`] is called by the binary `dopd-router` and, through `router/python`, by `dopd serve`. It
//! does not own the process: it never exits, leaves no thread of use behind, and gives its exit
//! code back.

mod banner;
mod cli;
mod console;
mod fronts;
mod habits;
mod holder;
mod listeners;
mod loading;
mod model;
mod outline;
mod policy;
mod replay;
mod roll;
mod serve;
mod settings;
mod start_up;
#[cfg(test)]
mod tests;
mod token;
mod warden;
mod watch;
mod workers;

use std::{fmt, path::PathBuf, sync::Arc};

use cli::Plan;

use crate::trace;

/// What [`GpuCount`] calls.
type Count = dyn Fn() -> Result<u32, String> + Send + Sync;

/// What [`WorkerTable`] calls.
type Ask = dyn Fn(&str) -> Result<String, String> + Send + Sync;

/// Python's half of the settings: told the table `[worker]` as JSON, it answers in JSON what it
/// makes of it (`python/dopd/cli/worker_table.py`).
#[derive(Clone)]
pub struct WorkerTable(Arc<Ask>);

impl WorkerTable {
    /// Wraps the function that asks Python.
    pub fn new(ask: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    fn ask(&self, table: &str) -> Result<String, String> {
        (self.0)(table)
    }
}

impl fmt::Debug for WorkerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerTable")
    }
}

/// Asks how many GPUs local workers find, which only Python can say
/// (`python/dopd/cli/gpus.py`).
#[derive(Clone)]
pub struct GpuCount(Arc<Count>);

impl GpuCount {
    /// Wraps the function that counts.
    pub fn new(count: impl Fn() -> Result<u32, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }
}

impl fmt::Debug for GpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GpuCount")
    }
}

/// How the router is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Command line without the program's name.
    pub argv: Vec<String>,
    /// Program and first arguments of a local worker; `None`: there is none, and `serve` says so.
    pub worker_command: Option<Vec<String>>,
    /// Names that MODEL may have, and where they are; `None`: known, not installed.
    pub known_models: Vec<(String, Option<PathBuf>)>,
    /// Python's half of the settings; `None`: `[worker]` is not looked at.
    pub worker_table: Option<WorkerTable>,
    /// GPUs that local workers find; `None`: they choose their device themselves.
    pub gpus: Option<GpuCount>,
    /// Name of the program in help texts.
    pub program: &'static str,
}

/// The commands and flags of `program` as JSON, for completion.
pub fn commands(program: &'static str) -> String {
    outline::outline(&cli::command(program)).to_string()
}

/// Runs one command; returns the exit code: 0 ended well, 1 failed, 2 usage or settings, 130
/// interrupted.
pub fn main(launch: &Launch) -> i32 {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let plan = match cli::parse(launch.program, &launch.argv, variables) {
        Ok(plan) => plan,
        Err(shown) => {
            // Help and usage errors go where clap sends them; a closed pipe is no failure.
            let _ = shown.error.print();
            return shown.code;
        }
    };
    let outcome = match &plan {
        Plan::Serve(plan) => serve::run(launch, plan),
        Plan::Config(plan) => settings::run(launch.worker_table.as_ref(), plan),
        Plan::Replay(plan) => replay::run(plan),
        Plan::Version => {
            console::say(&format!("dopd {}", env!("CARGO_PKG_VERSION")));
            Ok(console::OK)
        }
    };
    let code = outcome.unwrap_or_else(|failure| failure.show());
    trace::lines::flush();
    code
}
