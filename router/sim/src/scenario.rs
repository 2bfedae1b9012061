//! What is simulated: arrivals, workers, policy, targets, faults.

use std::sync::Arc;

use dopd_core::{brain::BrainConfig, cost::Timings, fleet::Role, units::Micros};
use serde::{Deserialize, Serialize};

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Since the start of the trace.
    pub arrival: Micros,
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens of the answer, at least 1. The brain never sees it.
    pub output_tokens: u32,
    /// Client or tenant; 0: unknown.
    pub tenant: u32,
    /// Lower goes first.
    pub priority: i32,
    /// Replaces the policy's own key of order, in microseconds; the lowest goes first.
    #[serde(default)]
    pub key: Option<i64>,
    /// Blocks of `Trace::block_tokens`: equal leading numbers are a shared prefix.
    pub blocks: Arc<[u64]>,
}

/// Arrivals, by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Where they come from; heads every table.
    pub name: String,
    /// Tokens of a block; 0: the trace has none.
    pub block_tokens: u32,
    /// By arrival.
    pub requests: Vec<TraceRequest>,
}

/// One worker of the fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Its label.
    pub role: Role,
    /// What its steps take. The brain is told `told`.
    pub timings: Timings,
    /// What it says that they take; `None`: the truth.
    pub told: Option<Timings>,
    /// How much slower than that it is: 1 is not, 2 is a straggler.
    pub slowness_ratio: f64,
    /// Tokens per page.
    pub page_tokens: u32,
    /// Size of its pool.
    pub pages_total: u32,
    /// Bytes of KV per token.
    pub kv_bytes_per_token: u64,
    /// Most sequences in a step.
    pub num_seqs_max: u32,
    /// Most tokens in a step.
    pub batch_tokens_max: u32,
    /// Longest prompt plus answer.
    pub model_len_max: u32,
    /// Keeps prefixes of ended sequences.
    pub has_prefix_cache: bool,
}

/// The targets by which requests are judged, and which they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SloRule {
    /// Time to first token for short prompts.
    pub ttft: Micros,
    /// It is at least so many times the unloaded prefill of the prompt, alone on a worker of the
    /// fleet's first kind; 0: the same for all.
    pub ttft_prefill_ratio: f64,
    /// Mean time per token after the first.
    pub tpot: Micros,
}

/// Something that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// When.
    pub at: Micros,
    /// Which worker, by its place in the fleet.
    pub worker: usize,
    /// What happens.
    pub kind: FaultKind,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It dies, with all that it holds; back after so long, if ever.
    Dies {
        /// Until a new process attaches.
        back_after: Option<Micros>,
    },
    /// Its steps take so many times as long from now on.
    Slows {
        /// 1: as at first.
        ratio: f64,
    },
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Who comes when.
    pub trace: Arc<Trace>,
    /// Who computes.
    pub fleet: Vec<WorkerSpec>,
    /// The brain: its policy is in here.
    pub brain: BrainConfig,
    /// What counts as good.
    pub slo: SloRule,
    /// What breaks, by time.
    pub faults: Vec<Fault>,
    /// From router to worker, and back.
    pub network: Micros,
    /// Longest answer that requests ask for: what `max_tokens` is without knowing the answer.
    pub max_tokens: u32,
    /// Start of all random numbers.
    pub seed: u64,
}
