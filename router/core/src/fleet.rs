//! The fleet as last reported: what each attached worker is, and how loaded.

use serde::{Deserialize, Serialize};

use crate::{
    cost::Timings,
    units::{Pages, Tokens},
};

/// Label of a worker. Every worker can do both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes new prompts, hands them off.
    Prefill,
    /// Takes hand-offs.
    Decode,
    /// Takes prompts and keeps them.
    Mixed,
}

/// What a worker said of itself when it joined; constant for a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerFacts {
    /// Name, unique among attached workers.
    pub name: String,
    /// Random per process, so that a worker whose stream broke is known again; 0: unknown.
    #[serde(default)]
    pub incarnation: u64,
    /// Label when it joined.
    pub role: Role,
    /// Tokens per page.
    pub page_size: u32,
    /// Bytes of one page over all layers.
    pub page_bytes: u64,
    /// Size of its pool.
    pub pages_total: Pages,
    /// Most sequences in one step.
    pub num_seqs_max: u32,
    /// Most tokens in one step.
    pub batch_tokens_max: Tokens,
    /// Longest prompt plus answer.
    pub model_len_max: Tokens,
    /// Step times, measured or assumed.
    pub timings: Timings,
}

/// Load of a worker as of one report. `pages_free`, `pages_cached`, `running` and the counts of
/// steps and preemptions are for the status page; the brain decides by the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLoad {
    /// Steps made by this incarnation.
    pub step: u64,
    /// Time of the last step; zero if idle.
    pub step_us: u32,
    /// Pages that can be taken at once.
    pub pages_free: Pages,
    /// Pages of the prefix cache.
    pub pages_cached: Pages,
    /// Pages that a peer may still write.
    pub pages_fenced: Pages,
    /// Pages of seats, as the worker counts them.
    #[serde(default)]
    pub pages_owned: Pages,
    /// Seats that take part in steps.
    pub running: u32,
    /// Prompt tokens that are not computed yet.
    pub prefill_tokens_queued: Tokens,
    /// Prompt tokens that the last step computed.
    #[serde(default)]
    pub step_prefill_tokens: Tokens,
    /// Sequences that the last step decoded.
    #[serde(default)]
    pub step_decode_seqs: u32,
    /// What the worker had expected of the last step; zero if it cannot tell.
    #[serde(default)]
    pub step_expected_us: u32,
    /// What it expects of a step that only decodes those that run.
    #[serde(default)]
    pub decode_step_us: u32,
    /// How much dearer mixed steps are at this worker, as it has learnt; in thousandths.
    #[serde(default)]
    pub mixed_penalty_permille: u32,
    /// Steps of this incarnation that computed prompts beside those that decode.
    #[serde(default)]
    pub steps_mixed: u64,
    /// The same while those that decode waited.
    #[serde(default)]
    pub steps_paused: u64,
    /// Seats of this incarnation whose pages went to others.
    #[serde(default)]
    pub preempted: u64,
}
