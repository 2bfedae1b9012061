//! dopd's router: one service behind an OpenAI front and a gRPC front, a brain that decides,
//! workers that dial in.
//!
//! Rooms, each calling only those below it:
//!
//! ```text
//! main -> http, grpc -> listen, service -> validate, auth, tokens, dispatch -> workers, cluster ->
//! streams
//!      -> wire, error, metrics, config
//! ```
//!
//! Threads: N front threads (one tokio `current_thread` runtime each) own connections, worker
//! streams and the sinks of answers; one brain thread owns [`dopd_core::brain::Brain`]. A token
//! travels from a worker's report to a client's socket without meeting a lock that anybody waits
//! for, and without the brain.

pub mod admin;
pub mod auth;
pub mod cluster;
pub mod config;
pub mod dispatch;
pub mod drain;
pub mod error;
pub mod grpc;
pub mod http;
pub mod launch;
mod listen;
pub mod metrics;
pub mod service;
pub mod status;
pub mod streams;
pub mod tokens;
pub mod trace;
pub mod validate;
pub mod wire;
pub mod workers;

pub use launch::{GpuCount, Launch, WorkerTable, commands, main};
