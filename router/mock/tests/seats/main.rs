//! The seat table against the tables and invariants of handoff.md: cell by cell, then two workers
//! under random events.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests stop the test"
)]

mod bench;
mod care;
mod cells;
mod choice;
mod faults;
mod growth;
mod network;
mod random;
mod requests;
