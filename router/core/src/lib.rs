//! dopd's scheduler as one deterministic value.
//!
//! ```text
//! actions = brain.handle(now, event)
//! ```
//!
//! [`brain::Brain`] owns every decision: which request runs where, when it moves, what is refused.
//! It has no clock, no socket, no thread, no environment and no file: time, randomness and facts
//! come in with each [`event::Event`], decisions go out as [`action::Action`]s. The server and the
//! simulator drive the same value, so a recorded event log replays to the same decisions. Not here:
//! tokens (they flow past the brain), wires, processes.

pub mod action;
pub mod brain;
pub mod cost;
pub mod event;
pub mod fleet;
pub mod ids;
pub mod log;
pub mod policy;
pub mod request;
pub mod step;
pub mod units;
