//! The OpenAI front: HTTP/1.1 and HTTP/2 (prior knowledge) on one port, hyper without a framework.
//!
//! Owns routes and the shapes of OpenAI's bodies; connections are `listen`'s, everything about a
//! request itself is in `validate` and `service`. A streamed answer costs no task and no channel:
//! its body polls the request's outbox when hyper has room, and writes whatever waits there into
//! one frame.

mod app;
mod cors;
mod error;
mod form;
mod generate;
mod json;
mod log;
mod logprobs;
mod openapi;
mod pages;
mod quota;
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

use hyper::{Request, Response, body::Incoming, header::HeaderValue};
use tokio::net::TcpListener;

pub use self::log::EventLog;
use self::{
    app::{App, REQUEST_ID},
    cors::Cors,
    stream::Body,
};
use crate::{
    auth::{Door, Gate},
    config::records::HttpConfig,
    error::{Error, Reason},
    listen::{self, Bounds, DEFECT, Handler, Stop, Versions},
    metrics::Connection,
    service::Service,
};

/// Longest time for the head of a request, whatever its body may take.
const HEAD_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Concurrent requests of one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_000;

/// Serves until `stop` ends it, then takes no new connection and finishes what runs. Run it with
/// `spawn_local` on each front thread, with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    gate: Arc<Gate>,
    config: HttpConfig,
    stop: Stop,
) {
    let bounds = Bounds {
        versions: Versions::Both,
        connections_max: config.connections_max,
        streams_max: STREAMS_MAX,
        head_timeout: Duration::from_millis(config.read_timeout_ms).min(HEAD_TIMEOUT_MAX),
        idle_timeout: Duration::from_millis(config.idle_timeout_ms),
        age_max: Duration::from_millis(config.connection_age_max_ms),
        stall_timeout: Duration::from_millis(service.limits().slow_reader_timeout_ms),
    };
    let cors = Rc::new(Cors::new(&config.cors_origins));
    let app = Rc::new(App::new(service, config));
    listen::serve(listener, bounds, Front { app, gate, cors }, stop).await;
}

#[derive(Clone, Debug)]
struct Front {
    app: Rc<App>,
    gate: Arc<Gate>,
    cors: Rc<Cors>,
}

impl Handler for Front {
    type Body = Body;

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        // A browser asks first without a key, and shows a page only answers that name its origin.
        let mut response = if let Some(response) = self.cors.preflight(&request) {
            response
        } else {
            let origin = self.cors.allowed(request.headers());
            let mut response = self.admitted(request).await;
            cors::mark(origin, response.headers_mut());
            response
        };
        self.name(&mut response);
        response
    }

    fn defect(&self) -> Response<Body> {
        self.app.service.metrics().panicked();
        let mut response = error::response(&Error::new(Reason::Internal, DEFECT));
        self.name(&mut response);
        response
    }

    fn tick(&self, now: Instant) {
        self.app.service.sweep(now);
    }

    fn connected(&self) -> Connection {
        self.app.service.metrics().connection("http")
    }

    fn turned_away(&self) {
        self.app.service.metrics().connection_refused("http");
    }
}

impl Front {
    /// Every answer has an id; that of a request is its own.
    fn name(&self, response: &mut Response<Body>) {
        let id = || HeaderValue::from_str(&self.app.service.name().ok()?).ok();
        if !response.headers().contains_key(REQUEST_ID)
            && let Some(id) = id()
        {
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }

    /// Answers whoever may come in.
    async fn admitted(&self, mut request: Request<Incoming>) -> Response<Body> {
        let (path, headers) = (request.uri().path(), request.headers());
        let caller = match self.gate.admit(Door::Http, path, headers) {
            Ok(caller) => caller,
            Err(error) => {
                self.app
                    .service
                    .metrics()
                    .auth_failed(error.reason.row().code);
                return error::response(&error);
            }
        };
        request.extensions_mut().insert(caller.clone());
        let mut response = self.app.answer(request).await;
        quota::tell(&caller, response.headers_mut());
        response
    }
}
