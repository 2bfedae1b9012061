//! Where workers come from. So far one body: `embedded`, local processes that the router starts,
//! restarts and stops.
//!
//! Called by `launch`. The data path never waits for anything here: a worker that dies is noticed
//! by its stream.

pub mod embedded;
pub mod gpus;
