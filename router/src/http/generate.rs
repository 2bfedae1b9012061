//! The two routes that generate text.

use std::time::Duration;

use hyper::{
    Request, Response,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};

use super::{
    app::{App, REQUEST_ID},
    error,
    form::Form,
    receive,
    stream::{Body, EventWriter},
    whole::{Collector, Sender},
};
use crate::{
    auth::Caller,
    error::{Error, Reason},
    service::{Answer, Arrival, Head, Next, Prepared, Refusal, Wake, Wanted},
    trace,
    validate::{self, Endpoint, SloHead},
};

/// Longest time that the head of a stream waits for the first token. Until then a failure still
/// gets its own status; after it, the client is told by pings that the request is alive.
const HEAD_WAIT: Duration = Duration::from_secs(15);
/// Asks nginx not to collect events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers a request to `endpoint`.
pub(super) async fn respond(
    app: &App,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> Response<Body> {
    let arrival = match arrive(app, &request) {
        Ok(arrival) => arrival,
        Err(Refusal { id, error }) => return named(error::response(&error), id.as_deref()),
    };
    let reading = read(app, endpoint, request, &arrival);
    let result = match app.service.prepared(&arrival, reading).await {
        Ok((prepared, form)) => generate(app, &arrival, &prepared, form).await,
        Err(error) => Err(error),
    };
    let response = result.unwrap_or_else(|error| error::response(&error));
    named(response, Some(&arrival.id))
}

/// `response` under the name that its request has in the log.
fn named(mut response: Response<Body>, id: Option<&str>) -> Response<Body> {
    // Hexadecimal digits are a valid value.
    if let Some(Ok(id)) = id.map(HeaderValue::from_str) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn arrive(app: &App, request: &Request<Incoming>) -> Result<Arrival, Refusal> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();
    let traceparent = header("traceparent").unwrap_or_default().to_owned();
    let client_id = trace::client_id(header("x-client-request-id").or(header("x-request-id")));
    // Whoever comes past the gate without being named has no key to be named by.
    let caller = request.extensions().get::<Caller>().cloned();
    app.service.arrive(Head {
        caller: caller.unwrap_or_default(),
        traceparent,
        client_id,
    })
}

async fn read(
    app: &App,
    endpoint: Endpoint,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<(Prepared, Form), Error> {
    let service = &app.service;
    let slo_head = SloHead {
        asked: validate::slo_headers(request.headers())?,
        least: arrival.caller.slo_least,
    };
    let body = receive::json(request, app).await?;
    let bytes = body.bytes.len();
    let (model, limits) = (service.shared_model(), service.shared_limits());
    let (metrics, strict) = (service.metrics().clone(), app.config.strict);
    let deadline = service.deadline(arrival.at, None);
    let work = move || {
        let mut asked = validate::parse(endpoint, &body.bytes, &limits, &model)?;
        asked.params.slo_head = slo_head;
        metrics.fields_ignored(asked.params.ignored_fields);
        receive::check_known(asked.unknown.as_deref(), strict)?;
        let spec = validate::check(asked.params, &limits, &model)?;
        let form = Form::new(endpoint, asked.form, &spec);
        // The body's share of the memory is given back when its tokens are known.
        let prepared = Prepared::new(spec, &model, &limits);
        drop(body);
        prepared.map(|prepared| (prepared, form))
    };
    service.prepare(bytes, deadline, work).await
}

async fn generate(
    app: &App,
    arrival: &Arrival,
    prepared: &Prepared,
    form: Form,
) -> Result<Response<Body>, Error> {
    let wanted = Wanted {
        wake: if form.stream { Wake::Each } else { Wake::End },
        token_ids: form.token_ids || form.continuous_usage,
    };
    let answer = app.service.start(arrival, prepared, wanted)?;
    if form.stream {
        streamed(app, answer, form).await
    } else {
        whole(app, answer, form).await
    }
}

async fn streamed(app: &App, mut answer: Answer, form: Form) -> Result<Response<Body>, Error> {
    if let Ok(first) = tokio::time::timeout(HEAD_WAIT, answer.first()).await {
        first?;
    }
    let model = app.service.shared_model();
    let writer = EventWriter::new(form, model, &app.fingerprint, answer.id());
    let mut response = head(Body::events(answer, writer), "text/event-stream");
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

async fn whole(app: &App, mut answer: Answer, form: Form) -> Result<Response<Body>, Error> {
    let mut collector = Collector::new(form);
    while answer.next(&mut collector).await == Next::More {}
    let usage = match collector.outcome.take() {
        Some(outcome) => outcome?,
        None => return Err(Error::new(Reason::Internal, "the answer has no end")),
    };
    let (model, fingerprint) = (app.service.shared_model(), app.fingerprint.clone());
    let (bytes, id) = (collector.body_bytes(), answer.id().to_owned());
    let write = move || {
        let sender = Sender {
            model: &model,
            fingerprint: &fingerprint,
        };
        collector.body(sender, &id, usage)
    };
    let body = app.service.apart(bytes, write).await?;
    Ok(head(Body::whole(body), "application/json"))
}

fn head(body: Body, media: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
