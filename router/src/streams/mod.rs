//! From a report's columns to the client's answer: which sink gets which tokens.
//!
//! Each front thread has one [`front::Front`]: the streams that were submitted on it ([`table`]),
//! the links of the workers that dialled it, and the way to the brain and to the other front
//! threads. `workers` and `dispatch` call in here; nothing in here calls up. Messages between
//! threads stand in [`messages`].
//!
//! Rules that keep it correct with any number of threads:
//! - one queue per front thread, whose receiver never awaits anything else, so that the brain and
//!   other front threads may wait for room in it;
//! - what one thread sends to another stays in order (one [`outbox::Outbox`] per thread);
//! - every seat of a stream has a number ([`key::Life`]); tokens count only if theirs is current.
pub mod deliver;
pub mod front;
pub mod key;
pub mod messages;
pub mod outbox;
pub mod prefix;
pub mod request;
pub mod sink;
pub mod table;
#[cfg(test)]
mod tests;
