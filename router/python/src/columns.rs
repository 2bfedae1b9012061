//! Columns between Python and Rust, as buffers of 8-byte values, and errors on their way out.

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

pub(crate) fn wrong(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Columns by name, each little-endian values of 8 bytes.
pub(crate) type Columns<'py> = Vec<(&'static str, Bound<'py, PyBytes>)>;

pub(crate) fn column<'py, T>(
    py: Python<'py>,
    rows: &[T],
    value: impl Fn(&T) -> i64,
) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, rows.len() * 8, |bytes| {
        for (row, to) in rows.iter().zip(bytes.chunks_exact_mut(8)) {
            to.copy_from_slice(&value(row).to_le_bytes());
        }
        Ok(())
    })
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
