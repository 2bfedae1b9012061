//! The instrument is right: queues against theory, nothing lost, nothing made up, the same bytes.

mod by_hand;
mod capacity;
mod conservation;
mod determinism;
mod faults;
mod limits;
mod monotony;
mod policies;
mod prefixes;
mod queues;
mod reporting;
mod support;
