//! A running request as its owner holds it.

/// Holds a request open: dropping it before the answer is complete cancels the request. `Send`, but to be dropped on the
/// front thread that submitted.
#[derive(Debug)]
pub struct Ticket {}
