//! A scenario in the words of people: `8 x h100, llama-3.1-8b, policy dopd-2`.
//!
//! Called by `dopd._router` with the JSON that `dopd.sim` and `dopd simulate` make; the one place
//! that checks it.

use std::sync::Arc;

use dopd_core::{
    brain::BrainConfig,
    cost::{Timings, TimingsError},
    fleet::Role,
    policy::PolicyConfig,
    units::Micros,
};
use serde::{Deserialize, Serialize};

use crate::{
    policies,
    scenario::{Fault, Scenario, SloRule, Trace, WorkerSpec},
};

/// Most workers.
pub const WORKERS_MAX: u32 = 4_096;
/// Longest target, delay or slow-down.
const MS_MAX: f64 = 3_600_000.0;
const RATIO_MAX: f64 = 1_000.0;
const PAGE_TOKENS: u32 = 16;
const NUM_SEQS_MAX: u32 = 512;
/// Longer than the longest prompt of the open traces (134,773 tokens), and one step computes it
/// whole, as in the policy study.
const MODEL_LEN_MAX: u32 = 1 << 18;

/// A model on a device, as the policy study calibrated it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// As in `--fleet NAME:COUNT`.
    pub device: &'static str,
    /// As in `--model`.
    pub model: &'static str,
    /// Name of its [`Timings`].
    pub timings: &'static str,
    /// Tokens that its pool holds.
    pub kv_tokens: u32,
    /// Of one token.
    pub kv_bytes_per_token: u64,
    /// Targets of the study's tight case, in ms: first token, later tokens.
    pub tight_ms: (f64, f64),
}

/// All that are built in.
pub const KINDS: [Kind; 2] = [
    Kind {
        device: "h100",
        model: "llama-3.1-8b",
        timings: "h100-8b",
        kv_tokens: 400_000,
        kv_bytes_per_token: 131_072,
        tight_ms: (500.0, 30.0),
    },
    // Four H100 as one worker.
    Kind {
        device: "h100",
        model: "llama-70b",
        timings: "h100-70b",
        kv_tokens: 410_000,
        kv_bytes_per_token: 327_680,
        tight_ms: (1_000.0, 40.0),
    },
];

/// What is simulated. Everything has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Setup {
    /// Kind of the workers.
    pub device: String,
    /// How many.
    pub workers: u32,
    /// What they serve.
    pub model: String,
    /// Their step times, instead of the built-in ones.
    pub timings: Option<Timings>,
    /// Tokens that a pool holds, instead of the built-in ones.
    pub kv_tokens: Option<u32>,
    /// Most sequences in a step.
    pub num_seqs_max: Option<u32>,
    /// Most tokens in a step; by default every prompt is computed whole.
    pub batch_tokens_max: Option<u32>,
    /// A name of [`policies::NAMES`].
    pub policy: String,
    /// Rules that differ from the named policy: fields of [`PolicyConfig`].
    pub rules: serde_json::Map<String, serde_json::Value>,
    /// How many workers are labelled prefill, instead of the policy's count.
    pub prefill_workers: Option<u32>,
    /// Target of the first token; the study's tight one by default.
    pub slo_ttft_ms: Option<f64>,
    /// Target of later tokens; the study's tight one by default.
    pub slo_tpot_ms: Option<f64>,
    /// The first is at least so many times the unloaded prefill.
    pub slo_prefill_ratio: f64,
    /// How much dearer mixed steps really are; the calibration's by default.
    pub mixed_penalty: Option<f64>,
    /// Workers keep prefixes.
    pub has_prefix_cache: bool,
    /// Longest answer that requests ask for; 0: the longest of the trace.
    pub max_tokens: u32,
    /// From router to worker, and back.
    pub network_us: u64,
    /// What breaks.
    pub faults: Vec<Fault>,
    /// Start of all random numbers.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            device: "h100".to_owned(),
            workers: 8,
            model: "llama-3.1-8b".to_owned(),
            timings: None,
            kv_tokens: None,
            num_seqs_max: None,
            batch_tokens_max: None,
            policy: "dopd".to_owned(),
            rules: serde_json::Map::new(),
            prefill_workers: None,
            slo_ttft_ms: None,
            slo_tpot_ms: None,
            slo_prefill_ratio: 3.0,
            mixed_penalty: None,
            has_prefix_cache: false,
            max_tokens: 0,
            network_us: 100,
            faults: Vec::new(),
            seed: 1,
        }
    }
}

/// What cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No JSON of these fields.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A name that nothing has.
    #[error("no {what} {name:?}; there are {known}")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// Which.
        name: String,
        /// Those that are.
        known: String,
    },
    /// Out of its limits.
    #[error("{field} is {value}, must be {limits}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        limits: String,
    },
    /// A rule that the policy does not have.
    #[error("rules: {source}, in {rules}")]
    Rules {
        /// What is wrong.
        source: serde_json::Error,
        /// All of them, as JSON.
        rules: String,
    },
    /// No step times.
    #[error(transparent)]
    Timings(#[from] TimingsError),
}

impl Setup {
    /// From JSON.
    pub fn from_json(json: &str) -> Result<Self, SetupError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The run that it describes.
    pub fn scenario(&self, trace: Arc<Trace>) -> Result<Scenario, SetupError> {
        let kind = self.kind()?;
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(value(
                "workers",
                &self.workers,
                format!("1 to {WORKERS_MAX}"),
            ));
        }
        let slo = self.slo(kind)?;
        let (policy, roles) = self.policy(&slo)?;
        let worker = self.worker(kind)?;
        let longest = trace.requests.iter().map(|request| request.output_tokens);
        let max_tokens = match self.max_tokens {
            0 => longest.max().unwrap_or(1),
            given => given,
        };
        let fleet = roles
            .into_iter()
            .map(|role| WorkerSpec {
                role,
                ..worker.clone()
            })
            .collect();
        Ok(Scenario {
            trace,
            fleet,
            brain: BrainConfig {
                seed: self.seed,
                queue_requests_max: usize::MAX,
                queue_tokens_max: u64::MAX,
                // Nobody asks a run why; drive a brain of your own to.
                explain_decisions_max: 0,
                policy,
                ..BrainConfig::default()
            },
            slo,
            faults: self.faults.clone(),
            network: Micros(self.network_us),
            max_tokens,
            seed: self.seed,
        })
    }

    fn kind(&self) -> Result<&'static Kind, SetupError> {
        let unknown = |what, name: &str, known: Vec<&str>| SetupError::Unknown {
            what,
            name: name.to_owned(),
            known: known.join(", "),
        };
        let of_device: Vec<_> = KINDS
            .iter()
            .filter(|kind| kind.device == self.device)
            .collect();
        if of_device.is_empty() {
            let mut known: Vec<_> = KINDS.iter().map(|kind| kind.device).collect();
            known.dedup();
            return Err(unknown("device", &self.device, known));
        }
        let models = of_device.iter().map(|kind| kind.model).collect();
        of_device
            .into_iter()
            .find(|kind| kind.model == self.model)
            .ok_or_else(|| unknown("model", &self.model, models))
    }

    fn slo(&self, kind: &Kind) -> Result<SloRule, SetupError> {
        let ttft = self.slo_ttft_ms.unwrap_or(kind.tight_ms.0);
        let tpot = self.slo_tpot_ms.unwrap_or(kind.tight_ms.1);
        within("slo_ttft_ms", ttft, (0.001, MS_MAX))?;
        within("slo_tpot_ms", tpot, (0.001, MS_MAX))?;
        within(
            "slo_prefill_ratio",
            self.slo_prefill_ratio,
            (0.0, RATIO_MAX),
        )?;
        Ok(SloRule {
            ttft: micros(ttft),
            ttft_prefill_ratio: self.slo_prefill_ratio,
            tpot: micros(tpot),
        })
    }

    /// The named policy with the targets of the run and the rules that differ.
    fn policy(&self, slo: &SloRule) -> Result<(PolicyConfig, Vec<Role>), SetupError> {
        let workers = self.workers as usize;
        let Some((mut policy, mut roles)) = policies::named(&self.policy, workers) else {
            let known: Vec<_> = policies::NAMES.iter().map(|(name, _)| *name).collect();
            return Err(SetupError::Unknown {
                what: "policy",
                name: self.policy.clone(),
                known: format!("{} (P + D = {workers} workers)", known.join(", ")),
            });
        };
        policy.ttft = slo.ttft;
        policy.tpot = slo.tpot;
        policy.ttft_prefill_ratio = slo.ttft_prefill_ratio;
        policy.step.tpot = slo.tpot;
        if !self.rules.is_empty() {
            let asked = serde_json::Value::Object(self.rules.clone());
            let wrong = |source| SetupError::Rules {
                source,
                rules: asked.to_string(),
            };
            let mut all = serde_json::to_value(&policy).map_err(wrong)?;
            overlay(&mut all, &asked);
            policy = serde_json::from_value(all).map_err(wrong)?;
        }
        if let Some(prefill) = self.prefill_workers {
            if prefill as usize >= workers {
                let limits = format!("below workers ({workers})");
                return Err(value("prefill_workers", &prefill, limits));
            }
            for (at, role) in roles.iter_mut().enumerate() {
                *role = if at < prefill as usize {
                    Role::Prefill
                } else {
                    Role::Decode
                };
            }
        }
        Ok((policy, roles))
    }

    fn worker(&self, kind: &Kind) -> Result<WorkerSpec, SetupError> {
        let mut timings = match &self.timings {
            Some(timings) => timings.clone(),
            None => Timings::builtin(kind.timings).unwrap_or_default(),
        };
        if let Some(penalty) = self.mixed_penalty {
            within("mixed_penalty", penalty, (0.0, RATIO_MAX))?;
            timings.mixed_penalty_ratio = penalty;
        }
        timings.check()?;
        let kv_tokens = self.kv_tokens.unwrap_or(kind.kv_tokens);
        if kv_tokens < PAGE_TOKENS {
            return Err(value(
                "kv_tokens",
                &kv_tokens,
                format!("at least {PAGE_TOKENS}"),
            ));
        }
        Ok(WorkerSpec {
            role: Role::Mixed,
            timings,
            told: None,
            slowness_ratio: 1.0,
            page_tokens: PAGE_TOKENS,
            pages_total: kv_tokens / PAGE_TOKENS,
            kv_bytes_per_token: kind.kv_bytes_per_token,
            num_seqs_max: self.num_seqs_max.unwrap_or(NUM_SEQS_MAX),
            batch_tokens_max: self.batch_tokens_max.unwrap_or(MODEL_LEN_MAX),
            model_len_max: MODEL_LEN_MAX,
            has_prefix_cache: self.has_prefix_cache,
        })
    }
}

/// Objects field by field, everything else as a whole.
fn overlay(onto: &mut serde_json::Value, from: &serde_json::Value) {
    match (onto, from) {
        (serde_json::Value::Object(onto), serde_json::Value::Object(from)) => {
            for (name, value) in from {
                overlay(onto.entry(name).or_insert(serde_json::Value::Null), value);
            }
        }
        (onto, from) => *onto = from.clone(),
    }
}

fn value(field: &'static str, value: &impl ToString, limits: String) -> SetupError {
    SetupError::Value {
        field,
        value: value.to_string(),
        limits,
    }
}

fn within(field: &'static str, number: f64, (low, high): (f64, f64)) -> Result<(), SetupError> {
    if (low..=high).contains(&number) {
        return Ok(());
    }
    Err(value(field, &number, format!("{low} to {high}")))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be between 0 and MS_MAX"
)]
fn micros(ms: f64) -> Micros {
    Micros(libm::round(ms * 1e3) as u64)
}
