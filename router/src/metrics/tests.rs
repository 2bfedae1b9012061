use std::time::{Duration, Instant};

use super::{
    CODE_OK, Counted, Format, Kind, Metrics, MetricsConfig, Parts, Progress, RequestOutcome,
    SequenceEnd, SessionEnd, SloTargets, catalog, reference,
};
use crate::{
    error::Reason,
    status::{FleetStatus, PageStatus, WorkerStatus},
};

fn outcome(code: &'static str, ttft_ms: u64, tpot_ms: u64) -> RequestOutcome {
    RequestOutcome {
        code,
        prompt_tokens: 100,
        cached_tokens: 32,
        completion_tokens: 20,
        longest_tokens: 20,
        choices: 1,
        limit_tokens: 128,
        targets: SloTargets::default(),
        was_placed: true,
        ttft: Some(Duration::from_millis(ttft_ms)),
        tpot: Some(Duration::from_millis(tpot_ms)),
        duration: Duration::from_millis(ttft_ms + 19 * tpot_ms),
        parts: Parts {
            queue: Some(Duration::from_millis(ttft_ms / 4)),
            prefill: Some(Duration::from_millis(ttft_ms - ttft_ms / 4)),
            transfer: Some(Duration::from_millis(2 * tpot_ms)),
            decode: Some(Duration::from_millis(17 * tpot_ms)),
        },
    }
}

fn worker(id: &str, role: &str, state: &str) -> WorkerStatus {
    WorkerStatus {
        id: id.to_owned(),
        role: role.to_owned(),
        state: state.to_owned(),
        page_size: 16,
        seats: 2,
        prefill_tokens_queued: 512,
        step_us: 12_500,
        steps: 77,
        steps_mixed: 7,
        steps_paused: 20,
        mixed_penalty_permille: 180,
        preempted: 3,
        breaker: "closed",
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
    let page = metrics.render(Format::OpenMetrics);
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

/// Metrics with targets and vLLM's names.
fn full(model: &str, targets: SloTargets) -> Metrics {
    Metrics::with(&MetricsConfig {
        model: model.to_owned(),
        targets,
        vllm: true,
    })
}

/// Metrics after traffic of every kind.
fn busy() -> (Metrics, Vec<Counted>) {
    let targets = SloTargets {
        ttft: Some(Duration::from_millis(200)),
        tpot: Some(Duration::from_millis(50)),
    };
    let metrics = full("mock \"quoted\"", targets);
    let active: Vec<Counted> = (0..5)
        .map(|_| metrics.request_started())
        .chain([metrics.request_preparing()])
        .collect();
    let start = Instant::now();
    let mut progress = Progress::new(&metrics, 100);
    progress.tokens(1, start, None);
    progress.tokens(3, start + Duration::from_millis(12), Some(start));
    drop(progress);
    metrics.sequence_done(SequenceEnd::Stop, 20);
    metrics.request_done(&outcome(CODE_OK, 120, 10));
    metrics.request_done(&outcome(Reason::WorkerFailed.row().code, 900, 10));
    metrics.request_done(&RequestOutcome {
        code: Reason::QueueFull.row().code,
        ..RequestOutcome::default()
    });
    metrics.protocol_error();
    metrics.session_ended(SessionEnd::Stuck);
    metrics.output_error();
    metrics.kv_accounting_error("decode-0");
    metrics.worker_restarted("decode-0");
    drop(metrics.connection("http"));
    metrics.connection_refused("grpc");
    metrics.auth_failed(Reason::Unauthenticated.row().code);
    metrics.quota_refused("ci");
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
        handoffs_by: [("arrived", 41), ("lost", 2)].into(),
        replays_by: [("worker_died", 5), ("preempted", 2)].into(),
        replay_tokens_total: 1_234,
        retries_total: 1,
        ejections_by: [("silent", 3), ("stuck", 1)].into(),
        poison_total: 1,
        hopeless_total: 4,
        decisions_by: [("stolen", 9), ("demoted", 3), ("late", 1), ("evicted", 0)].into(),
        breaker_openings_by: [("worker", 2), ("pair", 0)].into(),
        pairs_open: 1,
    });
    (metrics, active)
}

#[test]
fn names_of_workers_are_bounded() {
    let metrics = Metrics::new("m");
    for worker in 0..400 {
        metrics.kv_accounting_error(&format!("pod-{worker}"));
    }
    metrics.kv_accounting_error("pod-7");
    let page = metrics.render(Format::Text);
    let rows = page.matches("dopd_kv_accounting_errors_total{").count();
    assert_eq!(rows, 257);
    let row = |name| format!("dopd_kv_accounting_errors_total{{model=\"m\",worker=\"{name}\"");
    assert_eq!(value(&metrics, &row("other")).unwrap(), "144");
    assert_eq!(value(&metrics, &row("pod-7")).unwrap(), "2");
}

#[test]
fn page_with_every_kind_of_row() {
    let (metrics, _active) = busy();
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    let page = metrics.render(Format::OpenMetrics);
    insta::assert_snapshot!(in_order(&page.replace(version, "version=\"VERSION\"")));
}

/// Names and types that a page declares, in the text format.
fn declared(page: &str) -> Vec<(String, String)> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = types.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

#[test]
fn the_page_declares_what_the_catalog_declares() {
    let (metrics, _active) = busy();
    let text = metrics.render(Format::Text);
    let mut shown = declared(&text);
    shown.retain(|(name, _)| name.starts_with("dopd_"));
    let mut expected: Vec<(String, String)> = catalog()
        .iter()
        .map(|row| {
            let kind = if row.kind == Kind::Info {
                Kind::Gauge
            } else {
                row.kind
            };
            (row.name.to_owned(), kind.word().to_owned())
        })
        .collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected);
    for row in catalog() {
        let help = format!("# HELP {} {}.\n", row.name, row.help);
        assert!(text.contains(&help), "{help}");
        for label in row.labels {
            let rows = text.lines().filter(|line| line.starts_with(row.name));
            let with_label = rows.filter(|line| line.contains(&format!("{label}=\"")));
            assert!(with_label.count() > 0, "{} has no {label}", row.name);
        }
    }
}

#[test]
fn the_reference_is_that_of_the_catalog() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        page,
        reference(),
        "stale: UPDATE_REFERENCE=1 cargo test -p dopd-router --lib reference"
    );
}

/// The buckets of a histogram: bound and count, cumulated.
fn buckets(page: &str, name: &str) -> Vec<(f64, u64)> {
    let prefix = format!("{name}_bucket{{");
    let rows = page.lines().filter(|line| line.starts_with(&prefix));
    rows.map(|line| {
        let bound = line
            .split_once("le=\"")
            .unwrap()
            .1
            .split_once('"')
            .unwrap()
            .0;
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().unwrap()
        };
        (bound, line.rsplit(' ').next().unwrap().parse().unwrap())
    })
    .collect()
}

#[test]
fn vllms_histograms_show_the_same_observations_with_its_bounds() {
    let metrics = full("mock", SloTargets::default());
    for ttft_ms in [1, 2, 30, 120, 121, 260, 9_000, 3_000_000] {
        metrics.request_done(&outcome(CODE_OK, ttft_ms, 10));
    }
    let page = metrics.render(Format::Text);
    let ours = buckets(&page, "dopd_time_to_first_token_seconds");
    let theirs = buckets(&page, "vllm:time_to_first_token_seconds");
    assert_eq!(theirs.len(), 23);
    assert!(theirs.len() < ours.len());
    for row in &theirs {
        assert!(ours.contains(row), "{row:?} is not in {ours:?}");
    }
    assert_eq!(theirs.last(), Some(&(f64::INFINITY, 8)));
}

#[test]
fn every_bound_of_vllm_is_a_bound_here() {
    let (metrics, _active) = busy();
    let page = metrics.render(Format::Text);
    // Request latency in vLLM 0.3x: 0.3 s to 7680 s.
    let bounds: Vec<f64> = buckets(&page, "vllm:e2e_request_latency_seconds")
        .into_iter()
        .map(|(bound, _)| bound)
        .collect();
    assert_eq!(bounds.len(), 22);
    assert!(bounds.contains(&0.3) && bounds.contains(&7680.0));
    let tokens = buckets(&page, "vllm:inter_token_latency_seconds");
    assert_eq!(tokens.len(), 20);
}

#[test]
fn tokens_are_counted_as_they_come_not_at_the_end() {
    let metrics = Metrics::new("mock");
    let start = Instant::now();
    let mut progress = Progress::new(&metrics, 10);
    progress.tokens(1, start, None);
    assert_eq!(metrics.totals().prompt_tokens, 10);
    let mut before = start;
    for token in 1..64 {
        let now = start + Duration::from_millis(token);
        progress.tokens(1, now, Some(before));
        before = now;
    }
    assert_eq!(
        metrics.totals().generation_tokens,
        64,
        "64 are not kept back"
    );
    progress.tokens(1, before, Some(before));
    assert_eq!(metrics.totals().generation_tokens, 64);
    progress.tokens(1, start + Duration::from_secs(2), Some(before));
    assert_eq!(
        metrics.totals().generation_tokens,
        66,
        "nor are those of a second"
    );
    let row = "dopd_inter_token_latency_seconds_count";
    assert_eq!(value(&metrics, row).as_deref(), Some("65"));
}

#[test]
fn the_text_format_has_no_word_of_openmetrics() {
    let (metrics, _active) = busy();
    let text = metrics.render(Format::Text);
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
    assert!(text.contains("# TYPE dopd_requests_total counter\n"));
    assert!(text.contains("# TYPE dopd_build_info gauge\n"));
    assert!(text.ends_with('\n'));
    let samples = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(
        samples(&text),
        samples(&metrics.render(Format::OpenMetrics))
    );
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
    assert!(
        metrics
            .render(Format::OpenMetrics)
            .contains("worker=\"w0\"")
    );
    fleet.workers.clear();
    metrics.set_fleet(&fleet);
    assert!(
        !metrics
            .render(Format::OpenMetrics)
            .contains("worker=\"w0\"")
    );
}

#[test]
fn goodput_counts_only_requests_that_met_all_targets() {
    let targets = SloTargets {
        ttft: Some(Duration::from_millis(200)),
        tpot: None,
    };
    let metrics = full("mock", targets);
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
        !metrics
            .render(Format::OpenMetrics)
            .contains("target=\"tpot\""),
        "no such target"
    );
}

#[test]
fn a_request_is_judged_by_its_own_targets() {
    let targets = SloTargets {
        ttft: Some(Duration::from_millis(200)),
        tpot: None,
    };
    let metrics = full("mock", targets);
    let own = |ttft_ms| SloTargets {
        ttft: Some(Duration::from_millis(ttft_ms)),
        tpot: None,
    };
    let judged = |ttft_ms, target_ms| RequestOutcome {
        targets: own(target_ms),
        ..outcome(CODE_OK, ttft_ms, 1)
    };
    metrics.request_done(&judged(150, 100));
    metrics.request_done(&judged(900, 1_000));
    let goodput = value(&metrics, "dopd_goodput_requests_total");
    assert_eq!(goodput.as_deref(), Some("1"));
    let missed = "dopd_slo_requests_total{model=\"mock\",target=\"ttft\",met=\"false\"";
    assert_eq!(value(&metrics, missed).as_deref(), Some("1"));
}

#[test]
fn pages_without_targets_have_no_goodput() {
    let metrics = Metrics::new("mock");
    metrics.request_done(&outcome(CODE_OK, 1, 1));
    assert!(!metrics.render(Format::OpenMetrics).contains("goodput"));
}
