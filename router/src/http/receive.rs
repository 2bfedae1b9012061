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

/// What is read and thrown away of a body that is too large, in bytes.
const DISCARD_BYTES_MAX: usize = 64 << 20;
/// Silence of the client that ends it.
const DISCARD_PAUSE: Duration = Duration::from_millis(200);

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
    let (body, max) = (request.into_body(), config.body_bytes_max);
    let patience = Duration::from_millis(config.read_timeout_ms);
    tokio::time::timeout(patience, collect(body, max))
        .await
        .unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} ms", patience.as_millis());
            Err(Error::new(Reason::ClientTooSlow, message))
        })
}

async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Error> {
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(body, max).await);
    }
    let mut whole = BytesMut::new();
    while let Some(data) = data(&mut body).await? {
        if whole.len() + data.len() > max {
            return Err(too_large(body, max).await);
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// The next piece; `None` at the end.
async fn data(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the body broke off: {error}");
            Error::new(Reason::Cancelled, message)
        })?;
        // Trailers say nothing here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Reads on while the client goes on sending, before it refuses: a connection that is closed under
/// a client that still sends is reset, and the client never sees the answer. One that waits for the
/// answer first gets it after [`DISCARD_PAUSE`].
async fn too_large(mut body: Incoming, max: usize) -> Error {
    let mut discarded = 0;
    while discarded < DISCARD_BYTES_MAX
        && let Ok(Ok(Some(data))) = tokio::time::timeout(DISCARD_PAUSE, data(&mut body)).await
    {
        discarded += data.len();
    }
    let message = format!("the body is larger than {max} bytes");
    Error::new(Reason::BodyTooLarge, message)
}
