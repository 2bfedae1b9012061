//! Whether tokens flow: when the fleet last computed something, and a canary that asks it to when
//! nobody else does.
//!
//! A canary is a request like any other, through brain, prefill, hand-off and decode, but without
//! a client: no usage, no log line, no place in the metrics of requests. It goes last in the queue,
//! and under load, when tokens flow anyway, there is none.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dopd_core::request::Slo;
use dopd_sync::Count;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout_at},
};

use super::{Dispatch, Submission};
use crate::{
    error::{Error, Reason},
    status::Readiness,
    streams::sink::{FinishReason, Flow, Sink, TokenChunk},
    wire::worker::{Limits, Sampling},
};

/// Proof of tokens is good for so many times the canary's interval.
const PROOF_INTERVALS: u32 = 2;
/// From a canary that failed to the next, as a share of the interval.
const RETRY_SHARE: u32 = 5;
/// The first token comes from prefill, the second from decode.
const CANARY_TOKENS: u32 = 2;
/// Time for a canary that is overdue to be told so by the brain.
const OVERDUE_GRACE: Duration = Duration::from_millis(500);
/// How often the brain is asked whether it lives, and the silence after which it does not.
const BRAIN_INTERVAL: Duration = Duration::from_secs(1);
const BRAIN_SILENCE_MAX: Duration = Duration::from_secs(10);

/// A moment on a clock that begins with it; 0: never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, since_start: Duration) {
        let micros = u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX);
        self.0.store(micros.max(1), Ordering::Release);
    }

    fn get(&self) -> Option<Duration> {
        let micros = self.0.load(Ordering::Acquire);
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}

/// What is known of the flow of tokens.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Idle time before a canary; zero: none is sent, and no proof is wanted.
    interval_us: AtomicU64,
    /// When tokens were last computed.
    proof: Moment,
    /// When the brain last answered.
    brain: Moment,
    /// Canaries that have not ended: never among the requests of clients, for which a drain waits.
    canaries: Count,
    /// Why the last canary failed, if it did.
    failure: Mutex<Option<String>>,
    /// A first worker takes requests.
    usable: Notify,
}

impl Pulse {
    /// The fleet computed something.
    pub(super) fn beat(&self, since_start: Duration) {
        self.proof.set(since_start);
    }

    /// A worker takes requests, where none did before.
    pub(super) fn usable(&self) {
        self.usable.notify_one();
    }

    fn interval(&self) -> Duration {
        Duration::from_micros(self.interval_us.load(Ordering::Acquire))
    }

    /// What is missing at `now`, if a worker takes requests.
    pub(super) fn readiness(&self, now: Duration) -> Readiness {
        let interval = self.interval();
        if interval.is_zero() {
            return Readiness::ready();
        }
        let canary = match &*self.failure.lock() {
            Some(failure) => format!("; the last canary failed: {failure}"),
            None => String::new(),
        };
        match self.proof.get() {
            Some(at) if now.saturating_sub(at) <= interval * PROOF_INTERVALS => Readiness::ready(),
            Some(at) => {
                let silent = now.saturating_sub(at).as_secs_f64();
                let text = format!("no worker has made a token for {silent:.1} s{canary}");
                Readiness::missing("no_tokens", text)
            }
            None => Readiness::missing("starting", format!("no token was made yet{canary}")),
        }
    }
}

/// Takes what a canary makes.
struct Probe {
    told: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Probe {
    fn tell(&mut self, outcome: Result<(), Error>) {
        if let Some(told) = self.told.take() {
            // Nobody waits any more: it was given up.
            drop(told.send(outcome));
        }
    }
}

impl Sink for Probe {
    fn tokens(&mut self, _: TokenChunk<'_>) -> Flow {
        Flow::Continue
    }

    fn finish(&mut self, _: FinishReason) {
        self.tell(Ok(()));
    }

    fn fail(&mut self, error: Error) {
        self.tell(Err(error));
    }
}

impl Dispatch {
    /// From now on the router is ready only if tokens flow, and [`Dispatch::canaries`] must run.
    pub fn expect_tokens(&self, interval: Duration) {
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let pulse = &self.shared.pulse;
        pulse.interval_us.store(micros, Ordering::Release);
    }

    /// Asks the fleet for a token whenever none has been made for the interval of
    /// [`Dispatch::expect_tokens`]. Run it once, on a front thread; ends after
    /// [`Dispatch::shutdown`]. `vocab_size` bounds the canary's prompt.
    pub async fn canaries(self, vocab_size: u32) {
        let interval = self.shared.pulse.interval();
        let stop = self.shared.stop.clone();
        if !interval.is_zero() {
            stop.run_until_cancelled(self.ask_for_ever(interval, vocab_size))
                .await;
        }
    }

    async fn ask_for_ever(&self, interval: Duration, vocab_size: u32) {
        let pulse = &self.shared.pulse;
        loop {
            if !self.is_ready() {
                pulse.usable.notified().await;
                continue;
            }
            let due = pulse
                .proof
                .get()
                .map(|at| self.shared.start + at + interval);
            if let Some(due) = due.filter(|due| *due > Instant::now()) {
                sleep_until(due).await;
                continue;
            }
            let outcome = self.ask(interval * PROOF_INTERVALS, vocab_size).await;
            let failure = outcome.as_ref().err().map(ToString::to_string);
            if let Some(failure) = &failure {
                tracing::warn!("a canary failed: {failure}");
            } else {
                pulse.beat(self.shared.start.elapsed());
            }
            *pulse.failure.lock() = failure;
            if outcome.is_err() {
                let again = sleep_until(Instant::now() + interval / RETRY_SHARE);
                tokio::select! {
                    () = again => {}
                    () = pulse.usable.notified() => {}
                }
            }
        }
    }

    /// One canary.
    async fn ask(&self, limit: Duration, vocab_size: u32) -> Result<(), Error> {
        let (told, answer) = oneshot::channel();
        let deadline = Instant::now() + limit;
        let canary = submission(deadline, vocab_size, Probe { told: Some(told) });
        let _ticket = self.submit_counted(canary, &self.shared.pulse.canaries)?;
        let overdue = || Error::new(Reason::DeadlineExceeded, format!("no end within {limit:?}"));
        match timeout_at(deadline + OVERDUE_GRACE, answer).await {
            Ok(Ok(outcome)) => outcome,
            // Its stream was dropped without a word: the front is ending.
            Ok(Err(_)) => Err(super::draining("the router is shutting down")),
            Err(_) => Err(overdue()),
        }
    }

    /// Notes about once a second that the brain answers; runs until it is dropped.
    pub async fn watch_brain(self) {
        loop {
            self.status().await;
            self.shared.pulse.brain.set(self.shared.start.elapsed());
            tokio::time::sleep(BRAIN_INTERVAL).await;
        }
    }

    /// Whether the brain's thread runs and has answered lately.
    pub fn is_alive(&self) -> bool {
        let silence = (self.shared.pulse.brain.get()).map_or(Duration::ZERO, |at| {
            self.shared.start.elapsed().saturating_sub(at)
        });
        !self.shared.stop.is_cancelled() && silence <= BRAIN_SILENCE_MAX
    }
}

fn submission(deadline: Instant, vocab_size: u32, probe: Probe) -> Submission {
    Submission {
        request_id: "canary".to_owned(),
        // Any token does.
        prompt: [1.min(vocab_size.saturating_sub(1))].into(),
        sampling: Sampling {
            top_p: 1.0,
            ..Sampling::default()
        },
        limits: Limits {
            max_tokens: CANARY_TOKENS,
            ignore_eos: true,
            ..Limits::default()
        },
        adjustments: None,
        prompt_logprobs: None,
        traceparent: String::new(),
        tenant: "".into(),
        weight: 1,
        priority: i32::MAX,
        slo: Slo::default(),
        // A canary shows that its worker computes.
        prefix_salt: None,
        deadline: deadline.into_std(),
        sinks: vec![Box::new(probe)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::records::LimitsConfig, dispatch::DispatchConfig};

    const INTERVAL: Duration = Duration::from_secs(5);

    fn pulse() -> Pulse {
        let pulse = Pulse::default();
        pulse.interval_us.store(5_000_000, Ordering::Release);
        pulse
    }

    #[test]
    fn proof_is_good_for_two_intervals() {
        let pulse = pulse();
        let start = Duration::from_secs(100);
        assert_eq!(pulse.readiness(start).status, "starting");
        pulse.beat(start);
        assert!(pulse.readiness(start + 2 * INTERVAL).is_ready());
        let late = pulse.readiness(start + 2 * INTERVAL + Duration::from_millis(200));
        assert_eq!(late.status, "no_tokens");
        assert_eq!(late.message, "no worker has made a token for 10.2 s");
    }

    #[test]
    fn a_canary_that_failed_says_why() {
        let pulse = pulse();
        *pulse.failure.lock() = Some("engine".to_owned());
        let told = pulse.readiness(INTERVAL).message;
        assert_eq!(
            told,
            "no token was made yet; the last canary failed: engine"
        );
    }

    #[test]
    fn without_canaries_no_proof_is_wanted() {
        assert!(Pulse::default().readiness(INTERVAL).is_ready());
    }

    /// A drain that ends between the end of a canary and the word of it would cut off a client.
    #[tokio::test]
    async fn a_canary_that_has_just_ended_hides_no_request() {
        let config = DispatchConfig {
            explain_decisions_max: 64,
            limits: LimitsConfig::default(),
            policy: dopd_core::policy::PolicyConfig::default(),
            prefix_cache: true,
            front_threads: 1,
            record: None,
            record_bytes_max: 0,
        };
        let (dispatch, brain) = Dispatch::start(config).unwrap();
        let client = Probe { told: None };
        let deadline = Instant::now() + Duration::from_secs(60);
        let local = tokio::task::LocalSet::new();
        let run = async {
            tokio::task::spawn_local(dispatch.front(0));
            let _ticket = dispatch.submit(submission(deadline, 9, client)).unwrap();
            let mut canary = Box::pin(dispatch.ask(Duration::from_millis(20), 9));
            assert!(futures_util::poll!(&mut canary).is_pending());
            // Its deadline ends it, but nobody polls it to learn that.
            while dispatch.status().await.requests_waiting != 1 || dispatch.shared.active.get() != 1
            {
                tokio::task::yield_now().await;
            }
            assert_eq!(dispatch.active(), 1);
        };
        local.run_until(run).await;
        dispatch.shutdown();
        brain.join().unwrap();
    }
}
