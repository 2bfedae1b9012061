//! What holds for a call of any method: its clock, its share of the memory for requests in
//! preparation, and the time-outs of both its bodies.
//!
//! tonic reads the message before a method is called, and knows no deadline of a stream; so the
//! clock begins here, with the head of the call.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    HeaderMap,
    body::{Body, Frame, SizeHint},
};
use parking_lot::Mutex;
use tokio::time::Sleep;
use tonic::Status;

use super::{status, timeout};
use crate::{
    auth::Caller,
    error::{Error, Reason},
    service::Preparing,
    validate::{self, SloHead},
};

/// Header with the W3C trace context.
const TRACEPARENT: &str = "traceparent";
/// Longest trace context that is passed on, in bytes; version 0 has 55.
const TRACEPARENT_BYTES_MAX: usize = 128;

/// A call, as its head tells of it. Methods find it among the extensions of their request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Who calls.
    pub(super) caller: Caller,
    /// When the head was read.
    pub(super) began: Instant,
    /// The client's `grpc-timeout`.
    pub(super) timeout: Option<Duration>,
    /// W3C trace context; empty: none.
    pub(super) traceparent: String,
    /// Targets in its metadata, and the least that its caller may ask for.
    pub(super) slo: SloHead,
    /// What its message takes, until the last clone is dropped.
    share: Share,
}

/// A call's share of the memory for requests in preparation.
type Share = Arc<Mutex<Preparing>>;

impl Call {
    /// Reads a head.
    pub(super) fn of(headers: &HeaderMap, caller: Caller, share: Preparing) -> Result<Self, Error> {
        let trace = headers
            .get(TRACEPARENT)
            .and_then(|value| value.to_str().ok());
        let trace = trace.filter(|trace| trace.len() <= TRACEPARENT_BYTES_MAX);
        let slo = SloHead {
            asked: validate::slo_headers(headers)?,
            least: caller.slo_least,
        };
        Ok(Self {
            caller,
            began: Instant::now(),
            timeout: timeout::of(headers)?,
            traceparent: trace.unwrap_or_default().to_owned(),
            slo,
            share: Arc::new(Mutex::new(share)),
        })
    }

    /// The message of this call, which must have come within `patience`.
    pub(super) fn request<B>(&self, inner: B, patience: Duration) -> Timed<B> {
        Timed {
            share: Some(Arc::clone(&self.share)),
            ..Timed::new(
                inner,
                Some(Instant::now() + patience),
                Late::Request(patience),
            )
        }
    }

    /// When the client stops waiting, if it said so.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.began.checked_add(self.timeout?)
    }
}

/// The client's deadline passed.
pub(super) fn overdue() -> Error {
    let message = "the deadline of the call passed before its answer was complete";
    Error::new(Reason::DeadlineExceeded, message)
}

/// A body with an end in time.
#[derive(Debug)]
pub(super) struct Timed<B> {
    inner: B,
    limit: Option<Pin<Box<Sleep>>>,
    /// Takes what comes.
    share: Option<Share>,
    what: Late,
    ended: bool,
}

/// What happens when the time is up.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// A request: the reader gets an error.
    Request(Duration),
    /// An answer: the client gets a status.
    Answer,
}

impl<B> Timed<B> {
    /// A conversation, which its client may continue at any time.
    pub(super) fn conversation(inner: B) -> Self {
        Self::new(inner, None, Late::Answer)
    }

    /// The body of an answer that ends at `deadline` with a status.
    pub(super) fn answer(inner: B, deadline: Option<Instant>) -> Self {
        Self::new(inner, deadline, Late::Answer)
    }

    fn new(inner: B, limit: Option<Instant>, what: Late) -> Self {
        Self {
            inner,
            limit: limit.map(|at| Box::pin(tokio::time::sleep_until(at.into()))),
            share: None,
            what,
            ended: false,
        }
    }

    /// Takes memory for `frame`, if it is of a message.
    fn take(&mut self, frame: &Frame<Bytes>) -> Result<(), Status> {
        let (Some(share), Some(data)) = (&self.share, frame.data_ref()) else {
            return Ok(());
        };
        let taken = share.lock().take(data.len());
        taken.map_err(|full| {
            self.ended = true;
            status::of(&full, None)
        })
    }
}

impl<B> Body for Timed<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // What is there goes first: an answer that knows of the deadline tells more.
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            let Some(frame) = frame else {
                return Poll::Ready(None);
            };
            let frame = frame.map_err(|error| Status::from_error(error.into()));
            let taken = frame.and_then(|frame| self.take(&frame).map(|()| frame));
            return Poll::Ready(Some(taken));
        }
        let is_late = |limit: &mut Pin<Box<Sleep>>| limit.as_mut().poll(cx).is_ready();
        if !self.limit.as_mut().is_some_and(is_late) {
            return Poll::Pending;
        }
        self.ended = true;
        Poll::Ready(Some(match self.what {
            Late::Request(patience) => {
                let millis = patience.as_millis();
                let message = format!("the message did not arrive within {millis} ms");
                Err(status::of(
                    &Error::new(Reason::ClientTooSlow, message),
                    None,
                ))
            }
            Late::Answer => {
                let mut trailers = HeaderMap::new();
                let written = status::of(&overdue(), None).add_header(&mut trailers);
                written.map(|()| Frame::trailers(trailers))
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
