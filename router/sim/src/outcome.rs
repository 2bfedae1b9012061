//! What came of a run, request by request and worker by worker.

use dopd_core::units::Micros;
use serde::{Deserialize, Serialize};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its answer is complete.
    Finished,
    /// Refused or failed; the brain said why.
    Rejected,
    /// Neither when the run ended.
    Unfinished,
}

/// One request, in the order of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestOutcome {
    /// As in the trace, on the run's clock.
    pub arrival: Micros,
    /// As in the trace.
    pub prompt_tokens: u32,
    /// As in the trace.
    pub output_tokens: u32,
    /// As in the trace.
    pub tenant: u32,
    /// What its first token was to take; the scenario's rule.
    pub ttft_target: Micros,
    /// Its first token.
    pub first: Option<Micros>,
    /// Its end.
    pub end: Option<Micros>,
    /// How it ended.
    pub ending: Ending,
    /// Its prompt was computed at a worker labelled decode.
    pub is_stolen: bool,
    /// A worker labelled prefill made its answer, more than the first token of it, to the end.
    pub is_kept: bool,
    /// Times its pages were taken back.
    pub preemptions: u16,
    /// Times it was computed again for a fault.
    pub replays: u16,
    /// Prompt tokens that were cached.
    pub cached_tokens: u32,
}

/// One worker, in the order of the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerOutcome {
    /// In steps that compute prompts only.
    pub prefill_us: u64,
    /// In steps that decode only.
    pub decode_us: u64,
    /// In steps that do both.
    pub mixed_us: u64,
    /// Steps.
    pub steps: u64,
    /// Steps that computed prompts while others waited to decode.
    pub pauses: u64,
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Answer tokens made.
    pub decode_tokens: u64,
    /// Most pages in use at once.
    pub pages_peak: u32,
    /// Bytes sent to others.
    pub handoff_bytes: u64,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// By the order of the trace.
    pub requests: Vec<RequestOutcome>,
    /// By the order of the fleet.
    pub workers: Vec<WorkerOutcome>,
    /// When the last event was.
    pub end: Micros,
    /// Events that the brain handled.
    pub events: u64,
    /// Defects: sessions that the brain broke off, and requests that ended twice. Always 0.
    #[serde(default)]
    pub breaks: u64,
    /// Pages that were not given back when the run ended; 0 if every request ended.
    #[serde(default)]
    pub pages_left: u64,
}
