//! How the router speaks to the person who started it: answers to standard output, the rest to
//! standard error.

use std::fmt;

use parking_lot::Mutex;

use crate::trace::lines;

/// Whether a line that is to be drawn over stands on the terminal.
static HAS_STATUS: Mutex<bool> = Mutex::new(false);
/// To the first column, and everything after it away.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Exit code of a run that ended as it should.
pub(super) const OK: i32 = 0;
/// Exit code of a failure.
pub(super) const FAILED: i32 = 1;
/// Exit code of wrong usage or settings.
pub(super) const USAGE: i32 = 2;
/// Exit code of a run that a signal cut short.
pub(super) const INTERRUPTED: i32 = 130;

/// Why a command ends without success; printed once, at the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    message: String,
    fix: Option<String>,
    code: i32,
}

impl Failure {
    /// Something went wrong.
    pub(super) fn new(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            fix: None,
            code: FAILED,
        }
    }

    /// The user asked for something that cannot be.
    pub(super) fn usage(message: impl fmt::Display) -> Self {
        Self {
            code: USAGE,
            ..Self::new(message)
        }
    }

    /// The same, with what helps.
    pub(super) fn with_fix(mut self, fix: impl fmt::Display) -> Self {
        self.fix = Some(fix.to_string());
        self
    }

    /// Shows it; returns the exit code.
    pub(super) fn show(&self) -> i32 {
        note(&self.to_string());
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.fix {
            Some(fix) => write!(f, "\n  fix: {fix}"),
            None => Ok(()),
        }
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::usage(error)
    }
}

/// Text on standard output.
pub(super) fn say(text: &str) {
    status("");
    lines::out(format!("{text}\n").as_bytes());
}

/// A line on standard error.
pub(super) fn note(text: &str) {
    let mut has_status = HAS_STATUS.lock();
    let clear = if *has_status { CLEAR_LINE } else { "" };
    *has_status = false;
    lines::err(format!("{clear}{text}\n").as_bytes());
}

/// A line that the next one is drawn over, on a terminal; an empty text takes it away.
pub(super) fn status(text: &str) {
    let mut has_status = HAS_STATUS.lock();
    if text.is_empty() && !*has_status {
        return;
    }
    *has_status = !text.is_empty();
    // Back to the first column: a log line, which knows nothing of this, begins there.
    lines::err(format!("{CLEAR_LINE}{text}\r").as_bytes());
}
