//! Faults of a mock worker, for tests of what others make of them (`--mock-fault KIND=MARKER`).
//!
//! A fault belongs to the sequences whose tokens contain the marker: in the prompt, or in the
//! answer, which the mock's arithmetic makes known beforehand. It happens in the step that computes
//! the marker's last token. The same kinds as in Python's `engine/mock_faults`. `seats` looks for
//! markers, `worker` carries out what concerns the whole process.

use std::{str::FromStr, time::Duration};

/// With which an `exit` ends the process.
pub const EXIT_CODE: i32 = 86;
/// How much longer than announced a slow step takes.
pub const SLOW_FACTOR: u32 = 10;
/// A step without a time of its own is taken for so long.
pub const SLOW_STEP: Duration = Duration::from_millis(10);
/// A step that hangs ends after this: never, for a test.
pub const HANG: Duration = Duration::from_secs(1_000_000);
/// Far outside of any vocabulary.
pub const LIE_TOKEN: u32 = 1 << 30;

/// What goes wrong in the step that computes a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process ends without a word.
    Exit,
    /// The step never ends; heartbeats go on.
    Hang,
    /// The row alone fails.
    Raise,
    /// This step, and every later one of the sequence, takes ten times as long as announced.
    Slow,
    /// The token drawn is outside of the vocabulary.
    Lie,
    /// The token drawn is another one: what a test of right answers must notice.
    Wrong,
}

impl FaultKind {
    const ALL: [(&'static str, Self); 6] = [
        ("exit", Self::Exit),
        ("hang", Self::Hang),
        ("raise", Self::Raise),
        ("slow", Self::Slow),
        ("lie", Self::Lie),
        ("wrong", Self::Wrong),
    ];
}

/// One `--mock-fault`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Its bytes are the tokens; not empty.
    marker: Vec<u32>,
}

impl Fault {
    /// Tokens of the marker.
    pub fn len(&self) -> usize {
        self.marker.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.marker.is_empty()
    }

    /// Whether these tokens contain the marker.
    pub fn is_in(&self, tokens: &[Option<u32>]) -> bool {
        let marker = self.marker.iter().copied().map(Some);
        tokens
            .windows(self.len())
            .any(|window| window.iter().copied().eq(marker.clone()))
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, marker) = text.split_once('=').unwrap_or((text, ""));
        let kind = FaultKind::ALL.iter().find(|(word, _)| *word == name);
        match kind {
            Some(&(_, kind)) if !marker.is_empty() => Ok(Self {
                kind,
                marker: marker.bytes().map(u32::from).collect(),
            }),
            _ => {
                let kinds = FaultKind::ALL.map(|(word, _)| word).join(", ");
                Err(format!(
                    "mock fault {text:?} is not KIND=MARKER with KIND of {kinds}"
                ))
            }
        }
    }
}
