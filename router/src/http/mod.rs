//! The OpenAI front: HTTP/1.1 and HTTP/2 (prior knowledge) on one port, hyper without a framework.
//!
//! Owns connections, routes and the shapes of OpenAI's bodies; everything about a request itself is
//! in `validate` and `service`. A streamed answer costs no task and no channel: its body polls the
//! request's outbox when hyper has room, and writes whatever waits there into one frame.

mod app;
mod error;
mod generate;
mod json;
mod listen;
mod logprobs;
mod pages;
mod receive;
mod shapes;
mod stall;
mod stream;
mod tokenize;
mod whole;

pub use self::listen::serve;
