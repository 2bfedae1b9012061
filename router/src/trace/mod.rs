//! Log lines: text or JSON, to standard error, filtered by target and level.
//!
//! Called once by `launch`. Prompts and answers are never logged.

mod gate;

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{ConfigError, Settings};

pub use gate::Gate;

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
    let layer = fmt::layer().with_writer(std::io::stderr);
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

/// The level of a filter that is one word, for local workers; a filter by target means nothing to
/// them.
pub fn plain_level(filter: &str) -> Option<&str> {
    ["error", "warn", "info", "debug", "trace"]
        .into_iter()
        .find(|level| *level == filter)
}
