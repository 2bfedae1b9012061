//! The gRPC front: `dopd.v1.InferenceService`, health and reflection on one port.
//!
//! Owns the shapes of `inference.proto` and gRPC's statuses; connections are `listen`'s, everything
//! about a request itself is in `validate` and `service`. tonic encodes and decodes; its own server
//! is not used, because its deadlines end at the head of a stream.

mod generate;
mod health;
mod params;
mod reflect;
mod status;
mod stream;
mod timeout;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Request, Response, body::Incoming};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, codegen::Service as _, service::Routes};

use self::{generate::Inference, health::Health};
use crate::{
    config::records::GrpcConfig,
    error::{Error, Reason},
    listen::{self, Bounds, Handler, Versions},
    service::Service,
    wire::v1::inference_service_server::InferenceServiceServer,
};

/// Open connections per front thread: each carries many calls.
const CONNECTIONS_MAX: usize = 4_096;
/// Time for a connection's first bytes; HTTP/2 has pings after them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop`, then takes no new connection and finishes what runs. Run it with
/// `spawn_local` on each front thread, with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    config: GrpcConfig,
    stop: CancellationToken,
) {
    let bounds = Bounds {
        versions: Versions::Http2,
        connections_max: CONNECTIONS_MAX,
        streams_max: config.streams_max,
        head_timeout: HEAD_TIMEOUT,
        stall_timeout: Duration::from_millis(service.limits().slow_reader_timeout_ms),
    };
    let (health, health_server) = Health::new(Arc::clone(&service)).await;
    let inference = InferenceServiceServer::new(Inference::new(Arc::clone(&service)))
        .max_decoding_message_size(config.message_bytes_max);
    let mut routes = Routes::new(inference).add_service(health_server);
    match reflect::servers() {
        Ok((v1, v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        Err(error) => tracing::error!(%error, "gRPC reflection is off"),
    }
    let front = Front {
        routes: routes.prepare(),
        service,
        message_bytes_max: config.message_bytes_max,
    };
    let watched = stop.clone();
    let serving = listen::serve(listener, bounds, front, stop);
    tokio::join!(serving, health.watch(watched));
}

#[derive(Clone, Debug)]
struct Front {
    routes: Routes,
    service: Arc<Service>,
    message_bytes_max: usize,
}

impl Handler for Front {
    type Body = Body;

    fn answer(self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + 'static {
        let mut routes = self.routes;
        let max = self.message_bytes_max;
        async move {
            match routes.call(request).await {
                Ok(response) => with_documented_status(response, max),
                Err(never) => match never {},
            }
        }
    }

    fn tick(&self, now: Instant) {
        self.service.sweep(now);
    }
}

/// tonic says OUT_OF_RANGE for a message over the limit, which no row of our table is; gRPC's own
/// word for it is RESOURCE_EXHAUSTED.
fn with_documented_status(response: Response<Body>, message_bytes_max: usize) -> Response<Body> {
    let status = Status::from_header_map(response.headers());
    if status.is_none_or(|status| status.code() != Code::OutOfRange) {
        return response;
    }
    let message = format!("the message is larger than {message_bytes_max} bytes");
    status::of(&Error::new(Reason::BodyTooLarge, message), None).into_http()
}
