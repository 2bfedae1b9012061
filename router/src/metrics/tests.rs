use std::time::Duration;

use super::{ActiveRequest, CODE_OK, Metrics, RequestOutcome, SloTargets};
use crate::{
    error::Reason,
    status::{FleetStatus, PageStatus, WorkerStatus},
};

fn outcome(code: &'static str, ttft_ms: u64, tpot_ms: u64) -> RequestOutcome {
    RequestOutcome {
        code,
        prompt_tokens: 100,
        completion_tokens: 20,
        cached_tokens: 0,
        ttft: Some(Duration::from_millis(ttft_ms)),
        tpot: Some(Duration::from_millis(tpot_ms)),
        duration: Duration::from_millis(ttft_ms + 19 * tpot_ms),
    }
}

fn worker(id: &str, role: &str, state: &str) -> WorkerStatus {
    WorkerStatus {
        id: id.to_owned(),
        role: role.to_owned(),
        state: state.to_owned(),
        pages: PageStatus {
            total: 100,
            free: 60,
            owned: 30,
            cached: 6,
            fenced: 4,
        },
        ..WorkerStatus::default()
    }
}

/// The value of the row that starts with `row`.
fn value(metrics: &Metrics, row: &str) -> Option<String> {
    let page = metrics.render();
    let line = page
        .lines()
        .find(|line| line.starts_with(row) && !line.starts_with('#'))?;
    Some(line.rsplit(' ').next()?.to_owned())
}

/// The page with the rows of each counter or gauge sorted: a family keeps them in a hash map.
fn in_order(page: &str) -> String {
    let name = |line: &str| line.split('{').next().unwrap_or_default().to_owned();
    let mut lines: Vec<&str> = page.lines().collect();
    for rows in lines.chunk_by_mut(|a, b| name(a) == name(b)) {
        if !rows[0].contains("_bucket") {
            rows.sort_unstable();
        }
    }
    lines.join("\n")
}

#[test]
fn page_with_every_kind_of_row() {
    let targets = SloTargets {
        ttft: Some(Duration::from_millis(200)),
        tpot: Some(Duration::from_millis(50)),
    };
    let metrics = Metrics::with_targets("mock \"quoted\"", targets);
    let active: Vec<ActiveRequest> = (0..5).map(|_| metrics.request_started()).collect();
    metrics.request_done(&outcome(CODE_OK, 120, 10));
    metrics.request_done(&outcome(Reason::QueueFull.row().code, 900, 10));
    metrics.protocol_error();
    metrics.worker_restarted("decode-0");
    metrics.set_fleet(&FleetStatus {
        workers: vec![
            worker("prefill-0", "prefill", "ready"),
            worker("decode-0", "decode", "suspect"),
        ],
        requests_waiting: 2,
        tokens_waiting: 2_048,
        sequences_running: 3,
        handoffs_running: 1,
        handoffs_total: 41,
        replays_total: 7,
    });
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    let page = metrics.render().replace(version, "version=\"VERSION\"");
    insta::assert_snapshot!(in_order(&page));
    drop(active);
}

#[test]
fn a_request_that_ended_is_no_longer_running() {
    let metrics = Metrics::new("mock");
    let request = metrics.request_started();
    assert_eq!(
        value(&metrics, "dopd_requests_running").as_deref(),
        Some("1")
    );
    drop(request);
    assert_eq!(
        value(&metrics, "dopd_requests_running").as_deref(),
        Some("0")
    );
}

#[test]
fn a_worker_that_left_leaves_no_row() {
    let metrics = Metrics::new("mock");
    let mut fleet = FleetStatus {
        workers: vec![worker("w0", "mixed", "ready")],
        ..FleetStatus::default()
    };
    metrics.set_fleet(&fleet);
    assert!(metrics.render().contains("worker=\"w0\""));
    fleet.workers.clear();
    metrics.set_fleet(&fleet);
    assert!(!metrics.render().contains("worker=\"w0\""));
}

#[test]
fn goodput_counts_only_requests_that_met_all_targets() {
    let targets = SloTargets {
        ttft: Some(Duration::from_millis(200)),
        tpot: None,
    };
    let metrics = Metrics::with_targets("mock", targets);
    metrics.request_done(&outcome(CODE_OK, 200, 999));
    metrics.request_done(&outcome(CODE_OK, 201, 1));
    metrics.request_done(&outcome(Reason::WorkerFailed.row().code, 1, 1));
    metrics.request_done(&outcome(Reason::Cancelled.row().code, 1, 1));
    assert_eq!(
        value(&metrics, "dopd_goodput_requests_total").as_deref(),
        Some("1")
    );
    assert_eq!(
        value(&metrics, "dopd_goodput_tokens_total").as_deref(),
        Some("20")
    );
    let missed = "dopd_slo_requests_total{model=\"mock\",target=\"ttft\",met=\"false\"";
    assert_eq!(
        value(&metrics, missed).as_deref(),
        Some("2"),
        "a worker's fault is a miss"
    );
    assert!(
        !metrics.render().contains("target=\"tpot\""),
        "no such target"
    );
}

#[test]
fn pages_without_targets_have_no_goodput() {
    let metrics = Metrics::new("mock");
    metrics.request_done(&outcome(CODE_OK, 1, 1));
    assert!(!metrics.render().contains("goodput"));
}
