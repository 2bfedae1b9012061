//! The running router, seen from the main thread: it comes up, is announced, is watched, ends.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    banner::{Addresses, Banner, ReadyFile},
    console::{self, Failure},
    fronts::Fronts,
    listeners::Listener,
    loading::Loading,
    roll,
    warden::{self, Limits},
    workers as local,
};
use crate::{
    admin::{self, Admin},
    cluster::{
        embedded::{GivenUp, Supervisor, SupervisorConfig},
        gpus::GpuShare,
    },
    config::{Scope, Settings},
    dispatch::Dispatch,
    drain::{self, Asked, Drained, Signals, Stop},
    metrics::Metrics,
    status::FleetStatus,
};

/// Time for clients to read the end of their answers once the last has been made.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Time for local workers to say goodbye before their streams end.
const LEAVE_LIMIT: Duration = Duration::from_millis(100);

/// Time for everything to end after a second signal.
const AT_ONCE_LIMIT: Duration = Duration::from_millis(500);

/// What does not change while the router runs.
pub(super) struct Site<'a> {
    pub(super) settings: &'a Settings,
    pub(super) scope: Scope,
    pub(super) ready_file: Option<&'a Path>,
    pub(super) token_file: &'a Path,
    pub(super) addresses: Addresses,
    pub(super) dispatch: &'a Dispatch,
    pub(super) model: &'a str,
    pub(super) loading: &'a Loading,
    /// The GPU of each local worker that has one.
    pub(super) shares: BTreeMap<String, GpuShare>,
}

/// Everything that the main thread watches.
pub(super) struct Watch<'a> {
    pub(super) site: Site<'a>,
    pub(super) fronts: &'a mut Fronts,
    /// How local workers are run; `None`: there are none.
    pub(super) supervisor: Option<SupervisorConfig>,
    pub(super) metrics: &'a Metrics,
}

/// Why a phase ended before its time.
pub(super) enum End {
    Signal(&'static str),
    Failure(Failure),
}

/// The parts that can end a phase.
pub(super) struct Watched<'a> {
    dispatch: &'a Dispatch,
    fronts: &'a mut Fronts,
    signals: Signals,
    supervisor: Option<Supervisor>,
    limits: Limits,
    /// Whether local workers compute on GPUs, which have no room for a successor beside them.
    has_gpus: bool,
    /// The last rolling restart.
    roll: Option<AbortOnDropHandle<()>>,
}

impl Watch<'_> {
    /// Runs until a signal or a failure, then takes down what runs on this thread. Returns the exit
    /// code.
    pub(super) async fn run(self, admin: Admin, listener: &Listener) -> Result<i32, Failure> {
        let Watch {
            site,
            fronts,
            supervisor,
            metrics,
        } = self;
        let failed = |error: std::io::Error| Failure::new(format!("cannot start: {error}"));
        let signals = Signals::install().map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener.another().map_err(failed)?);
        // The pages show the drain, and end with the process.
        let pages = admin::serve(listener.map_err(failed)?, Arc::new(admin), Stop::default());
        let pages = tokio::task::spawn_local(pages);
        let stats = tokio::spawn(site.dispatch.clone().log_stats(metrics.clone()));
        let brain = tokio::spawn(site.dispatch.clone().watch_brain());
        let supervisor = supervisor.map(|config| {
            let specs = local::specs(
                site.settings,
                site.addresses.workers,
                site.model,
                &site.shares,
            );
            Supervisor::start(&config, specs, metrics)
        });
        let mut watched = Watched {
            dispatch: site.dispatch,
            fronts,
            signals,
            supervisor,
            limits: limits(site.settings),
            has_gpus: !site.shares.is_empty(),
            roll: None,
        };
        let warden = watched.guard();
        let outcome = site.live(&mut watched).await;
        // Requests that still run get their error now, not when their worker has gone.
        site.dispatch.shutdown();
        drop((watched.roll.take(), warden));
        let at_once = CancellationToken::new();
        if outcome == Ok(console::INTERRUPTED) {
            at_once.cancel();
        }
        take_down(&mut watched, &at_once).await;
        stats.abort();
        brain.abort();
        pages.abort();
        if at_once.is_cancelled() && outcome == Ok(console::OK) {
            return Ok(console::INTERRUPTED);
        }
        outcome
    }
}

impl Site<'_> {
    async fn live(&self, watched: &mut Watched<'_>) -> Result<i32, Failure> {
        let fleet = self.start_up(watched).await;
        self.loading.finish();
        let fleet = match fleet {
            Ok(fleet) => fleet,
            Err(End::Failure(failure)) => return Err(failure),
            Err(End::Signal(name)) => {
                console::note(&format!("{name} during start-up, stopping"));
                return Ok(console::INTERRUPTED);
            }
        };
        let ready_file = self.announce(&fleet)?;
        let end = self.attend(watched).await;
        drop(ready_file);
        self.dispatch.drain();
        watched.fronts.stop.clients.drain.cancel();
        match end {
            End::Failure(failure) => Err(failure),
            End::Signal(name) => Ok(self.drain(name, watched).await),
        }
    }

    /// Tells people and scripts that everything is up.
    fn announce(&self, fleet: &FleetStatus) -> Result<Option<ReadyFile>, Failure> {
        let banner = Banner {
            addresses: &self.addresses,
            model: self.model,
            is_mock: self.settings.config.cluster.mock,
            keys: self.settings.config.key.len(),
            workers: &fleet.workers,
            shares: &self.shares,
            token_file: self.token_file,
        };
        let host = self.addresses.http.ip();
        if !host.is_loopback() && banner.keys == 0 {
            tracing::warn!(
                "{host} is reachable from other machines, and nobody is asked for a key"
            );
        }
        let ready_file = self
            .ready_file
            .map(|path| ReadyFile::write(path, &banner))
            .transpose()?;
        console::say(&banner.text());
        Ok(ready_file)
    }

    /// Watches until something ends the router.
    async fn attend(&self, watched: &mut Watched<'_>) -> End {
        watched.next_end(Phase::Serving).await
    }

    /// Lets running requests end; returns the exit code.
    async fn drain(&self, signal: &str, watched: &mut Watched<'_>) -> i32 {
        let limit = Duration::from_millis(self.settings.config.limits.drain_timeout_ms);
        let active = self.dispatch.active();
        if active > 0 {
            console::note(&format!(
                "{signal}: no new requests; waiting up to {} s for {active} running ones; \
                 Ctrl-C again stops at once",
                limit.as_secs_f64()
            ));
        }
        let signals = &mut watched.signals;
        match drain::wait(|| self.dispatch.active(), limit, signals.end()).await {
            Drained::Complete => console::OK,
            Drained::TimedOut(left) => {
                console::note(&format!(
                    "{left} requests get an error, they did not end within {} s \
                     (limits.drain_timeout_ms)",
                    limit.as_secs_f64()
                ));
                console::OK
            }
            Drained::Interrupted(left) => {
                console::note(&format!("stopping at once, {left} requests cut off"));
                console::INTERRUPTED
            }
        }
    }
}

/// Time that local workers have.
fn limits(settings: &Settings) -> Limits {
    let cluster = &settings.config.cluster;
    Limits {
        start: Duration::from_millis(cluster.start_timeout_ms),
        hang: Duration::from_millis(cluster.hang_timeout_ms),
    }
}

/// What a worker that is given up means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The start fails: who asked for four workers wants four.
    StartUp,
    /// The others go on.
    Serving,
}

impl Watched<'_> {
    /// Looks after local workers from now on, if there are any and that is wanted.
    fn guard(&self) -> Option<AbortOnDropHandle<()>> {
        let supervisor = self.supervisor.as_ref()?;
        let is_wanted = !self.limits.hang.is_zero();
        let guard = warden::guard(self.dispatch.clone(), supervisor.places(), self.limits);
        is_wanted.then(|| AbortOnDropHandle::new(tokio::spawn(guard)))
    }

    /// Begins to restart the local workers, unless that goes on already.
    fn restart(&mut self, phase: Phase) {
        let Some(supervisor) = &self.supervisor else {
            return tracing::warn!("SIGHUP: there are no local workers to restart");
        };
        let is_rolling = (self.roll.as_ref()).is_some_and(|roll| !roll.is_finished());
        if phase == Phase::StartUp || is_rolling {
            return tracing::warn!("SIGHUP: the workers are being started, nothing to restart");
        }
        let roll = roll::roll(
            self.dispatch.clone(),
            supervisor.places(),
            self.limits.start,
            self.has_gpus,
        );
        self.roll = Some(AbortOnDropHandle::new(tokio::spawn(roll)));
    }

    /// The next thing that ends `phase`. Cancel-safe.
    pub(super) async fn next_end(&mut self, phase: Phase) -> End {
        loop {
            let given_up = async {
                match &mut self.supervisor {
                    Some(supervisor) => (supervisor.next_given_up().await, supervisor.alive()),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::End(name) => return End::Signal(name),
                    Asked::Restart => self.restart(phase),
                },
                () = self.dispatch.stopped() => {
                    return End::Failure(Failure::new("the scheduler has stopped"));
                }
                problem = self.fronts.failure() => return End::Failure(Failure::new(problem)),
                (given_up, alive) = given_up => {
                    if phase == Phase::StartUp || alive == 0 {
                        return End::Failure(failure(&given_up, phase));
                    }
                    tracing::error!("{given_up}; {alive} local workers go on");
                }
            }
        }
    }
}

/// The cause in the worker's own words if it gave them, else its last lines.
fn failure(given_up: &GivenUp, phase: Phase) -> Failure {
    let last = if phase == Phase::Serving {
        ", and it was the last local worker"
    } else {
        ""
    };
    let lines = &given_up.last_lines;
    let words = lines
        .iter()
        .rev()
        .find_map(|line| line.split_once("error: "));
    if let Some((_, cause)) = words.filter(|_| given_up.is_for_good) {
        let name = &given_up.name;
        return Failure::usage(format!("worker {name} cannot run{last}: {cause}"))
            .with_fix(fix(cause));
    }
    let lines = lines
        .iter()
        .map(|line| format!("\n  [{}] {line}", given_up.name));
    let message = format!("{given_up}{last}{}", lines.collect::<Vec<_>>().concat());
    if given_up.is_for_good {
        Failure::usage(message)
    } else {
        Failure::new(message)
    }
}

/// What helps against a cause, by a word in it; the first that fits.
const FIXES: [(&str, &str); 8] = [
    (
        "kv-memory",
        "--kv-memory SIZE, for example 2GiB, or a smaller --max-model-len",
    ),
    (
        "out of memory",
        "fewer workers (--prefill, --decode), or a smaller --kv-memory",
    ),
    (
        "cascade-attention",
        "leave --cascade-attention out, or have the worker compute on a GPU with FlashInfer",
    ),
    // Before torch, which its message offers.
    (
        "attention",
        "pip install 'dopd[gpu]', or --attention torch, which is slow on a GPU",
    ),
    ("torch", "pip install 'dopd[worker]'"),
    ("dtype", "--dtype auto"),
    ("max-model-len", "a smaller --max-model-len"),
    (
        "max_batch_tokens",
        "[worker] in the settings file: dopd config check FILE",
    ),
];

fn fix(cause: &str) -> &'static str {
    let fits = FIXES.iter().find(|(word, _)| cause.contains(word));
    fits.map_or(
        "dopd doctor MODEL looks at model and machine",
        |(_, fix)| fix,
    )
}

/// Ends fronts and local workers, in order or `at_once`; a signal meanwhile makes it at once.
async fn take_down(watched: &mut Watched<'_>, at_once: &CancellationToken) {
    let Watched {
        fronts,
        supervisor,
        signals,
        ..
    } = watched;
    let in_order = async {
        fronts.stop.clients.end.cancel();
        // Told before their streams end, or they would dial again. Those that still have seats
        // give them up when their streams end.
        let streams = fronts.stop.workers.clone();
        let cut = async {
            tokio::time::sleep(LEAVE_LIMIT).await;
            streams.cancel();
        };
        if let Some(supervisor) = supervisor.take() {
            tokio::join!(supervisor.stop(at_once), cut);
        }
        // What ran has its end; its clients are given time to read it.
        fronts.end(FLUSH_LIMIT).await;
    };
    tokio::pin!(in_order);
    tokio::select! {
        biased;
        () = at_once.cancelled() => {}
        _ = signals.end() => at_once.cancel(),
        () = &mut in_order => return,
    }
    if tokio::time::timeout(AT_ONCE_LIMIT, in_order).await.is_err() {
        tracing::warn!("not everything ended within {AT_ONCE_LIMIT:?}; it ends with the process");
    }
}
