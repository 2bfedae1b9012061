//! Both fronts through real sockets, with a player of canned tokens in dispatch's place.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers fail and skip as its functions do"
)]

mod client;
mod fake;
mod grpc;
mod http_errors;
mod http_shapes;
mod http_stream;
mod smollm2;
