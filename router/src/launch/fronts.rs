//! The front threads: each a runtime of its own with a share of every listening socket.

use std::{
    io,
    net::TcpListener,
    num::NonZero,
    pin::pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

use super::{console::Failure, listeners::FrontListeners};
use crate::{
    auth::Gate,
    config::records::{GrpcConfig, HttpConfig},
    dispatch::Dispatch,
    drain::Stop,
    grpc, http,
    service::Service,
    workers::{self, Attachments},
};

/// Front threads that are chosen without being asked: one carries some 100,000 tokens a second.
const THREADS_DEFAULT_MAX: usize = 4;

/// How often the wait for front threads looks again.
const END_POLL: Duration = Duration::from_millis(5);

/// Threads for a setting of `threads`: 0 leaves a core to the brain.
pub(super) fn count(threads: usize) -> usize {
    if threads > 0 {
        return threads;
    }
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).clamp(1, THREADS_DEFAULT_MAX)
}

/// What every front thread serves.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) dispatch: Dispatch,
    pub(super) service: Arc<Service>,
    pub(super) attachments: Arc<Attachments>,
    pub(super) gate: Arc<Gate>,
    pub(super) http: HttpConfig,
    pub(super) grpc: GrpcConfig,
}

/// How a front thread's work ends.
#[derive(Clone, Debug, Default)]
pub(super) struct FrontStop {
    /// Clients: first drained, then ended.
    pub(super) clients: Stop,
    /// Worker streams end.
    pub(super) workers: CancellationToken,
}

/// One thread's own handles on the sockets.
struct Sockets {
    http: TcpListener,
    grpc: TcpListener,
    workers: TcpListener,
}

/// The running front threads.
pub(super) struct Fronts {
    threads: Vec<thread::JoinHandle<()>>,
    failed: mpsc::Receiver<String>,
    pub(super) stop: FrontStop,
}

impl Fronts {
    /// Starts `count` threads, which own the sockets from then on.
    pub(super) fn start(
        count: usize,
        listeners: FrontListeners,
        served: &Served,
    ) -> Result<Self, Failure> {
        let stop = FrontStop::default();
        // Each thread reports at most one failure, so a send never waits.
        let (report, failed) = mpsc::channel(count);
        let mut fronts = Self {
            threads: Vec::with_capacity(count),
            failed,
            stop,
        };
        for index in 0..count {
            let started = fronts.start_one(index, &listeners, served, &report);
            if let Err(error) = started {
                fronts.tell();
                return Err(Failure::new(format!(
                    "cannot start front thread {index}: {error}"
                )));
            }
        }
        // The threads' handles are the only ones left: when they close theirs, clients are refused.
        drop(listeners);
        Ok(fronts)
    }

    fn start_one(
        &mut self,
        index: usize,
        listeners: &FrontListeners,
        served: &Served,
        report: &mpsc::Sender<String>,
    ) -> io::Result<()> {
        let sockets = Sockets {
            http: listeners.http.another()?,
            grpc: listeners.grpc.another()?,
            workers: listeners.workers.another()?,
        };
        let (served, stop, report) = (served.clone(), self.stop.clone(), report.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || {
            let result = LocalSet::new().block_on(&runtime, serve(index, sockets, served, stop));
            if let Err(problem) = result {
                // Nobody listens any more: the router is stopping anyway.
                let _ = report.try_send(format!("front thread {index} failed: {problem}"));
            }
        };
        let thread = thread::Builder::new()
            .name(format!("dopd-front-{index}"))
            .spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The first failure of a front thread; waits forever if there is none. Cancel-safe.
    pub(super) async fn failure(&mut self) -> String {
        match self.failed.recv().await {
            Some(problem) => problem,
            // All threads are gone: only a panic does that before the stop.
            None if !self.stop.clients.end.is_cancelled() => "all front threads ended".to_owned(),
            None => std::future::pending().await,
        }
    }

    /// Tells all threads to end.
    fn tell(&self) {
        self.stop.clients.end.cancel();
        self.stop.workers.cancel();
    }

    /// Ends the threads and waits for them at most `limit`: a slow client may take longer to read
    /// the end of its answer.
    pub(super) async fn end(&mut self, limit: Duration) {
        self.tell();
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !self.threads.iter().all(thread::JoinHandle::is_finished)
        {
            tokio::time::sleep(END_POLL).await;
        }
        for thread in self.threads.drain(..) {
            if !thread.is_finished() {
                tracing::warn!("a front thread did not end in time; its connections are dropped");
            } else if thread.join().is_err() {
                tracing::error!("a front thread panicked");
            }
        }
    }
}

/// Everything one front thread does.
async fn serve(
    index: usize,
    sockets: Sockets,
    served: Served,
    stop: FrontStop,
) -> Result<(), String> {
    // First of all: from this call on the thread can submit.
    let streams = spawn_local(served.dispatch.front(index));
    if index == 0 {
        let vocab_size = served.service.model().vocab_size;
        spawn_local(served.dispatch.clone().canaries(vocab_size));
    }
    let listen = |socket| tokio::net::TcpListener::from_std(socket).map_err(|e| e.to_string());
    let service = served.service;
    let clients = stop.clients;
    let http = http::serve(
        listen(sockets.http)?,
        Arc::clone(&service),
        Arc::clone(&served.gate),
        served.http,
        clients.clone(),
    );
    let grpc = grpc::serve(
        listen(sockets.grpc)?,
        service,
        served.gate,
        served.grpc,
        clients,
    );
    let workers = workers::serve(listen(sockets.workers)?, served.attachments, stop.workers);
    let served = async {
        let ((), (), workers) = tokio::join!(http, grpc, workers);
        workers.map_err(|error| error.to_string())
    };
    both(streams, served).await
}

/// Waits for the end of both, but not for `served` if the streams' loop fails: without it every
/// request of this thread would wait for its deadline.
async fn both(
    mut streams: JoinHandle<()>,
    served: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let failed = |error: JoinError| format!("the loop of its streams: {error}");
    let mut served = pin!(served);
    tokio::select! {
        result = &mut served => {
            result?;
            streams.await.map_err(failed)
        }
        ended = &mut streams => {
            ended.map_err(failed)?;
            served.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_loop_that_fails_ends_its_thread() {
        let (gone, waits) = tokio::sync::oneshot::channel::<()>();
        let streams = tokio::spawn(async { waits.await.unwrap() });
        drop(gone);
        let problem = both(streams, pending()).await.unwrap_err();
        assert!(problem.contains("panicked"), "{problem}");
    }

    #[tokio::test]
    async fn a_loop_that_ends_well_leaves_connections_their_time() {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let streams = tokio::spawn(ready(()));
        let served = async move { stopped.await.map_err(|_| "cut off".to_owned()) };
        let ended = tokio::spawn(both(streams, served));
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        stop.send(()).unwrap();
        assert_eq!(ended.await.unwrap(), Ok(()));
    }
}
