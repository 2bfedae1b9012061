//! Cuts an HTTP/2 answer whose client opens no window for it.
//!
//! Such a stream writes nothing, so its connection looks idle, and hyper waits without limit. An
//! answer's body notes since when it has been ready and not been asked for more; once a second
//! [`Streams::sweep`] ends those that have waited too long, each with a reset of its stream alone.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use slab::Slab;
use tokio_util::sync::CancellationToken;

/// Most bytes that h2 is given at once: it keeps what a window has no room for, and such a stream's
/// task may have ended.
const PIECE_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// The task of one stream, for the answer that is made in it.
    static STREAM: Rc<Stream>;
}

/// One request of an HTTP/2 connection.
#[derive(Debug, Default)]
struct Stream {
    /// Since when its answer could have been written.
    ready: Cell<Option<Instant>>,
    cut: CancellationToken,
}

/// All streams of a front thread and port.
#[derive(Debug, Default)]
pub(super) struct Streams {
    live: RefCell<Slab<Weak<Stream>>>,
}

impl Streams {
    /// `task` of a stream, which ends early if its client takes nothing.
    pub(super) async fn run<F: Future>(self: Rc<Self>, task: F) {
        let stream = Rc::new(Stream::default());
        let key = self.live.borrow_mut().insert(Rc::downgrade(&stream));
        let _place = Place { streams: self, key };
        let cut = stream.cut.clone();
        tokio::select! {
            biased;
            _ = STREAM.scope(stream, task) => {}
            () = cut.cancelled() => {}
        }
    }

    /// Ends the streams that have waited for longer than `patience`.
    pub(super) fn sweep(&self, now: Instant, patience: Duration) {
        for (_, stream) in &*self.live.borrow() {
            let Some(stream) = stream.upgrade() else {
                continue;
            };
            let since = stream.ready.get();
            if since.is_some_and(|since| now.saturating_duration_since(since) >= patience) {
                tracing::debug!("a stream was reset: its client opened no window for its answer");
                stream.cut.cancel();
            }
        }
    }
}

/// A stream's place; free again when its task ends.
struct Place {
    streams: Rc<Streams>,
    key: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.live.borrow_mut().try_remove(self.key);
    }
}

/// The body of an answer; tells its stream when it waits for its client.
#[derive(Debug)]
pub(super) struct Told<B> {
    inner: B,
    stream: Option<Rc<Stream>>,
    /// What is left of a long frame.
    rest: Bytes,
}

impl<B> Told<B> {
    /// The body of an answer that is made in the task of a stream, or on HTTP/1.1.
    pub(super) fn new(inner: B) -> Self {
        let stream = STREAM.try_with(Rc::clone).ok();
        let rest = Bytes::new();
        let told = Self {
            inner,
            stream,
            rest,
        };
        told.tell(Some(Instant::now()));
        told
    }

    fn tell(&self, ready: Option<Instant>) {
        if let Some(stream) = &self.stream {
            stream.ready.set(ready);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Told<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut frame = if self.rest.is_empty() {
            Pin::new(&mut self.inner).poll_frame(cx)
        } else {
            Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))))
        };
        // A body that has nothing to say waits for a worker, not for its client.
        self.tell(frame.is_ready().then(Instant::now));
        if self.stream.is_some()
            && let Poll::Ready(Some(Ok(whole))) = &mut frame
            && let Some(data) = whole.data_mut()
            && data.len() > PIECE_BYTES
        {
            self.rest = data.split_off(PIECE_BYTES);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
