//! Routes that only show something.

use std::fmt::Write as _;

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{app::App, error, openapi, stream::Body};
use crate::{
    error::{Error, Reason},
    metrics::Format,
    status::StatusPage,
    tokens::ServedModel,
};

/// Of dopd.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: [ModelCard<'a>; 1],
}

#[derive(Serialize)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// What vLLM's tools read: the model that an adapter stands on. There are no adapters here.
    root: &'a str,
    parent: Option<()>,
    max_model_len: u32,
    /// `ready`, or `no_worker`: a model without workers stays listed.
    status: &'static str,
}

#[derive(Serialize)]
struct Flag {
    status: &'static str,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// `system_fingerprint`: changes with the model's files and with dopd's version.
pub(super) fn fingerprint(model: &ServedModel) -> String {
    let mut hash = Sha256::new();
    hash.update(VERSION);
    hash.update([0]);
    hash.update(&model.name);
    hash.update(model.model_hash.unwrap_or_default());
    let digest = hash.finalize();
    let mut name = "fp_".to_owned();
    for byte in &digest[..5] {
        // Writing into a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// A JSON object as a response.
pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => page(bytes, "application/json"),
        Err(failed) => {
            let message = format!("the page cannot be written: {failed}");
            error::response(&Error::new(Reason::Internal, message))
        }
    }
}

fn page(bytes: impl Into<Bytes>, media: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::whole(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn card(app: &App) -> ModelCard<'_> {
    let model = app.service.model();
    ModelCard {
        id: &model.name,
        object: "model",
        created: model.created,
        owned_by: "dopd",
        root: &model.name,
        parent: None,
        max_model_len: model.max_model_len,
        status: if app.service.is_ready() {
            "ready"
        } else {
            "no_worker"
        },
    }
}

/// `/v1/models`.
pub(super) fn models(app: &App) -> Response<Body> {
    json(&ModelList {
        object: "list",
        data: [card(app)],
    })
}

/// `/v1/models/NAME`.
pub(super) fn model(app: &App, name: &str) -> Response<Body> {
    if name == app.service.model().name {
        return json(&card(app));
    }
    let message = format!("only model {:?} is served here", app.service.model().name);
    error::response(&Error::new(Reason::ModelNotFound, message))
}

/// `/health`: the process and its scheduler live.
pub(super) fn health(app: &App) -> Response<Body> {
    if app.service.is_alive() {
        return json(&Flag { status: "ok" });
    }
    let mut response = json(&Flag {
        status: "scheduler_stopped",
    });
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

/// `/ready`: a request would be answered.
pub(super) async fn ready(app: &App) -> Response<Body> {
    let readiness = app.service.readiness();
    if readiness.is_ready() {
        return json(&readiness);
    }
    let mut response = json(&readiness.explained(app.service.status()).await);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

/// `/metrics`.
pub(super) async fn metrics(app: &App, accept: Option<&str>) -> Response<Body> {
    let metrics = app.service.metrics();
    metrics.set_fleet(&app.service.status().await);
    let format = Format::accepted(accept);
    page(
        metrics.page(format).await.into_bytes(),
        format.content_type(),
    )
}

/// `/status`.
pub(super) async fn status(app: &App) -> Response<Body> {
    json(&StatusPage {
        model: &app.service.model().name,
        version: VERSION,
        uptime_s: app.service.uptime().as_secs(),
        fleet: app.service.status().await,
    })
}

/// `/version`.
pub(super) fn version() -> Response<Body> {
    json(&Version { version: VERSION })
}

/// `/openapi.json`.
pub(super) fn openapi(app: &App) -> Response<Body> {
    let make = || openapi::page(app.service.model(), app.service.limits());
    page(app.openapi.get_or_init(make).clone(), "application/json")
}
