//! Connections of both fronts: accepting, bounds, time-outs, graceful end.
//!
//! One loop per front thread and port. A connection lives and dies on its thread; hyper drives it,
//! [`stall`] cuts it when its client stops reading. Called by `http` and `grpc`, which bring the
//! handler of a request.

pub(crate) mod greeting;
mod stall;

use std::{
    convert::Infallible,
    error,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::stall::StallGuard;
use crate::metrics::Connection;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Longest head of a request in bytes (HTTP/2), and the read buffer that bounds it (HTTP/1.1).
const HEADER_BYTES_MAX: u32 = 16 << 10;
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Windows of HTTP/2: what a client may send before we read.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What may wait per HTTP/2 stream for a client that does not read.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Pings to an HTTP/2 client, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the front is asked to look after what nobody polls.
const TICK: Duration = Duration::from_secs(1);

/// Which HTTP versions a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// HTTP/1.1, and HTTP/2 with prior knowledge.
    Both,
    /// HTTP/2 only.
    Http2,
}

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What is spoken.
    pub(crate) versions: Versions,
    /// Open connections per front thread; more are closed at once.
    pub(crate) connections_max: usize,
    /// Concurrent requests of one HTTP/2 connection.
    pub(crate) streams_max: u32,
    /// Time for the first bytes of a connection and for the head of a request to arrive.
    pub(crate) head_timeout: Duration,
    /// Time without a byte going out after which a connection is cut.
    pub(crate) stall_timeout: Duration,
}

/// Answers requests.
pub(crate) trait Handler: Clone + 'static {
    /// Body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn error::Error + Send + Sync>>> + 'static;

    /// Answers one request.
    fn answer(
        self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + 'static;

    /// Called about once a second.
    fn tick(&self, now: Instant);

    /// A connection was accepted; what this returns lives as long as it does.
    fn connected(&self) -> Connection;

    /// A connection was closed at once, because too many are open.
    fn turned_away(&self);
}

/// Spawns hyper's tasks on the front thread they belong to.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves until `stop`, then takes no new connection and finishes what runs. Needs a `LocalSet`.
pub(crate) async fn serve(
    listener: TcpListener,
    bounds: Bounds,
    handler: impl Handler,
    stop: CancellationToken,
) {
    let builder = Rc::new(builder(bounds));
    let connections = TaskTracker::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {
                handler.tick(Instant::now());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= bounds.connections_max => {
                let open = bounds.connections_max;
                handler.turned_away();
                tracing::warn!(open, "connection refused: too many are open");
            }
            Ok((stream, _)) => {
                let (builder, handler) = (Rc::clone(&builder), handler.clone());
                let counted = handler.connected();
                let run = connection(stream, bounds, builder, handler, stop.clone());
                connections.spawn_local(async move {
                    run.await;
                    drop(counted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    // Running answers still need their deadlines.
    let mut ended = pin!(connections.wait());
    loop {
        tokio::select! {
            () = &mut ended => return,
            _ = tick.tick() => handler.tick(Instant::now()),
        }
    }
}

fn builder(bounds: Bounds) -> auto::Builder<LocalExecutor> {
    let mut builder = auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(READ_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(bounds.streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    match bounds.versions {
        Versions::Both => builder,
        Versions::Http2 => builder.http2_only(),
    }
}

async fn connection(
    stream: TcpStream,
    bounds: Bounds,
    builder: Rc<auto::Builder<LocalExecutor>>,
    handler: impl Handler,
    stop: CancellationToken,
) {
    // Tokens are small writes that must leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let greeted = tokio::select! {
        () = stop.cancelled() => false,
        greeted = greeting::arrives(&stream, bounds.head_timeout) => greeted,
    };
    if !greeted {
        return;
    }
    let io = StallGuard::new(TokioIo::new(stream), bounds.stall_timeout);
    let service = service_fn(move |request| {
        let answer = handler.clone().answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut stopped = pin!(stop.cancelled_owned());
    let mut told = false;
    let ended = poll_fn(|cx| {
        if !told && stopped.as_mut().poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        // Clients leave in the middle of things all the time.
        tracing::debug!(%error, "a connection ended early");
    }
}
