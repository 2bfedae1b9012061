//! The gRPC front: `dopd.v1.InferenceService`, health and reflection on one port.
//!
//! Owns the shapes of `inference.proto` and gRPC's statuses; connections are `listen`'s, everything
//! about a request itself is in `validate` and `service`. tonic encodes and decodes; its own server
//! is not used, because its deadlines end at the head of a stream.

mod answer;
mod call;
mod health;
mod inference;
mod models;
mod params;
mod reflect;
mod status;
mod stream;
mod timeout;
mod tokenize;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Request, Response, body::Incoming};
use tokio::net::TcpListener;
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};

use self::{
    call::{Call, Timed},
    health::Health,
    inference::Inference,
};
use crate::{
    auth::{Door, Gate},
    config::records::GrpcConfig,
    error::{Error, Reason},
    listen::{self, Bounds, DEFECT, Handler, Stop, Versions},
    metrics::Connection,
    service::Service,
    wire::v1::inference_service_server::InferenceServiceServer,
};

/// Open connections per front thread: each carries many calls.
const CONNECTIONS_MAX: usize = 4_096;
/// Time for a connection's first bytes; HTTP/2 has pings after them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Start of the paths of both versions of reflection.
const REFLECTION: &str = "/grpc.reflection.";

/// Serves until `stop` ends it, then takes no new connection and finishes what runs. Run it with
/// `spawn_local` on each front thread, with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    gate: Arc<Gate>,
    config: GrpcConfig,
    stop: Stop,
) {
    let bounds = Bounds {
        versions: Versions::Http2,
        connections_max: CONNECTIONS_MAX,
        streams_max: config.streams_max,
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: HEAD_TIMEOUT,
        age_max: Duration::from_millis(config.connection_age_max_ms),
        stall_timeout: Duration::from_millis(service.limits().slow_reader_timeout_ms),
    };
    let (health, health_server) = Health::new(Arc::clone(&service)).await;
    let inference = InferenceServiceServer::new(Inference::new(Arc::clone(&service)))
        .max_decoding_message_size(config.message_bytes_max);
    let mut routes = Routes::new(inference).add_service(health_server);
    if config.reflection || is_loopback(&listener) {
        match reflect::servers() {
            Ok((v1, v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            Err(error) => tracing::error!(%error, "gRPC reflection is off"),
        }
    }
    let front = Front {
        routes: routes.prepare(),
        read_timeout: Duration::from_millis(config.read_timeout_ms),
        life_max: Duration::from_millis(service.limits().request_timeout_ms),
        message_bytes_max: config.message_bytes_max,
        service,
        gate,
    };
    let watched = stop.clone();
    let serving = listen::serve(listener, bounds, front, stop);
    tokio::join!(serving, health.watch(watched));
}

/// Whether only this machine can call: it may know what there is to call.
fn is_loopback(listener: &TcpListener) -> bool {
    listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback())
}

#[derive(Clone, Debug)]
struct Front {
    routes: Routes,
    service: Arc<Service>,
    gate: Arc<Gate>,
    message_bytes_max: usize,
    /// Time for the message of a call to arrive.
    read_timeout: Duration,
    /// Longest wait for the head of an answer.
    life_max: Duration,
}

impl Handler for Front {
    type Body = Timed<Body>;

    async fn answer(self, request: Request<Incoming>) -> Response<Timed<Body>> {
        let (path, headers) = (request.uri().path(), request.headers());
        let admitted = self.gate.admit(Door::Grpc, path, headers);
        if let Err(error) = &admitted {
            self.service.metrics().auth_failed(error.reason.row().code);
        }
        let call = admitted.and_then(|caller| Call::of(headers, caller, self.service.preparing()));
        match call {
            Ok(call) => self.run(call, request).await,
            Err(error) => refusal(&error),
        }
    }

    fn defect(&self) -> Response<Timed<Body>> {
        self.service.metrics().panicked();
        refusal(&Error::new(Reason::Internal, DEFECT))
    }

    fn tick(&self, now: Instant) {
        self.service.sweep(now);
    }

    fn connected(&self) -> Connection {
        self.service.metrics().connection("grpc")
    }

    fn turned_away(&self) {
        self.service.metrics().connection_refused("grpc");
    }
}

impl Front {
    async fn run(mut self, call: Call, request: Request<Incoming>) -> Response<Timed<Body>> {
        let is_reflection = request.uri().path().starts_with(REFLECTION);
        // Reflection is a conversation: its client may think between two questions.
        let longest = is_reflection.then(|| Instant::now() + self.life_max);
        let wait = call
            .timeout
            .map_or(self.life_max, |timeout| timeout.min(self.life_max));
        let deadline = call.deadline().or(longest);
        let mut request = request.map(|body| {
            if is_reflection {
                Timed::conversation(body)
            } else {
                call.request(body, self.read_timeout)
            }
        });
        request.extensions_mut().insert(call);
        let Ok(answered) = tokio::time::timeout(wait, self.routes.call(request)).await else {
            return refusal(&call::overdue());
        };
        let response = match answered {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let said = Status::from_header_map(response.headers());
        let ours = said.and_then(|said| status::of_stack(&said, self.message_bytes_max));
        let response = ours.map_or(response, Status::into_http);
        response.map(|body| Timed::answer(body, deadline))
    }
}

/// An answer that is only a status.
fn refusal(error: &Error) -> Response<Timed<Body>> {
    let response = status::of(error, None).into_http();
    response.map(|body: Body| Timed::answer(body, None))
}
