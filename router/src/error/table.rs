//! The error table: one row per way in which a request can fail.
//!
//! `proto/dopd/v1/types.proto` holds the enum, `python/dopd/errors.py` the Python half;
//! `tests/contract` compares them.

use crate::wire::v1::ErrorReason;

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The request.
    Client,
    /// This server.
    Router,
    /// A worker.
    Worker,
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// After the hint.
    Later,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The enum value in the proto.
    pub wire: ErrorReason,
    /// Stable code: `error.code` in HTTP, `ErrorInfo.reason` in gRPC.
    pub code: &'static str,
    /// OpenAI's `error.type`.
    pub kind: &'static str,
    /// gRPC status.
    pub grpc: tonic::Code,
    /// HTTP status.
    pub http: u16,
    /// Who is at fault.
    pub origin: Origin,
    /// Whether a retry makes sense.
    pub retry: Retry,
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident $code:literal $kind:literal $grpc:ident $http:literal $origin:ident $retry:ident;)*) => {
        /// Why a request failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons, in the order of the proto.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its row.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        wire: ErrorReason::$name, code: $code, kind: $kind, grpc: tonic::Code::$grpc, http: $http,
                        origin: Origin::$origin, retry: Retry::$retry,
                    },)*
                }
            }
        }
    };
}

table! {
    /// Not JSON, or not of the right shape.
    InvalidJson "invalid_json" "invalid_request_error" InvalidArgument 400 Client Never;
    /// A value outside of its limits.
    InvalidValue "invalid_value" "invalid_request_error" InvalidArgument 400 Client Never;
    /// A known field that asks for something this server cannot do.
    UnsupportedValue "unsupported_value" "invalid_request_error" InvalidArgument 400 Client Never;
    /// Prompt plus answer do not fit.
    ContextLengthExceeded "context_length_exceeded" "invalid_request_error"
        InvalidArgument 400 Client Never;
    /// Another model than the one served.
    ModelNotFound "model_not_found" "invalid_request_error" NotFound 404 Client Never;
    /// No such route or method.
    NotFound "not_found" "invalid_request_error" NotFound 404 Client Never;
    /// The route has other HTTP methods.
    MethodNotAllowed "method_not_allowed" "invalid_request_error" Unimplemented 405 Client Never;
    /// Body or message over the limit.
    BodyTooLarge "body_too_large" "invalid_request_error" ResourceExhausted 413 Client Never;
    /// No valid key or token.
    Unauthenticated "unauthenticated" "authentication_error" Unauthenticated 401 Client Never;
    /// A valid key, but not for this.
    PermissionDenied "permission_denied" "permission_error" PermissionDenied 403 Client Never;
    /// A quota is used up.
    RateLimited "rate_limited" "rate_limit_error" ResourceExhausted 429 Client Later;
    /// Too many requests wait.
    QueueFull "queue_full" "overloaded_error" Unavailable 503 Router Later;
    /// No worker in time.
    NoWorker "no_worker" "overloaded_error" Unavailable 503 Router Later;
    /// Shutting down.
    Draining "draining" "overloaded_error" Unavailable 503 Router Later;
    /// The deadline passed.
    DeadlineExceeded "deadline_exceeded" "timeout_error" DeadlineExceeded 504 Router Later;
    /// The client went away.
    Cancelled "cancelled" "invalid_request_error" Cancelled 499 Client Never;
    /// A worker failed under the request.
    WorkerFailed "worker_failed" "server_error" Unavailable 503 Worker Later;
    /// Workers died under it too often.
    PoisonSuspect "poison_suspect" "server_error" Aborted 409 Worker Never;
    /// A defect of dopd.
    Internal "internal" "server_error" Internal 500 Router Later;
    /// The client is too slow.
    ClientTooSlow "client_too_slow" "invalid_request_error" DeadlineExceeded 408 Client Never;
    /// Missed its latency target and waited too long after it.
    SloLate "slo_late" "overloaded_error" Unavailable 503 Router Later;
    /// No order of work meets its latency target.
    SloUnmeetable "slo_unmeetable" "overloaded_error" Unavailable 503 Router Later;
}
