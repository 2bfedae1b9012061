//! Mock workers: the real worker protocol with a model that costs nothing.
//!
//! For tests and benches, never shipped. One process runs one worker (in place of `python -m
//! dopd.worker --mock`) or hundreds. [`seats`] is the reference implementation of the worker's
//! state tables, [`worker`] drives it.

mod attach;
pub mod backoff;
pub mod cli;
pub mod faults;
mod link;
pub mod model;
pub mod pages;
pub mod seats;
pub mod step;
pub mod worker;
