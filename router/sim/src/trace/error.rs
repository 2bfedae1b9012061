//! What is wrong with a trace, and where.

use std::fmt;

/// Longest piece of a file that a message repeats.
const SHOWN_CHARS_MAX: usize = 40;

/// A file that is no trace: `FILE:LINE:COLUMN: FIELD is VALUE, expected WHAT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    /// Name of the file, as the caller gave it.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// Character in the line, from 1; 0: the line as a whole.
    pub column: u64,
    /// Which field, or `file`, `line`.
    pub field: String,
    /// What is there; cut to 40 characters.
    pub value: String,
    /// What should be.
    pub expected: String,
}

impl TraceError {
    /// About the file as a whole.
    pub(super) fn of_file(file: &str, value: &str, expected: impl Into<String>) -> Self {
        Self::at(file, (0, 0), "the file", value, expected)
    }

    /// About one field.
    pub(super) fn at(
        file: &str,
        (line, column): (u64, u64),
        field: &str,
        value: &str,
        expected: impl Into<String>,
    ) -> Self {
        let mut shown: String = value.chars().take(SHOWN_CHARS_MAX).collect();
        if shown.len() < value.len() {
            shown.push_str("...");
        }
        Self {
            file: file.to_owned(),
            line,
            column,
            field: field.to_owned(),
            value: shown,
            expected: expected.into(),
        }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.file)?;
        if self.line > 0 {
            write!(to, ":{}", self.line)?;
        }
        if self.column > 0 {
            write!(to, ":{}", self.column)?;
        }
        let Self { field, value, .. } = self;
        if value.is_empty() {
            return write!(to, ": {field} is empty, expected {}", self.expected);
        }
        write!(to, ": {field} is {value:?}, expected {}", self.expected)
    }
}

impl std::error::Error for TraceError {}
