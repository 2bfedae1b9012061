//! `replay FILE`: decides a recorded event log again, with this version's brain, and compares.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
};

use dopd_core::log::{LINE_BYTES_MAX, ReplayReport, replay};
use serde_json::json;

use super::{
    cli::ReplayPlan,
    console::{self, Failure},
};

/// Replays the log in a file; code 0 if every decision is the same, 1 if one is not.
pub(super) fn run(plan: &ReplayPlan) -> Result<i32, Failure> {
    let file = &plan.file;
    let opened = File::open(file)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    let report = replay(lines(BufReader::new(opened)))
        .map_err(|error| Failure::new(format!("cannot replay {}: {error}", file.display())))?;
    console::say(&if plan.as_json {
        json(&report)
    } else {
        text(&report)
    });
    Ok(if report.difference.is_none() {
        console::OK
    } else {
        console::FAILED
    })
}

/// The lines of a log, each read up to the longest that a replay takes.
fn lines(mut reader: BufReader<File>) -> impl Iterator<Item = io::Result<String>> {
    let limit = u64::try_from(LINE_BYTES_MAX)
        .unwrap_or(u64::MAX)
        .saturating_add(2);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => {
                line.truncate(line.strip_suffix(b"\n").unwrap_or(&line).len());
                Some(String::from_utf8(line).map_err(io::Error::other))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

fn json(report: &ReplayReport) -> String {
    let difference = report.difference.as_ref().map(|difference| {
        json!({
            "line": difference.line,
            "at_s": difference.now.0 as f64 / 1e6,
            "actions": format!("{:?}", difference.actions),
            "reasons": difference.reasons,
        })
    });
    let found = json!({
        "recorded_by": report.version,
        "events": report.events,
        "actions": report.actions,
        "duration_s": report.until.0 as f64 / 1e6,
        "is_cut": report.is_cut,
        "difference": difference,
    });
    found.to_string()
}

fn text(report: &ReplayReport) -> String {
    let ReplayReport {
        version,
        events,
        actions,
        until,
        ..
    } = report;
    let seconds = until.0 as f64 / 1e6;
    let cut = if report.is_cut {
        "; its last line breaks off"
    } else {
        ""
    };
    let head = format!(
        "{events} events over {seconds:.3} s led to {actions} actions (recorded by {version}{cut})"
    );
    match &report.difference {
        None => format!("{head}\nevery decision is the same"),
        Some(difference) => format!(
            "{head}\nline {} at {:.6} s is decided otherwise now (--json tells why): {:?}",
            difference.line,
            difference.now.0 as f64 / 1e6,
            difference.actions
        ),
    }
}
