//! Settings: one record per component, each field declared once with unit, default and reason.
//!
//! Precedence: defaults < TOML file < `DOPD_*` environment < flags; see [`records`] for the fields.

pub mod records;
