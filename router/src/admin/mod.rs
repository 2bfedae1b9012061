//! The admin listener: `/metrics`, `/status`, `/health`, `/ready`.
//!
//! Runs on the main thread, so that it answers while the front threads are busy. Called by
//! `launch`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::Dispatch,
    metrics::{Format, Metrics},
    status::StatusPage,
};

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

/// Serves the pages on `listener` until `stop`.
pub async fn serve(
    listener: TcpListener,
    admin: Arc<Admin>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/status", get(status_page))
        .route("/health", get(health_page))
        .route("/ready", get(ready_page))
        .with_state(admin);
    axum::serve(listener, pages)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics_page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> impl IntoResponse {
    admin.metrics.set_fleet(&admin.dispatch.status().await);
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    (
        [(header::CONTENT_TYPE, format.content_type())],
        admin.metrics.page(format).await,
    )
}

async fn status_page(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    Json(StatusPage {
        model: &admin.model,
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: admin.started.elapsed().as_secs(),
        fleet: admin.dispatch.status().await,
    })
    .into_response()
}

async fn health_page() -> impl IntoResponse {
    Json(json!({"status": "ok"}))
}

async fn ready_page(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    if admin.dispatch.is_ready() {
        (StatusCode::OK, Json(json!({"status": "ready"})))
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"status": "no_worker"})),
        )
    }
}
