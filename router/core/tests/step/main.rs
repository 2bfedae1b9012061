//! What a worker computes next: rules one by one, whole runs, and vectors for Python.

#![expect(clippy::expect_used, reason = "a failed check ends a test")]

mod vectors;
