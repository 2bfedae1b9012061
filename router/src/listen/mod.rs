//! Connections of both fronts: accepting, bounds, time-outs, graceful end.
//!
//! One loop per thread and port. A connection lives and dies on its thread; hyper drives it.
//! [`inspect`] looks at what comes in before hyper does: framing of HTTP/1.1 ([`http1`]), floods of
//! HTTP/2 ([`http2`]), heads that take too long. [`stall`] cuts a connection whose client stops
//! reading, [`stream`] a single answer. Called by `http`, `grpc` and `admin`, which bring the
//! handler of a request.

pub(crate) mod greeting;
mod http1;
mod http2;
mod inspect;
mod stall;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    convert::Infallible,
    error,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::{
    Request, Response, Version,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    greeting::Greeting,
    inspect::Inspected,
    stall::StallGuard,
    stream::{Streams, Told},
};
use crate::{metrics::Connection, trace::Gate};

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
/// Time for running requests of a connection that is old.
const AGE_GRACE: Duration = Duration::from_secs(600);
/// How much the ages of connections differ, as a share to both sides.
const AGE_SPREAD: f64 = 0.1;
/// For a client of HTTP/1.1 on a port of HTTP/2, and the time to send it.
const HTTP1_REFUSAL: &[u8] = b"HTTP/1.1 415 Unsupported Media Type\r\n\
    content-type: text/plain\r\ncontent-length: 60\r\nconnection: close\r\n\r\n\
    this port speaks gRPC (HTTP/2); the OpenAI API is elsewhere\n";
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the front is asked to look after what nobody polls.
const TICK: Duration = Duration::from_secs(1);

/// Failed accepts that get a log line, per second.
static ACCEPT_FAILURES: Gate = Gate::new(1);

/// What a client is told of a defect.
pub(crate) const DEFECT: &str = "the router met a defect of its own; its log tells where";

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
    /// Time between two requests of an HTTP/1.1 connection.
    pub(crate) idle_timeout: Duration,
    /// Age at which a connection takes no more requests: clients come back, and spread.
    pub(crate) age_max: Duration,
    /// Time without a byte going out after which a connection is cut.
    pub(crate) stall_timeout: Duration,
}

/// How a port ends. Each half is told once.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// New requests get an error from their handler; clients are told to go elsewhere: GOAWAY, and
    /// `connection: close` with every answer. The port stays open, so that those who come
    /// nevertheless are told, too.
    pub drain: CancellationToken,
    /// The port closes, and every connection as soon as its answers are out.
    pub end: CancellationToken,
}

/// Answers requests.
pub(crate) trait Handler: Clone + 'static {
    /// Body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn error::Error + Send + Sync>>>
        + Unpin
        + 'static;

    /// Answers one request.
    fn answer(
        self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + 'static;

    /// Answers a request in whose answer the code panicked: it alone fails.
    fn defect(&self) -> Response<Self::Body>;

    /// Called about once a second.
    fn tick(&self, now: Instant);

    /// A connection was accepted; what this returns lives as long as it does.
    fn connected(&self) -> Connection;

    /// A connection was closed at once, because too many are open.
    fn turned_away(&self);
}

/// Spawns hyper's tasks, one for each HTTP/2 stream, on the thread they belong to.
#[derive(Clone, Debug)]
struct LocalExecutor(Rc<Streams>);

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Rc::clone(&self.0).run(future));
    }
}

/// Serves until `stop`, then takes no new connection and finishes what runs. Needs a `LocalSet`.
pub(crate) async fn serve(
    listener: TcpListener,
    bounds: Bounds,
    handler: impl Handler,
    stop: Stop,
) {
    let streams = Rc::new(Streams::default());
    let builder = Rc::new(builder(bounds, Rc::clone(&streams)));
    let connections = TaskTracker::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.end.cancelled() => break,
            _ = tick.tick() => {
                look_after(&handler, &streams, bounds);
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
                if let Some(unlogged) = ACCEPT_FAILURES.admit(Instant::now()) {
                    tracing::warn!(%error, unlogged, "accepting connections pauses");
                }
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
            _ = tick.tick() => look_after(&handler, &streams, bounds),
        }
    }
}

fn look_after(handler: &impl Handler, streams: &Streams, bounds: Bounds) {
    let now = Instant::now();
    handler.tick(now);
    streams.sweep(now, bounds.stall_timeout);
}

fn builder(bounds: Bounds, streams: Rc<Streams>) -> auto::Builder<LocalExecutor> {
    let mut builder = auto::Builder::new(LocalExecutor(streams));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.idle_timeout)
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
    stop: Stop,
) {
    // Tokens are small writes that must leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let greeting = tokio::select! {
        () = stop.end.cancelled() => None,
        greeting = greeting::arrives(&stream, bounds.head_timeout) => greeting,
    };
    let Some(greeting) = greeting else { return };
    if greeting == Greeting::Http1 && bounds.versions == Versions::Http2 {
        return refuse_http1(stream).await;
    }
    let inspected = Inspected::new(stream, greeting, bounds.head_timeout);
    let io = StallGuard::new(TokioIo::new(inspected), bounds.stall_timeout);
    let was_late = stop.drain.is_cancelled();
    let answered = Rc::new(Cell::new(false));
    let service = service_fn({
        let (drain, answered) = (stop.drain.clone(), Rc::clone(&answered));
        move |request| {
            answer(
                handler.clone(),
                request,
                drain.clone(),
                Rc::clone(&answered),
            )
        }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut ending = pin!(stop.end.cancelled_owned());
    let mut draining = pin!(stop.drain.cancelled_owned());
    let mut age = pin!(tokio::time::sleep(spread(bounds.age_max)));
    let (mut told, mut old, mut drains) = (false, false, false);
    let ended = poll_fn(|cx| {
        let is_ending = !told && ending.as_mut().poll(cx).is_ready();
        drains = drains || draining.as_mut().poll(cx).is_ready();
        // HTTP/1.1 is told with its next answer: its idle connection may carry a request just now.
        // One that came late hears its first answer, too.
        let is_draining = drains && greeting == Greeting::Http2 && (!was_late || answered.get());
        let is_old = !old && age.as_mut().poll(cx).is_ready();
        if is_old {
            // From now on it is the time that is given to what runs.
            old = true;
            age.as_mut().reset(tokio::time::Instant::now() + AGE_GRACE);
        } else if old && age.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !told && (is_ending || is_draining || is_old) {
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

async fn answer<H: Handler>(
    handler: H,
    request: Request<Incoming>,
    drain: CancellationToken,
    answered: Rc<Cell<bool>>,
) -> Result<Response<Told<H::Body>>, Infallible> {
    let version = request.version();
    let is_last = http1::closes(version, request.headers());
    // What a request shares with others is counters and queues, each whole between two statements.
    let guarded = AssertUnwindSafe(handler.clone().answer(request)).catch_unwind();
    let mut response = guarded.await.unwrap_or_else(|_| handler.defect());
    if is_last || (version < Version::HTTP_2 && drain.is_cancelled()) {
        http1::close(response.headers_mut());
    }
    answered.set(true);
    Ok(response.map(Told::new))
}

/// `age` up to a tenth more or less: connections that came together do not go together.
fn spread(age: Duration) -> Duration {
    // Without random bytes they do; that is not worth an error.
    let chance = getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX));
    age.mul_f64(1.0 - AGE_SPREAD + 2.0 * AGE_SPREAD * chance)
}

/// Tells a client of HTTP/1.1 that it came to the wrong port.
async fn refuse_http1(mut stream: TcpStream) {
    let told = async {
        stream.write_all(HTTP1_REFUSAL).await?;
        stream.shutdown().await
    };
    // It has not read for as long as this small answer needs: it never will.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, told).await;
}
