//! `/tokenize`, in vLLM's shape.

use hyper::{Request, Response, body::Incoming};
use serde::Serialize;

use super::{app::App, error, pages, receive, stream::Body};
use crate::{error::Error, validate};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Token ids of a prompt or of a chat.
pub(super) async fn respond(app: &App, request: Request<Incoming>) -> Response<Body> {
    match tokenize(app, request).await {
        Ok(tokenized) => pages::json(&tokenized),
        Err(error) => error::response(&error, None),
    }
}

async fn tokenize(app: &App, request: Request<Incoming>) -> Result<Tokenized, Error> {
    let body = receive::json(request, &app.config).await?;
    let (limits, model) = (app.service.limits(), app.service.model());
    let params = validate::parse_tokenize(&body, limits, model)?;
    let spec = validate::check(params, limits, model)?;
    let tokens = app.service.tokenize(&spec.prompt).await?;
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: model.max_model_len,
        tokens,
        token_strs: None,
    })
}
