//! The back of the router over real connections: scripted workers on loopback, sinks that record.
//!
//! One binary, so that it is linked once. Nothing here sleeps: every wait is for a condition, with
//! a bound that only a broken router reaches.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod attach;
mod cancel;
mod ejection;
mod faults;
mod handoff;
mod lies;
mod live;
mod prompt;
mod requests;
mod storm;
mod support;
mod threads;
