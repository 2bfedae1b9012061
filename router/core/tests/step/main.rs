//! What a worker computes next: rules one by one, whole runs, and vectors for Python.

#![expect(clippy::expect_used, reason = "a failed check ends a test")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of a few seconds"
)]

mod rules;
mod runs;
mod vectors;
