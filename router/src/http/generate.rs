//! The two routes that generate text.

use std::time::Duration;

use hyper::{
    Request, Response,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};

use super::{
    app::App,
    error::{self, REQUEST_ID},
    receive,
    stream::{Body, EventWriter},
    whole::Collector,
};
use crate::{
    auth::Caller,
    error::{Error, Reason},
    service::{Answer, Arrival, Next, Wake, Wanted},
    trace,
    validate::{self, ChatOrText, Endpoint, Spec},
};

/// Longest time that the head of a stream waits for the first token. Until then a failure still
/// gets its own status; after it, the client is told by pings that the request is alive.
const HEAD_WAIT: Duration = Duration::from_secs(15);
/// Asks nginx not to collect events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How an answer is to be written.
#[derive(Clone, Copy, Debug)]
struct Form {
    endpoint: Endpoint,
    stream: bool,
    include_usage: bool,
    choices: usize,
}

/// Answers a request to `endpoint`.
pub(super) async fn respond(
    app: &App,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> Response<Body> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();
    let traceparent = header("traceparent").unwrap_or_default().to_owned();
    let client_id = trace::client_id(header("x-client-request-id").or(header("x-request-id")));
    // Whoever comes past the gate without being named has no key to be named by.
    let caller = request.extensions().get::<Caller>().cloned();
    let arrival = match app.service.arrive(caller.unwrap_or_default(), traceparent) {
        Ok(mut arrival) => {
            arrival.client_id = client_id;
            arrival
        }
        Err(error) => return error::response(&error, None),
    };
    let id = arrival.id.clone();
    let result = match read(app, endpoint, request).await {
        Ok((spec, form)) => generate(app, arrival, spec, form).await,
        Err(error) => {
            app.service.refuse(&arrival, &error);
            Err(error)
        }
    };
    result.unwrap_or_else(|error| error::response(&error, Some(&id)))
}

async fn read(
    app: &App,
    endpoint: Endpoint,
    request: Request<Incoming>,
) -> Result<(Spec, Form), Error> {
    let body = receive::json(request, &app.config).await?;
    let (limits, model) = (app.service.limits(), app.service.model());
    let ChatOrText {
        params,
        stream,
        include_usage,
    } = validate::parse(endpoint, &body, limits, model)?;
    app.service.metrics().fields_ignored(params.ignored_fields);
    let spec = validate::check(params, limits, model)?;
    let form = Form {
        endpoint,
        stream,
        include_usage,
        choices: spec.choices as usize,
    };
    Ok((spec, form))
}

async fn generate(
    app: &App,
    arrival: Arrival,
    spec: Spec,
    form: Form,
) -> Result<Response<Body>, Error> {
    let wanted = Wanted {
        wake: if form.stream { Wake::Each } else { Wake::End },
        token_ids: false,
    };
    let answer = app.service.submit(arrival, spec, wanted).await?;
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
    let id = answer.id().to_owned();
    let writer = EventWriter::new(
        form.endpoint,
        app.service.shared_model(),
        &app.fingerprint,
        &id,
        form.choices,
        form.include_usage,
    );
    let mut response = head(Body::events(answer, writer), "text/event-stream", &id);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

async fn whole(app: &App, mut answer: Answer, form: Form) -> Result<Response<Body>, Error> {
    let mut collector = Collector::new(form.choices);
    while answer.next(&mut collector).await == Next::More {}
    let usage = match collector.outcome.take() {
        Some(outcome) => outcome?,
        None => return Err(Error::new(Reason::Internal, "the answer has no end")),
    };
    let model = app.service.model();
    let id = answer.id();
    let body = collector.body(form.endpoint, model, &app.fingerprint, id, usage);
    Ok(head(Body::whole(body), "application/json", id))
}

fn head(body: Body, media: &'static str, id: &str) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}
