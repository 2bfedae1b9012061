//! What a person sees while local workers load: on a terminal one line that changes, with the stage
//! of each worker; elsewhere their own lines, one a stage.
//!
//! Workers tell a stage as `start-up: STAGE` and, when they are asked for more (`DOPD_PROGRESS`),
//! as `start-up: STAGE 45%` (`python/dopd/worker/progress.py`).

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::console;
use crate::config::{Origin, Settings};

/// How often the line is drawn even if no worker says anything: its seconds count.
pub(super) const REDRAW_INTERVAL: Duration = Duration::from_millis(250);

/// Widest line: the narrowest terminal that is still common.
const COLUMNS: usize = 79;

/// What a stage's line contains.
const MARK: &str = "start-up: ";

/// Where each worker is.
#[derive(Debug)]
pub(super) struct Loading {
    is_live: AtomicBool,
    started: Instant,
    stages: Mutex<BTreeMap<String, String>>,
}

impl Loading {
    /// Live on a terminal, unless logs are JSON or the user has asked for a level.
    pub(super) fn new(settings: &Settings) -> Self {
        let log = &settings.config.log;
        let is_plain = log.format != "json" && *settings.origin("log.filter") == Origin::Default;
        let is_terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self::with(is_plain && is_terminal)
    }

    fn with(is_live: bool) -> Self {
        Self {
            is_live: AtomicBool::new(is_live),
            started: Instant::now(),
            stages: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether the line is shown.
    pub(super) fn is_live(&self) -> bool {
        self.is_live.load(Relaxed)
    }

    /// Takes a line of a worker; true if it needs not be shown as it is.
    pub(super) fn take(&self, worker: &str, line: &str) -> bool {
        if !self.is_live() {
            return false;
        }
        if let Some((_, stage)) = line.split_once(MARK) {
            let stage: String = stage.chars().filter(|c| !c.is_control()).collect();
            self.stages.lock().insert(worker.to_owned(), stage);
            self.draw();
            return true;
        }
        // The line tells as much; warnings and errors are shown.
        line.contains(" INFO ")
    }

    /// Draws the line again.
    pub(super) fn draw(&self) {
        if self.is_live() {
            console::status(&self.text());
        }
    }

    /// Everything is up, or will not be: from now on lines are shown as they are.
    pub(super) fn finish(&self) {
        if self.is_live.swap(false, Relaxed) {
            console::status("");
        }
    }

    fn text(&self) -> String {
        let stages = self.stages.lock();
        let seconds = self.started.elapsed().as_secs();
        let parts: Vec<String> = stages
            .iter()
            .map(|(worker, stage)| format!("{worker} {stage}"))
            .collect();
        let all = if parts.is_empty() {
            "starting workers".to_owned()
        } else {
            format!("loading  {}", parts.join(", "))
        };
        let tail = format!(" ({seconds} s)");
        let room = COLUMNS.saturating_sub(tail.chars().count());
        let mut text: String = all.chars().take(room).collect();
        text.push_str(&tail);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_stage_of_each_worker() {
        let loading = Loading::with(true);
        assert_eq!(loading.text(), "starting workers (0 s)");
        assert!(loading.take("prefill-0", "start-up: weights 45%"));
        assert!(loading.take("decode-0", "12:00:00 decode-0 INFO start-up: kv\u{1b}"));
        assert_eq!(
            loading.text(),
            "loading  decode-0 kv, prefill-0 weights 45% (0 s)"
        );
        for index in 0..20 {
            loading.take(&format!("mixed-{index}"), "start-up: open");
        }
        assert_eq!(loading.text().chars().count(), COLUMNS);
        assert!(loading.text().ends_with(" (0 s)"));
        loading.finish();
    }

    #[test]
    fn only_what_the_line_tells_too_is_left_out() {
        let loading = Loading::with(true);
        assert!(loading.take("a", "12:00:00 a INFO attached"));
        assert!(!loading.take("a", "12:00:00 a WARNING slow disk"));
        assert!(!loading.take("a", "error: no memory"));
        loading.finish();
        assert!(!loading.take("a", "start-up: weights 45%"));
        assert!(!Loading::with(false).take("a", "start-up: weights"));
    }
}
