//! dopd's simulator: discrete events around the very [`dopd_core::brain::Brain`] that serves.
//!
//! ```text
//! outcome = run(scenario)       a trace, a fleet, a policy, targets, faults, a seed
//! ```
//!
//! The same scenario gives the same bytes, on any machine. All times are simulated: whatever is
//! quoted from here is called so. `engine` drives the brain and carries out what it says; `worker`
//! is what it drives: step times from [`dopd_core::cost`], the choice of steps from
//! [`dopd_core::step`], pages, preemption, hand-off, prefix caches, stragglers, deaths. `trace`
//! reads and makes arrivals, `report` turns outcomes into figures. `tests/proofs` shows that it is
//! right.

mod calendar;
mod check;
mod engine;
mod error;
pub mod outcome;
pub mod policies;
pub mod report;
mod run;
pub mod scenario;
pub mod setup;
pub mod trace;
mod worker;

pub use self::{
    error::SimError,
    run::{Options, Progress, run, run_with},
};
