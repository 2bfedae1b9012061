//! Errors in OpenAI's shape, with the headers that its clients obey.

use std::time::Duration;

use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;

use super::stream::Body;
use crate::error::{Error, Reason, Retry};

/// Milliseconds to wait; finer than `retry-after`, read by OpenAI's clients.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// `false`: the same request would fail again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Hint where the error has none: long enough to spread clients, short enough not to waste time.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Envelope<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// `{"error": {...}}`.
pub(super) fn body(error: &Error) -> Vec<u8> {
    let row = error.reason.row();
    let envelope = Envelope {
        error: Detail {
            message: &error.message,
            r#type: row.kind,
            param: error.field.as_deref(),
            code: row.code,
        },
    };
    // Strings into a Vec: serializing cannot fail.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

/// The whole response.
pub(super) fn response(error: &Error) -> Response<Body> {
    let row = error.reason.row();
    let mut response = Response::new(Body::whole(body(error)));
    let status = StatusCode::from_u16(row.http);
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if error.reason == Reason::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    match row.retry {
        Retry::Never => {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        Retry::Later if matches!(row.http, 429 | 503) => {
            let wait = error.retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            headers.insert(RETRY_AFTER_MS, millis.into());
            headers.insert(RETRY_AFTER, millis.div_ceil(1_000).into());
        }
        Retry::Later => {}
    }
    response
}
