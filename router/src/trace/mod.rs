//! What is told of single requests: log lines, text or JSON, to standard error; spans (`--otel`).
//!
//! Set up once by `launch`. Prompts and answers are in neither, at no level.

mod context;
mod gate;
pub mod lines;
mod spans;

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{ConfigError, Settings};

pub use self::{
    context::{TraceContext, TraceParent, client_id},
    gate::Gate,
    spans::{Finished, Value, export, is_on, shutdown, start},
};

/// Starts logging. In a process that logs already (a Python program that called `main` twice) the
/// first set-up stays.
pub fn init(settings: &Settings, no_color: bool) -> Result<(), ConfigError> {
    let log = &settings.config.log;
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| ConfigError::Value {
        path: "log.filter",
        value: format!("{:?}", log.filter),
        problem: format!(
            "allowed are levels and targets as in \"info,dopd_router=debug\": {error}"
        ),
        origin: settings.origin("log.filter").clone(),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    lines::start();
    let layer = fmt::layer().with_writer(|| lines::Log);
    let already = if log.format == "json" {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        let color = !no_color && std::io::stderr().is_terminal();
        registry
            .with(layer.with_ansi(color).with_target(false))
            .try_init()
    };
    if already.is_err() {
        tracing::debug!("logging was set up before; its filter and format stay");
    }
    Ok(())
}

/// The level of a filter that is one word, in the words of local workers; a filter by target means
/// nothing to them.
pub fn plain_level(filter: &str) -> Option<&'static str> {
    Some(match filter {
        "error" => "error",
        "warn" => "warning",
        "info" => "info",
        // They have no level below debug.
        "debug" | "trace" => "debug",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_one_that_workers_know() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            let theirs = plain_level(level).unwrap();
            assert!(["debug", "info", "warning", "error"].contains(&theirs));
        }
        assert_eq!(plain_level("info,dopd_router=debug"), None);
    }
}
