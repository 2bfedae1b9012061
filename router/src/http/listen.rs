//! Connections: accepting, bounds, graceful end.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{app::App, stall::StallGuard};
use crate::{config::records::HttpConfig, service::Service};

/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Longest head of a request in bytes (HTTP/2), and the read buffer that bounds it (HTTP/1.1).
const HEADER_BYTES_MAX: u32 = 16 << 10;
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Concurrent requests of one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_000;
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
/// How often answers that nobody polls are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Spawns hyper's tasks on the front thread they belong to.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves until `stop`, then takes no new connection and finishes what runs. Run it with
/// `spawn_local` on each front thread, with a clone of one listening socket.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    config: HttpConfig,
    stop: CancellationToken,
) {
    let builder = Rc::new(builder(&config));
    let stall = Duration::from_millis(service.limits().slow_reader_timeout_ms);
    let connections_max = config.connections_max;
    let app = Rc::new(App::new(service, config));
    let connections = TaskTracker::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            _ = sweep.tick() => {
                app.service.sweep(Instant::now());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= connections_max => {
                tracing::warn!(connections_max, "connection refused: too many are open");
            }
            Ok((stream, _)) => {
                let run = connection(stream, stall, &builder, &app, stop.clone());
                connections.spawn_local(run);
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
            _ = sweep.tick() => app.service.sweep(Instant::now()),
        }
    }
}

fn builder(config: &HttpConfig) -> auto::Builder<LocalExecutor> {
    let mut builder = auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.read_timeout_ms))
        .max_headers(HEADERS_MAX)
        .max_buf_size(READ_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}

fn connection(
    stream: TcpStream,
    stall: Duration,
    builder: &Rc<auto::Builder<LocalExecutor>>,
    app: &Rc<App>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + 'static {
    // Tokens are small writes that must leave at once.
    let nodelay = stream.set_nodelay(true);
    let (builder, app) = (Rc::clone(builder), Rc::clone(app));
    async move {
        if let Err(error) = nodelay {
            tracing::debug!(%error, "a connection ended before it began");
            return;
        }
        let io = StallGuard::new(TokioIo::new(stream), stall);
        let service = service_fn(move |request: Request<Incoming>| {
            let app = Rc::clone(&app);
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut stopped = pin!(stop.cancelled_owned());
        let mut told = false;
        let ended = poll_fn(|cx| {
            if !told && stopped.as_mut().poll(cx).is_ready() {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            match connection.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Err(error) = ended.await {
            // Clients leave in the middle of things all the time.
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
