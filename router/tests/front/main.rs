//! Both fronts through real sockets, with a player of canned tokens in dispatch's place.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, one that is skipped says so"
)]

mod auth;
mod client;
mod connections;
mod connections_http2;
mod cors;
mod drain;
mod fake;
mod framing;
mod grpc;
mod grpc_contract;
mod grpc_methods;
mod http_errors;
mod http_fields;
mod http_forms;
mod http_shapes;
mod http_stream;
mod quota;
mod service;
mod slo;
mod smollm2;
