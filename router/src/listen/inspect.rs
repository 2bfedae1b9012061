//! A connection whose incoming bytes are looked at before hyper reads them.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{
    greeting::Greeting,
    http1::{HEAD_END, Heads},
    http2::Frames,
};

/// What follows the bytes.
#[derive(Debug)]
enum Follow {
    Http1(Heads),
    Http2(Frames),
}

/// The connection. It also keeps the time of a head that has begun: hyper's own time-out runs from
/// the end of the request before, so it is that of an idle connection.
#[derive(Debug)]
pub(super) struct Inspected<T> {
    inner: T,
    follow: Follow,
    head_timeout: Duration,
    head: Option<Pin<Box<Sleep>>>,
    /// What is read behind a head that was refused.
    refused_end: &'static [u8],
}

impl<T> Inspected<T> {
    pub(super) fn new(inner: T, greeting: Greeting, head_timeout: Duration) -> Self {
        let follow = match greeting {
            Greeting::Http1 => Follow::Http1(Heads::default()),
            Greeting::Http2 => Follow::Http2(Frames::default()),
        };
        Self {
            inner,
            follow,
            head_timeout,
            head: None,
            refused_end: HEAD_END,
        }
    }

    /// An error once a head has been on its way for too long.
    fn watch_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Follow::Http1(heads) = &self.follow else {
            return Poll::Pending;
        };
        if !heads.is_in_head() {
            self.head = None;
            return Poll::Pending;
        }
        let limit = self.head_timeout;
        let head = self
            .head
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(head.as_mut().poll(cx));
        let message = format!("a head did not arrive within {} ms", limit.as_millis());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Inspected<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Follow::Http1(heads) = &this.follow
            && heads.is_refused()
        {
            // Once; then the stream is over.
            let end = std::mem::take(&mut this.refused_end);
            buffer.put_slice(end.get(..buffer.remaining()).unwrap_or(end));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Pending => return this.watch_head(cx),
            Poll::Ready(read) => read?,
        }
        let new = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        match &mut this.follow {
            Follow::Http1(heads) => {
                let readable = heads.see(new);
                if !heads.is_in_head() {
                    this.head = None;
                }
                buffer.set_filled(before + readable);
            }
            Follow::Http2(frames) => frames.see(new, Instant::now)?,
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Inspected<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
