//! The body of a request, within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    header::CONTENT_TYPE,
};

use crate::{
    config::records::HttpConfig,
    error::{Error, Reason},
};

/// Reads the whole body of a JSON request.
///
/// The media type is required: a web page can send anything else to a server on loopback without
/// the browser asking that server first.
pub(super) async fn json(request: Request<Incoming>, config: &HttpConfig) -> Result<Bytes, Error> {
    let media = request.headers().get(CONTENT_TYPE);
    let media = media.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = media.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "the content-type must be application/json";
        return Err(Error::new(Reason::UnsupportedValue, message).with_field("content-type"));
    }
    let body = request.into_body();
    let max = config.body_bytes_max;
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let patience = Duration::from_millis(config.read_timeout_ms);
    tokio::time::timeout(patience, collect(body, max))
        .await
        .unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} ms", patience.as_millis());
            Err(Error::new(Reason::ClientTooSlow, message))
        })
}

async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Error> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the body broke off: {error}");
            Error::new(Reason::Cancelled, message)
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > max {
            return Err(too_large(max));
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn too_large(max: usize) -> Error {
    let message = format!("the body is larger than {max} bytes");
    Error::new(Reason::BodyTooLarge, message)
}
