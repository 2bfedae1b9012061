//! Looks after local workers whose process lives but is of no use: it did not attach, it lost its
//! stream for good, or its engine hangs. The supervisor sees only processes that end.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    cluster::embedded::{Alive, Place},
    dispatch::Dispatch,
};

/// How often it looks, at most; a quarter of the limit if that is less.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Time that a process has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To attach.
    pub(super) start: Duration,
    /// Without progress or stream once it was attached.
    pub(super) hang: Duration,
}

/// Kills processes of `places` that are of no use, so that they are started again. Runs until it is
/// dropped.
pub(super) async fn guard(dispatch: Dispatch, places: Vec<Place>, limits: Limits) {
    let interval = INTERVAL_MAX.min(limits.hang / 4);
    let mut seen: Vec<Option<Seen>> = vec![None; places.len()];
    loop {
        sleep(interval).await;
        let fleet = dispatch.status().await;
        for (place, seen) in places.iter().zip(&mut seen) {
            let Some(alive) = place.now() else { continue };
            let mut workers = fleet.workers.iter();
            let worker = workers.find(|w| w.id == alive.name && w.pid == alive.pid);
            let state = worker.map(|worker| worker.state.as_str());
            if let Some(why) = judge(seen, &alive, state, Instant::now(), limits) {
                place.kill(alive.pid, why).await;
            }
        }
    }
}

/// When a process was last of use.
#[derive(Clone, Copy, Debug)]
struct Seen {
    pid: u32,
    at: Instant,
}

/// Why a process must be killed, if it must; `state` is what the scheduler says of it.
fn judge(
    seen: &mut Option<Seen>,
    alive: &Alive,
    state: Option<&str>,
    now: Instant,
    limits: Limits,
) -> Option<String> {
    if state.is_some_and(|state| state != "suspect") {
        *seen = Some(Seen {
            pid: alive.pid,
            at: now,
        });
        return None;
    }
    let (since, limit) = match seen.filter(|seen| seen.pid == alive.pid) {
        Some(seen) => (seen.at, limits.hang),
        None => (alive.since, limits.start),
    };
    if now.saturating_duration_since(since) < limit {
        return None;
    }
    let seconds = limit.as_secs_f64();
    Some(match (state, limit == limits.start) {
        (_, true) => format!("it did not attach within {seconds} s (cluster.start_timeout_ms)"),
        (None, _) => format!("no stream to the router for {seconds} s (cluster.hang_timeout_ms)"),
        (Some(_), _) => format!("no progress for {seconds} s (cluster.hang_timeout_ms)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        start: Duration::from_secs(300),
        hang: Duration::from_secs(30),
    };

    fn alive(pid: u32, since: Instant) -> Alive {
        Alive {
            name: "decode-0".to_owned(),
            pid,
            since,
        }
    }

    #[test]
    fn a_worker_that_hangs_is_killed_and_one_that_loads_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let one = alive(1, start);
        let mut seen = None;
        assert_eq!(judge(&mut seen, &one, None, at(299), LIMITS), None);
        let late = judge(&mut seen, &one, None, at(300), LIMITS).unwrap();
        assert!(late.contains("did not attach within 300 s"), "{late}");
        for state in ["ready", "draining"] {
            assert_eq!(judge(&mut seen, &one, Some(state), at(400), LIMITS), None);
        }
        assert_eq!(
            judge(&mut seen, &one, Some("suspect"), at(429), LIMITS),
            None
        );
        let stuck = judge(&mut seen, &one, Some("suspect"), at(430), LIMITS).unwrap();
        assert!(stuck.contains("no progress for 30 s"), "{stuck}");
        let gone = judge(&mut seen, &one, None, at(430), LIMITS).unwrap();
        assert!(gone.contains("no stream"), "{gone}");
        // Its successor has not been seen.
        assert_eq!(
            judge(&mut seen, &alive(2, at(430)), None, at(500), LIMITS),
            None
        );
    }
}
