//! Both fronts through real sockets, with a player of canned tokens in dispatch's place.

mod client;
mod fake;
mod grpc;
mod http_errors;
mod http_shapes;
mod http_stream;
mod smollm2;
