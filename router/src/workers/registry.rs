//! Who is attached, over all front threads: names, sessions, and what the first worker decided.

use std::collections::{HashMap, VecDeque};

use dopd_core::ids::SessionId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    wire::worker::{Hello, KvGeometry},
    workers::{AttachConfig, hello},
};

/// Processes that are remembered after their session ended in a step that hung.
const STUCK_MAX: usize = 256;

/// The attached workers. Locked when a worker comes or goes, never on the path of a report.
#[derive(Debug)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    workers: HashMap<String, Attached>,
    /// Hello of the worker that decided the fleet's geometry; kept as long as anyone is attached.
    first: Option<Hello>,
    next_session: u64,
    /// At most [`STUCK_MAX`], oldest first.
    stuck: VecDeque<Stuck>,
}

/// A process whose step did not end.
#[derive(Debug)]
struct Stuck {
    name: String,
    incarnation: u64,
    step: u64,
}

#[derive(Debug)]
struct Attached {
    session: SessionId,
    stop: CancellationToken,
}

/// A worker that may join.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Its session.
    pub(super) session: SessionId,
    /// Ends the session when another worker of this name joins.
    pub(super) stop: CancellationToken,
    /// The session that it replaced; the caller tells the brain.
    pub(super) replaced: Option<SessionId>,
    /// The step in which the same process hung when its last session was ended.
    pub(super) stuck_at: Option<u64>,
}

/// A worker that may not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Names both sides.
    pub(super) message: String,
    /// It may be different later.
    pub(super) retry: bool,
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self {
            message,
            retry: false,
        }
    }
}

impl Registry {
    /// Nobody is attached. Sessions count up from a random start, so that they differ between
    /// restarts of the router.
    pub(super) fn new(random: u32) -> Self {
        Self {
            inner: Mutex::new(Inner {
                workers: HashMap::new(),
                first: None,
                next_session: (u64::from(random) << 20) + 1,
                stuck: VecDeque::new(),
            }),
        }
    }

    /// Takes a checked worker in, in the place of an attached one of its name.
    pub(super) fn admit(
        &self,
        hello: &Hello,
        geometry: &KvGeometry,
        config: &AttachConfig,
    ) -> Result<Admitted, Refused> {
        hello::check_model(hello, geometry, config)?;
        let mut inner = self.inner.lock();
        let name = hello.worker.as_str();
        let others = inner.workers.len() - usize::from(inner.workers.contains_key(name));
        if others >= config.workers.workers_max {
            return Err(Refused {
                message: format!(
                    "worker {name:?} is one too many: {others} are attached, workers.workers_max \
                     is {}",
                    config.workers.workers_max
                ),
                retry: true,
            });
        }
        if others > 0
            && let Some(first) = &inner.first
        {
            hello::check_fleet(hello, first)?;
        } else {
            inner.first = Some(hello.clone());
        }
        let session = SessionId(inner.next_session);
        inner.next_session += 1;
        let stop = CancellationToken::new();
        let attached = Attached {
            session,
            stop: stop.clone(),
        };
        let replaced = inner.workers.insert(name.to_owned(), attached).map(|old| {
            old.stop.cancel();
            old.session
        });
        let stuck = inner.stuck.iter().position(|stuck| stuck.name == name);
        let stuck_at = stuck
            .and_then(|place| inner.stuck.remove(place))
            .filter(|stuck| stuck.incarnation == hello.incarnation)
            .map(|stuck| stuck.step);
        Ok(Admitted {
            session,
            stop,
            replaced,
            stuck_at,
        })
    }

    /// A session ended while its worker was in a step that hangs: if the same process dials again,
    /// it gets no work before it has made another step.
    pub(super) fn remember_stuck(&self, name: &str, incarnation: u64, step: u64) {
        let mut inner = self.inner.lock();
        if inner.stuck.len() >= STUCK_MAX {
            inner.stuck.pop_front();
        }
        inner.stuck.push_back(Stuck {
            name: name.to_owned(),
            incarnation,
            step,
        });
    }

    /// A session ended. Returns whether it was still the one of its name: if not, the worker that
    /// replaced it has told the brain.
    pub(super) fn remove(&self, name: &str, session: SessionId) -> bool {
        let mut inner = self.inner.lock();
        if inner.workers.get(name).is_none_or(|w| w.session != session) {
            return false;
        }
        inner.workers.remove(name);
        if inner.workers.is_empty() {
            inner.first = None;
        }
        true
    }
}
