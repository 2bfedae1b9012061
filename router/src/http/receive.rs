//! The body of a request, within bounds of size and time.

use std::{error::Error as _, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    header::CONTENT_TYPE,
};

use super::app::{App, ECHO_CHARS_MAX};
use crate::{
    error::{Error, Reason},
    service::Preparing,
};

/// What is read and thrown away of a body that is too large, in bytes.
const DISCARD_BYTES_MAX: usize = 64 << 20;
/// The same of a body that nobody asked for.
const UNWANTED_BYTES_MAX: usize = 1 << 20;
/// Silence of the client that ends it.
const DISCARD_PAUSE: Duration = Duration::from_millis(200);

/// A body that was read, with its share of the memory for bodies in preparation.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _share: Preparing,
}

/// Reads the whole body of a JSON request.
///
/// The media type is required: a web page can send anything else to a server on loopback without
/// the browser asking that server first.
pub(super) async fn json(request: Request<Incoming>, app: &App) -> Result<Received, Error> {
    let media = request.headers().get(CONTENT_TYPE);
    let media = media.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = media.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        discard(request.into_body(), app).await;
        let message = "the content-type must be application/json";
        return Err(Error::new(Reason::UnsupportedValue, message).with_field("content-type"));
    }
    let (body, max) = (request.into_body(), app.config.body_bytes_max);
    let patience = Duration::from_millis(app.config.read_timeout_ms);
    tokio::time::timeout(patience, collect(body, max, app.service.preparing()))
        .await
        .unwrap_or_else(|_| {
            let message = format!("the body did not arrive within {} ms", patience.as_millis());
            Err(Error::new(Reason::ClientTooSlow, message))
        })
}

/// Refuses a body with a field that nobody knows, if the server is strict.
pub(super) fn check_known(unknown: Option<&str>, strict: bool) -> Result<(), Error> {
    let Some(name) = unknown.filter(|_| strict) else {
        return Ok(());
    };
    let name: String = name.chars().take(ECHO_CHARS_MAX).collect();
    let message = format!("unknown field {name:?}; servers without --strict ignore it");
    Err(Error::new(Reason::InvalidValue, message).with_field(name))
}

/// Throws away a body that nobody asked for, so that the connection can go on.
pub(super) async fn discard(mut body: Incoming, app: &App) {
    let patience = Duration::from_millis(app.config.read_timeout_ms);
    let discarding = throw_away(&mut body, UNWANTED_BYTES_MAX);
    // Too much or too slow: the connection is closed instead.
    let _ = tokio::time::timeout(patience, discarding).await;
}

async fn collect(mut body: Incoming, max: usize, mut share: Preparing) -> Result<Received, Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(too_large(body, max).await);
    }
    if let Err(full) = share.announce(announced) {
        throw_away(&mut body, max).await;
        return Err(full);
    }
    let mut whole = BytesMut::new();
    while let Some(data) = data(&mut body).await? {
        if whole.len() + data.len() > max {
            return Err(too_large(body, max).await);
        }
        if let Err(full) = share.take(data.len()) {
            drop((whole, share));
            throw_away(&mut body, max).await;
            return Err(full);
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(Received {
                bytes: data,
                _share: share,
            });
        }
        whole.extend_from_slice(&data);
    }
    Ok(Received {
        bytes: whole.freeze(),
        _share: share,
    })
}

/// The next piece; `None` at the end.
async fn data(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        // Trailers say nothing here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// A body that ends too early is a client that left; one whose chunks cannot be read is a bad
/// request.
fn broken(error: &hyper::Error) -> Error {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    let is_unreadable = |cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        )
    };
    if let Some(cause) = cause.filter(|cause| is_unreadable(cause)) {
        let message = format!("the body's chunks cannot be read: {cause}");
        return Error::new(Reason::InvalidJson, message.to_lowercase());
    }
    Error::new(Reason::Cancelled, format!("the body broke off: {error}"))
}

/// Reads on while the client goes on sending, before it refuses: a connection that is closed under
/// a client that still sends is reset, and the client never sees the answer. One that waits for the
/// answer first gets it after [`DISCARD_PAUSE`].
async fn too_large(mut body: Incoming, max: usize) -> Error {
    throw_away(&mut body, DISCARD_BYTES_MAX).await;
    let message = format!("the body is larger than {max} bytes");
    Error::new(Reason::BodyTooLarge, message)
}

async fn throw_away(body: &mut Incoming, max: usize) {
    let mut discarded = 0;
    while discarded < max
        && let Ok(Ok(Some(data))) = tokio::time::timeout(DISCARD_PAUSE, data(body)).await
    {
        discarded += data.len();
    }
}
