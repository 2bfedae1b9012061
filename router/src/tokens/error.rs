//! Why a model cannot be served: a start-up error, shown to whoever started the router.

use std::path::{Path, PathBuf};

/// A file of the model is missing, broken or of a kind that is not supported.
///
/// Separate from [`crate::error::Error`], whose rows are about requests: this one ends the start
/// with exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot load the model from {}: {problem}", path.display())]
pub struct ModelError {
    path: PathBuf,
    problem: String,
}

impl ModelError {
    /// `problem` is about `path`.
    pub fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}
