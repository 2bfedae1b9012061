//! Rolling restart: all local workers anew, one after the other, while requests run.
//!
//! A worker that is told to end takes nothing new and finishes what it has; what is left after the
//! drain time goes on elsewhere. So another worker must be there, whatever its role: every worker
//! can do everything. If there is none, the successor starts first, under another name; on a GPU,
//! which has no memory for both, requests wait meanwhile.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    cluster::embedded::{Alive, Place, Replace},
    dispatch::Dispatch,
    status::WorkerStatus,
};

/// How often the roll looks whether a successor has attached.
const POLL: Duration = Duration::from_millis(20);

/// Restarts the workers of `places`; each has `limit` to attach. Stops at the first that fails: the
/// others run on as they are. `has_gpus`: two of one place do not fit.
pub(super) async fn roll(dispatch: Dispatch, places: Vec<Place>, limit: Duration, has_gpus: bool) {
    let (start, count) = (Instant::now(), places.len());
    for (index, place) in places.iter().enumerate() {
        let name = &place.name;
        tracing::info!(worker = name, "rolling restart, {} of {count}", index + 1);
        if let Err(problem) = replace(&dispatch, place, limit, has_gpus).await {
            tracing::error!(worker = name, "rolling restart given up: {problem}");
            return;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!("rolling restart done: {count} workers in {seconds:.1} s");
}

async fn replace(
    dispatch: &Dispatch,
    place: &Place,
    limit: Duration,
    has_gpus: bool,
) -> Result<(), String> {
    let old = place.now();
    let is_other = |worker: &WorkerStatus| {
        worker.state == "ready" && old.as_ref().is_none_or(|old| old.pid != worker.pid)
    };
    let has_other = dispatch.status().await.workers.iter().any(is_other);
    let how = if has_other || has_gpus || old.is_none() {
        Replace::OldFirst
    } else {
        Replace::NewFirst
    };
    let started = place.replace(how).await?;
    let attached = attached(dispatch, place, how, started, limit).await;
    if how == Replace::NewFirst {
        place.settle(attached.is_ok()).await;
    }
    attached
}

/// Waits until the successor takes requests.
async fn attached(
    dispatch: &Dispatch,
    place: &Place,
    how: Replace,
    started: Alive,
    limit: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        // One that dies alone is started again by its keeper.
        let wanted = match how {
            Replace::OldFirst => place.now(),
            Replace::NewFirst => Some(started.clone()).filter(|new| place.holds(new.pid)),
        };
        if let Some(wanted) = wanted {
            let is_it = |worker: &WorkerStatus| {
                worker.id == wanted.name && worker.pid == wanted.pid && worker.state == "ready"
            };
            if dispatch.status().await.workers.iter().any(is_it) {
                return Ok(());
            }
        } else if how == Replace::NewFirst || place.is_given_up() {
            return Err("the successor ended before it attached".to_owned());
        }
        if Instant::now() >= deadline {
            let seconds = limit.as_secs_f64();
            return Err(format!(
                "the successor did not attach within {seconds} s (cluster.start_timeout_ms)"
            ));
        }
        sleep(POLL).await;
    }
}
