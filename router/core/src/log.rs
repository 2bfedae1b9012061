//! The event log: what the brain was told and a hash of what it decided, so that any run can be
//! decided again elsewhere. Lines of JSON. The first holds version and configuration (with the
//! seed), every other one event. Counts and ids only: no prompt, no answer, no text of a user.
//!
//! Pure: the router writes the lines to a file and reads them back.

use serde::{Deserialize, Serialize};

use crate::{
    action::Action,
    brain::{Brain, BrainConfig, Decision},
    event::Event,
    units::Micros,
};

/// Version of the lines' shape.
const FORMAT: u32 = 1;

/// Longest line that is read. A report of 4,096 seats needs 200 KiB.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Decisions of one event that a difference explains, the newest.
const REASONS_MAX: usize = 16;

/// First line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    dopd_event_log: u32,
    version: String,
    config: BrainConfig,
}

/// Every other line.
#[derive(Debug, Deserialize)]
struct Entry {
    now: Micros,
    event: Event,
    /// 16 hex digits.
    actions_hash: String,
}

/// The part of an entry that is known before the brain decides.
#[derive(Serialize)]
struct Told<'a> {
    now: Micros,
    event: &'a Event,
}

/// An event or a decision could not be written as JSON; no value of the brain does that.
#[derive(Debug, thiserror::Error)]
#[error("event log line cannot be encoded: {0}")]
pub struct EncodeError(#[from] serde_json::Error);

/// The first line of a log, with its newline.
pub fn encode_header(config: &BrainConfig) -> Result<Vec<u8>, EncodeError> {
    let mut line = serde_json::to_vec(&Header {
        dopd_event_log: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: config.clone(),
    })?;
    line.push(b'\n');
    Ok(line)
}

/// A line in the making: begun before the brain consumes the event, ended with what it decided.
#[derive(Debug)]
pub struct Line(Vec<u8>);

impl Line {
    /// Writes down the event.
    pub fn begin(now: Micros, event: &Event) -> Result<Self, EncodeError> {
        let mut line = serde_json::to_vec(&Told { now, event })?;
        line.pop(); // The closing brace: one field is to come.
        Ok(Self(line))
    }

    /// Adds the hash of the decision. The line, with its newline.
    pub fn end(self, actions: &[Action]) -> Result<Vec<u8>, EncodeError> {
        let mut line = self.0;
        line.extend_from_slice(br#","actions_hash":""#);
        line.extend_from_slice(hash(actions)?.as_bytes());
        line.extend_from_slice(b"\"}\n");
        Ok(line)
    }
}

/// FNV-1a over the JSON of the actions, as 16 hex digits. Finds accidents, not forgery.
fn hash(actions: &[Action]) -> Result<String, serde_json::Error> {
    let bytes = serde_json::to_vec(actions)?;
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    Ok(format!("{hash:016x}"))
}

/// What a replay found.
#[derive(Debug, PartialEq)]
pub struct ReplayReport {
    /// dopd's version that wrote the log.
    pub version: String,
    /// Events decided again.
    pub events: u64,
    /// Actions that they led to.
    pub actions: u64,
    /// Time of the last event.
    pub until: Micros,
    /// The last line breaks off: the writer was stopped in the middle of it.
    pub is_cut: bool,
    /// Where the decisions part; the replay ends there.
    pub difference: Option<Difference>,
}

/// The first event that is decided otherwise now.
#[derive(Debug, PartialEq)]
pub struct Difference {
    /// 1-based line in the log.
    pub line: u64,
    /// When it was.
    pub now: Micros,
    /// What was decided now; of the recorded decision only the hash is known.
    pub actions: Vec<Action>,
    /// What was seen, chosen and refused for it, as `explain` tells it; the newest if there are
    /// many.
    pub reasons: Vec<Decision>,
}

/// Why a log cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read on.
    #[error("event log line {line} cannot be read: {cause}")]
    Read {
        /// 1-based.
        line: u64,
        /// From the reader.
        cause: String,
    },
    /// The first line is not the head of a log.
    #[error("not an event log of format {FORMAT}: {cause}")]
    Header {
        /// What is wrong with it.
        cause: String,
    },
    /// A line in the middle is not an event.
    #[error("event log line {line} is not an event: {cause}")]
    Line {
        /// 1-based.
        line: u64,
        /// From the parser.
        cause: String,
    },
}

/// Decides a recorded run again with a fresh brain and compares.
pub fn replay<E: std::fmt::Display>(
    lines: impl IntoIterator<Item = Result<String, E>>,
) -> Result<ReplayReport, ReplayError> {
    let mut lines = lines.into_iter().zip(1_u64..).peekable();
    let header = read_header(lines.next().map(|(line, _)| line))?;
    // Explanations decide nothing.
    let mut brain = Brain::new(BrainConfig {
        explain_decisions_max: REASONS_MAX,
        ..header.config
    });
    let mut report = ReplayReport {
        version: header.version,
        events: 0,
        actions: 0,
        until: Micros(0),
        is_cut: false,
        difference: None,
    };
    while let Some((line, number)) = lines.next() {
        let text = line.map_err(|cause| ReplayError::Read {
            line: number,
            cause: cause.to_string(),
        })?;
        let entry = match parse::<Entry>(&text) {
            Ok(entry) => entry,
            Err(_) if lines.peek().is_none() => {
                report.is_cut = true;
                break;
            }
            Err(cause) => {
                return Err(ReplayError::Line {
                    line: number,
                    cause,
                });
            }
        };
        let actions = brain.handle(entry.now, entry.event);
        report.events += 1;
        report.actions += actions.len() as u64;
        report.until = entry.now;
        let replayed = hash(&actions).map_err(|cause| ReplayError::Line {
            line: number,
            cause: cause.to_string(),
        })?;
        if replayed != entry.actions_hash {
            report.difference = Some(Difference {
                line: number,
                now: entry.now,
                actions,
                reasons: reasons(&brain, entry.now),
            });
            break;
        }
    }
    Ok(report)
}

/// What the brain noted at this event.
fn reasons(brain: &Brain, now: Micros) -> Vec<Decision> {
    let mut decisions = brain.decisions(REASONS_MAX).decisions;
    decisions.retain(|decision| decision.until == now);
    decisions
}

fn read_header<E: std::fmt::Display>(
    line: Option<Result<String, E>>,
) -> Result<Header, ReplayError> {
    let text = line
        .ok_or_else(|| ReplayError::Header {
            cause: "it is empty".to_owned(),
        })?
        .map_err(|cause| ReplayError::Read {
            line: 1,
            cause: cause.to_string(),
        })?;
    let header: Header = parse(&text).map_err(|cause| ReplayError::Header { cause })?;
    if header.dopd_event_log != FORMAT {
        let cause = format!("it is of format {}", header.dopd_event_log);
        return Err(ReplayError::Header { cause });
    }
    Ok(header)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.len() > LINE_BYTES_MAX {
        return Err(format!(
            "{} bytes are more than {LINE_BYTES_MAX}",
            text.len()
        ));
    }
    serde_json::from_str(text).map_err(|cause| cause.to_string())
}
