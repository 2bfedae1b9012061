//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use std::time::Instant;

use hyper::{Request, Response, body::Incoming};
use serde::Serialize;

use super::{app::App, error, logprobs, pages, receive, stream::Body};
use crate::{
    auth::{Caller, Lease},
    error::Error,
    service, validate,
};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// Token ids of a prompt or of a chat.
pub(super) async fn respond(app: &App, request: Request<Incoming>) -> Response<Body> {
    page(tokenize(app, request).await)
}

/// Text of token ids.
pub(super) async fn respond_back(app: &App, request: Request<Incoming>) -> Response<Body> {
    page(detokenize(app, request).await)
}

fn page(result: Result<impl Serialize, Error>) -> Response<Body> {
    match result {
        Ok(object) => pages::json(&object),
        Err(error) => error::response(&error),
    }
}

/// Counts the request as one of its caller's quota; what this gives is held until its end.
fn begin(request: &Request<Incoming>) -> Result<Lease, Error> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.unwrap_or_default().begin(Instant::now())
}

async fn tokenize(app: &App, request: Request<Incoming>) -> Result<Tokenized, Error> {
    let _lease = begin(&request)?;
    let body = receive::json(request, app).await?;
    let (model, limits) = (app.service.shared_model(), app.service.shared_limits());
    let (bytes, strict) = (body.bytes.len(), app.config.strict);
    let work = move || {
        let asked = validate::parse_tokenize(&body.bytes, &limits)?;
        receive::check_known(asked.unknown.as_deref(), strict)?;
        let spec = validate::check(asked.params, &limits, &model)?;
        let tokens = service::tokenize(&spec.prompt, spec.special_tokens, &model)?;
        let vocabulary = model.tokenizer.vocabulary();
        let text = |id: &u32| logprobs::token_name(vocabulary, *id);
        Ok(Tokenized {
            count: tokens.len(),
            max_model_len: model.max_model_len,
            token_strs: asked.token_strs.then(|| tokens.iter().map(text).collect()),
            tokens,
        })
    };
    let deadline = app.service.deadline(Instant::now(), None);
    app.service.prepare(bytes, deadline, work).await
}

async fn detokenize(app: &App, request: Request<Incoming>) -> Result<Detokenized, Error> {
    let _lease = begin(&request)?;
    let body = receive::json(request, app).await?;
    let model = app.service.shared_model();
    let (bytes, strict) = (body.bytes.len(), app.config.strict);
    let work = move || {
        let asked = validate::parse_detokenize(&body.bytes, &model)?;
        receive::check_known(asked.unknown.as_deref(), strict)?;
        let prompt = service::text_of(&asked.tokens, &model);
        Ok(Detokenized { prompt })
    };
    let deadline = app.service.deadline(Instant::now(), None);
    app.service.prepare(bytes, deadline, work).await
}
