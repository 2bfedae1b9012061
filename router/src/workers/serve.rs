//! Connections of workers on one front thread.

use std::{sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Reason},
    listen::greeting::{self, Greeting},
    streams::front::Front,
    wire::worker::worker_service_server::WorkerServiceServer,
    workers::{Attachments, service::Service},
};

/// Largest message of a worker: a report of 65,536 seats is below 2 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Flow control window: more than a report, so that a worker never waits for credit.
const WINDOW_BYTES: u32 = 1 << 20;
/// Calls on one connection; a worker needs one.
const STREAMS_MAX: u32 = 4;
/// Bytes of a call's headers; a token and a few names.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Time for the first bytes of a connection, which hyper waits for without limit.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked whether it lives this often: its session has ended long before, by
/// its lease, but a half-open socket costs a place and a descriptor.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time to answer that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a failed accept: the usual cause, no file descriptors, does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections above `workers_max` that may exist, for workers that redial.
const CONNECTIONS_SPARE: usize = 64;

/// Runs hyper's tasks on the thread that accepted the connection.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves workers on `listener` until `stop`; run it once on each front thread (`spawn_local`,
/// after [`crate::dispatch::Dispatch::front`] was called there) with a clone of the listening
/// socket.
pub async fn serve(
    listener: TcpListener,
    attachments: Arc<Attachments>,
    stop: CancellationToken,
) -> Result<(), Error> {
    if Front::current().is_none() {
        return Err(Error::new(
            Reason::Internal,
            "workers are served on a thread that is no front thread",
        ));
    }
    let places = Arc::new(Semaphore::new(
        attachments
            .config
            .workers
            .workers_max
            .saturating_add(CONNECTIONS_SPARE),
    ));
    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accepting a worker's connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("too many connections of workers: one was closed");
            continue;
        };
        let service = Service::new(Arc::clone(&attachments));
        let stop = stop.clone();
        connections.spawn_local(async move {
            connection(socket, service, stop).await;
            drop(place);
        });
    }
    // Workers see the end of their streams and close every seat.
    connections.shutdown().await;
    Ok(())
}

/// One connection, until it or `stop` ends.
async fn connection(socket: TcpStream, service: Service, stop: CancellationToken) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY failed");
    }
    let greeting = greeting::arrives(&socket, GREETING_TIMEOUT).await;
    if greeting != Some(Greeting::Http2) {
        tracing::debug!("a connection to the worker port did not greet as HTTP/2 in time");
        return;
    }
    let service = WorkerServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    tokio::select! {
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(%error, "a worker's connection broke");
            }
        }
        () = stop.cancelled() => {}
    }
}
