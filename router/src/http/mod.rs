//! The OpenAI front: HTTP/1.1 and HTTP/2 (prior knowledge) on one port, hyper without a framework.
//!
//! Owns routes and the shapes of OpenAI's bodies; connections are `listen`'s, everything about a
//! request itself is in `validate` and `service`. A streamed answer costs no task and no channel:
//! its body polls the request's outbox when hyper has room, and writes whatever waits there into
//! one frame.

mod app;
mod error;
mod generate;
mod json;
mod logprobs;
mod openapi;
mod pages;
mod receive;
mod shapes;
mod stream;
mod tokenize;
mod whole;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Request, Response, body::Incoming};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{app::App, stream::Body};
use crate::{
    config::records::HttpConfig,
    listen::{self, Bounds, Handler, Versions},
    service::Service,
};

/// Concurrent requests of one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_000;

/// Serves until `stop`, then takes no new connection and finishes what runs. Run it with
/// `spawn_local` on each front thread, with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    config: HttpConfig,
    stop: CancellationToken,
) {
    let bounds = Bounds {
        versions: Versions::Both,
        connections_max: config.connections_max,
        streams_max: STREAMS_MAX,
        head_timeout: Duration::from_millis(config.read_timeout_ms),
        stall_timeout: Duration::from_millis(service.limits().slow_reader_timeout_ms),
    };
    let app = Rc::new(App::new(service, config));
    listen::serve(listener, bounds, app, stop).await;
}

impl Handler for Rc<App> {
    type Body = Body;

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        App::answer(&self, request).await
    }

    fn tick(&self, now: Instant) {
        self.service.sweep(now);
    }
}
