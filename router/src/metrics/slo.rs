//! Latency targets: which requests met them (attainment), and how many tokens those had (goodput).

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    CODE_OK, RequestOutcome, catalog,
    rows::{One, add},
};
use crate::error::{Origin, Reason};

/// What a request should keep; `None`: no such target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SloTargets {
    /// Time to first token.
    pub ttft: Option<Duration>,
    /// Mean time per output token after the first.
    pub tpot: Option<Duration>,
}

impl SloTargets {
    fn is_set(&self) -> bool {
        self.ttft.is_some() || self.tpot.is_some()
    }

    /// Which targets `outcome` met. A request that has no such figure (one token has no TPOT) meets
    /// it.
    fn met(&self, outcome: &RequestOutcome) -> (bool, bool) {
        let within = |value: Option<Duration>, target: Option<Duration>| match (value, target) {
            (Some(value), Some(target)) => value <= target,
            _ => true,
        };
        (
            within(outcome.ttft, self.ttft),
            within(outcome.tpot, self.tpot),
        )
    }
}

/// Counters of attainment and goodput; absent from the page if no target is set.
#[derive(Debug)]
pub(super) struct Slo {
    targets: SloTargets,
    requests: Family<[(&'static str, &'static str); 2], Counter>,
    goodput_requests: Counter,
    goodput_tokens: Counter,
}

impl Slo {
    /// Registers the counters if a target is set.
    pub(super) fn new(targets: SloTargets, registry: &mut Registry) -> Self {
        let slo = Self {
            targets,
            requests: Family::default(),
            goodput_requests: Counter::default(),
            goodput_tokens: Counter::default(),
        };
        if !targets.is_set() {
            return slo;
        }
        add(registry, &catalog::SLO_REQUESTS, slo.requests.clone());
        let requests = slo.goodput_requests.clone();
        add(registry, &catalog::GOODPUT_REQUESTS, requests);
        let tokens = slo.goodput_tokens.clone();
        add(registry, &catalog::GOODPUT_TOKENS, tokens);
        let seconds = Family::<One, Gauge<f64, AtomicU64>>::default();
        for (target, value) in [("ttft", targets.ttft), ("tpot", targets.tpot)] {
            if let Some(value) = value {
                let row = seconds.get_or_create(&[("target", target)]);
                row.set(value.as_secs_f64());
                // Both rows from the start: attainment is a ratio of them.
                for met in ["true", "false"] {
                    drop(
                        slo.requests
                            .get_or_create(&[("target", target), ("met", met)]),
                    );
                }
            }
        }
        add(registry, &catalog::SLO_TARGET, seconds);
        slo
    }

    /// Counts `outcome`: what failed for the server's part missed every target, what failed for the
    /// client's is left out.
    pub(super) fn count(&self, outcome: &RequestOutcome) {
        let is_ok = outcome.code == CODE_OK;
        let targets = if outcome.targets.is_set() {
            outcome.targets
        } else {
            self.targets
        };
        if !targets.is_set() || (!is_ok && is_clients_fault(outcome.code)) {
            return;
        }
        let (ttft, tpot) = targets.met(outcome);
        if targets.ttft.is_some() {
            self.row("ttft", is_ok && ttft);
        }
        if targets.tpot.is_some() {
            self.row("tpot", is_ok && tpot);
        }
        if is_ok && ttft && tpot {
            self.goodput_requests.inc();
            self.goodput_tokens.inc_by(outcome.completion_tokens);
        }
    }

    fn row(&self, target: &'static str, met: bool) {
        let met = if met { "true" } else { "false" };
        self.requests
            .get_or_create(&[("target", target), ("met", met)])
            .inc();
    }
}

fn is_clients_fault(code: &str) -> bool {
    let row = Reason::ALL
        .iter()
        .map(|reason| reason.row())
        .find(|row| row.code == code);
    row.is_some_and(|row| row.origin == Origin::Client)
}
