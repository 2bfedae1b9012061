//! The admin listener: `/metrics`, `/status`, `/health`, `/ready`, `/admin/explain`.
//!
//! Runs on the main thread, so that it answers while the front threads are busy. Called by
//! `launch`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    dispatch::Dispatch,
    listen::{self, Bounds, DEFECT, Handler, Stop, Versions},
    metrics::{Connection, Format, Metrics},
    status::StatusPage,
};

/// Open connections: scrapers and people, never clients.
const CONNECTIONS_MAX: usize = 256;
/// Concurrent requests of one HTTP/2 connection.
const STREAMS_MAX: u32 = 16;
/// Time for the first bytes of a connection and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two requests of a connection: longer than a scraper's interval.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Time without a byte going out after which a connection is cut.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Age at which a connection takes no more requests.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// Its label in metrics.
const FRONT: &str = "admin";

/// What the pages show.
#[derive(Debug)]
pub struct Admin {
    /// Asked for the fleet.
    pub dispatch: Dispatch,
    /// Rendered at `/metrics`.
    pub metrics: Metrics,
    /// Name of the served model.
    pub model: String,
    /// When the router was started.
    pub started: Instant,
}

/// Serves the pages on `listener` until `stop`. Needs a `LocalSet`.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, stop: Stop) {
    let bounds = Bounds {
        versions: Versions::Both,
        connections_max: CONNECTIONS_MAX,
        streams_max: STREAMS_MAX,
        head_timeout: HEAD_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        age_max: AGE_MAX,
        stall_timeout: STALL_TIMEOUT,
    };
    listen::serve(listener, bounds, admin, stop).await;
}

/// Why a request went where it went; without an id, the newest decisions.
const EXPLAIN: &str = "/admin/explain";

type Page = Response<Full<Bytes>>;

impl Handler for Arc<Admin> {
    type Body = Full<Bytes>;

    async fn answer(self, request: Request<Incoming>) -> Page {
        let mut response = match request.uri().path() {
            "/metrics" => self.metrics_page(request.headers()).await,
            "/status" => self.status_page().await,
            "/health" => self.health_page(),
            "/ready" => self.ready_page().await,
            path => match path.strip_prefix(EXPLAIN) {
                Some("") => self.explain_page("").await,
                Some(rest) if rest.starts_with('/') => self.explain_page(&rest[1..]).await,
                _ => as_json(StatusCode::NOT_FOUND, &json!({"status": "no such page"})),
            },
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            *response.body_mut() = Full::default();
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }

    fn defect(&self) -> Page {
        self.metrics.panicked();
        let page = json!({"status": DEFECT});
        as_json(StatusCode::INTERNAL_SERVER_ERROR, &page)
    }

    fn tick(&self, _: Instant) {}

    fn connected(&self) -> Connection {
        self.metrics.connection(FRONT)
    }

    fn turned_away(&self) {
        self.metrics.connection_refused(FRONT);
    }
}

impl Admin {
    async fn metrics_page(&self, headers: &HeaderMap) -> Page {
        self.metrics.set_fleet(&self.dispatch.status().await);
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::accepted(accept);
        let page = self.metrics.page(format).await;
        response(StatusCode::OK, format.content_type(), page.into())
    }

    async fn status_page(&self) -> Page {
        let page = StatusPage {
            model: &self.model,
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            fleet: self.dispatch.status().await,
        };
        as_json(StatusCode::OK, &page)
    }

    async fn explain_page(&self, label: &str) -> Page {
        let page = self.dispatch.explain(label).await;
        let status = if page.is_found() || label.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::NOT_FOUND
        };
        as_json(status, &page)
    }

    fn health_page(&self) -> Page {
        if self.dispatch.is_alive() {
            return as_json(StatusCode::OK, &json!({"status": "ok"}));
        }
        let page = json!({"status": "scheduler_stopped"});
        as_json(StatusCode::SERVICE_UNAVAILABLE, &page)
    }

    async fn ready_page(&self) -> Page {
        let readiness = self.dispatch.readiness();
        if readiness.is_ready() {
            return as_json(StatusCode::OK, &readiness);
        }
        let page = readiness.explained(self.dispatch.status()).await;
        as_json(StatusCode::SERVICE_UNAVAILABLE, &page)
    }
}

fn as_json(status: StatusCode, page: &impl Serialize) -> Page {
    // Strings and numbers into a Vec: serializing cannot fail.
    let bytes = serde_json::to_vec(page).unwrap_or_default();
    response(status, "application/json", bytes.into())
}

fn response(status: StatusCode, media: &'static str, body: Bytes) -> Page {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
