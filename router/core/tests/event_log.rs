//! The event log as a file: what is in it, what is refused, what a difference looks like.
#![expect(
    clippy::expect_used,
    reason = "the lint knows test functions only, not their helpers"
)]

use dopd_core::{
    action::Action,
    brain::{Brain, BrainConfig, Chosen},
    cost::Timings,
    event::Event,
    fleet::{Role, WorkerFacts},
    ids::{RequestId, SessionId},
    log::{self, Difference, Line, ReplayError},
    request::RequestFacts,
    units::{Micros, Pages, Tokens},
};

fn events() -> Vec<Event> {
    let worker = WorkerFacts {
        name: "w".to_owned(),
        incarnation: 0,
        role: Role::Mixed,
        page_size: 16,
        page_bytes: 128,
        pages_total: Pages(100),
        num_seqs_max: 8,
        batch_tokens_max: Tokens(512),
        model_len_max: Tokens(1_000),
        timings: Timings::h100_70b(),
    };
    let request = |id| {
        Event::RequestArrived(RequestFacts {
            choices: 2,
            priority: -1,
            deadline: Micros::from_millis(60_000),
            ..RequestFacts::of(RequestId(id), Tokens(10), Tokens(20))
        })
    };
    vec![
        request(u64::MAX),
        Event::WorkerJoined {
            session: SessionId(3),
            worker: Box::new(worker),
        },
        request(2),
        Event::RequestCancelled {
            request: RequestId(2),
        },
        Event::Woke,
        Event::SessionLost {
            session: SessionId(3),
        },
        Event::DrainStarted,
        request(5),
    ]
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

fn record(config: BrainConfig) -> Vec<String> {
    let mut lines = vec![text(log::encode_header(&config).expect("header"))];
    let mut brain = Brain::new(config);
    for (now, event) in (0..).map(Micros).zip(events()) {
        let line = Line::begin(now, &event).expect("event");
        let actions = brain.handle(now, event);
        lines.push(text(line.end(&actions).expect("actions")));
    }
    lines
}

fn replay(lines: &[String]) -> Result<log::ReplayReport, ReplayError> {
    log::replay(
        lines
            .iter()
            .map(|line| Ok::<_, String>(line.trim_end().to_owned())),
    )
}

#[test]
fn recorded_run_is_decided_the_same_again() {
    let config = BrainConfig {
        seed: 7,
        replays_max: 1,
        ..BrainConfig::default()
    };
    let lines = record(config);
    assert!(
        lines.iter().all(|line| line.ends_with("}\n")),
        "one line each"
    );
    let report = replay(&lines).expect("a log");
    assert_eq!(report.difference, None);
    assert_eq!(
        (report.events, report.until, report.is_cut),
        (8, Micros(7), false)
    );
    assert!(report.actions > 0);
}

#[test]
fn first_other_decision_is_named() {
    let mut lines = record(BrainConfig::default());
    // The second line came out of a brain with another limit.
    lines[0] = lines[0].replace("\"queue_requests_max\":10000", "\"queue_requests_max\":0");
    let report = replay(&lines).expect("a log");
    let Some(Difference {
        line: 2,
        now: Micros(0),
        actions,
        reasons,
    }) = report.difference
    else {
        panic!("{report:?}");
    };
    assert!(
        matches!(actions[..], [Action::Reject { .. }, Action::Reject { .. }]),
        "{actions:?}"
    );
    // A request is refused whole, with one row for both choices.
    assert!(
        matches!(&reasons[..], [one] if matches!(one.chose, Chosen::Reject { .. })),
        "{reasons:?}"
    );
    assert_eq!(report.events, 1);
}

#[test]
fn cut_last_line_is_no_error_but_a_broken_one_before_is() {
    let mut lines = record(BrainConfig::default());
    let last = lines.len() - 1;
    let half = lines[last].len() / 2;
    lines[last].truncate(half);
    let report = replay(&lines).expect("a log");
    assert!(report.is_cut && report.difference.is_none());
    assert_eq!(report.events, 7);
    lines[3].insert(5, '!');
    let error = replay(&lines).expect_err("line 4 is broken");
    assert!(
        matches!(error, ReplayError::Line { line: 4, .. }),
        "{error}"
    );
}

#[test]
fn other_files_are_refused() {
    for (text, expected) in [
        ("", "not an event log of format 1: "),
        ("{}", "not an event log of format 1: missing field"),
        (
            r#"{"dopd_event_log":2,"version":"9","config":{}}"#,
            "not an event log of format 1: it is of format 2",
        ),
    ] {
        let error = replay(&[text.to_owned()]).expect_err(text);
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    let error = replay(&[]).expect_err("nothing");
    assert_eq!(
        error.to_string(),
        "not an event log of format 1: it is empty"
    );
    let lines = [Err("disk on fire")];
    let error = log::replay::<&str>(lines).expect_err("unreadable");
    assert_eq!(
        error.to_string(),
        "event log line 1 cannot be read: disk on fire"
    );
}

#[test]
fn every_event_survives_its_line() {
    for event in events() {
        let json = serde_json::to_string(&event).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Event>(&json).expect("its own JSON"),
            event
        );
    }
}
