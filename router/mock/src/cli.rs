//! Flags: those of `python -m dopd.worker` for one worker, and `--workers` for many in one process.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use dopd_router::wire::worker::Role;
use tracing_subscriber::EnvFilter;

use crate::{faults::Fault, model, step::Pace, worker::WorkerConfig};

/// Pages without `--pages` or `--kv-memory`: a million tokens.
const PAGES_DEFAULT: u32 = 65_536;
/// Workers of one process.
const WORKERS_MAX: u32 = 4_096;
/// Longest join token file.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// Mock workers: the real worker protocol, no model. Stands in for `python -m dopd.worker --mock`,
/// or runs many workers in one process with `--workers`.
#[derive(Clone, Debug, Parser)]
#[command(name = "dopd-mock", version)]
pub struct Cli {
    /// Workers of this process per role, "prefill=4,decode=4,mixed=0"; instead of --role
    #[arg(long, value_name = "LIST", conflicts_with = "role")]
    pub workers: Option<String>,
    /// Role of the one worker
    #[arg(long, value_enum)]
    pub role: Option<RoleName>,
    /// The router's worker listener
    #[arg(long, value_name = "HOST:PORT")]
    pub join: String,
    /// Name of the worker, or the first part of the names with --workers [default: mock-ROLE-PID]
    #[arg(long)]
    pub name: Option<String>,
    /// Accepted: every worker of this program is a mock
    #[arg(long)]
    pub mock: bool,
    /// Name of the model in the hello
    #[arg(long, default_value = model::MODEL_NAME)]
    pub served_model_name: String,
    /// Address that the data link listens on
    #[arg(long, default_value = "127.0.0.1")]
    pub data_host: String,
    /// KV memory, "512MiB"; a page takes 128 bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_memory: Option<u64>,
    /// Pages of the pool of each worker; instead of --kv-memory
    #[arg(long, conflicts_with = "kv_memory")]
    pub pages: Option<u32>,
    /// Longest prompt plus answer in tokens
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=i64::from(model::MAX_MODEL_LEN)))]
    pub max_model_len: Option<u32>,
    /// Most sequences in one step
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_num_seqs: u32,
    /// Most tokens in one step, at least --max-num-seqs
    #[arg(long, default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_tokens: u32,
    /// Tokens per page
    #[arg(long, default_value_t = model::PAGE_SIZE)]
    pub page_size: u32,
    /// Step times: instant, a name known to the cost model, or a file
    #[arg(long, default_value = "instant", value_name = "NAME|FILE")]
    pub mock_timings: String,
    /// Every step takes this long, whatever is in it
    #[arg(long, conflicts_with = "mock_timings")]
    pub step_ms: Option<NonZeroU64>,
    /// What goes wrong when tokens are computed that contain MARKER; may be repeated. exit, hang,
    /// raise, slow, lie or wrong
    #[arg(long, value_name = "KIND=MARKER")]
    pub mock_fault: Vec<Fault>,
    /// File with the join token
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Join token
    #[arg(long, env = "DOPD_JOIN_TOKEN", hide_env_values = true, hide = true)]
    pub join_token: Option<String>,
    /// End when stdin ends: nothing outlives the process that started this one
    #[arg(long)]
    pub exit_on_stdin_eof: bool,
    /// error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub dtype: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub threads: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub config: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub model: Option<String>,
}

/// A role as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Takes new prompts.
    Prefill,
    /// Takes hand-offs.
    Decode,
    /// Both.
    Mixed,
}

impl RoleName {
    fn parts(self) -> (Role, &'static str) {
        match self {
            Self::Prefill => (Role::Prefill, "prefill"),
            Self::Decode => (Role::Decode, "decode"),
            Self::Mixed => (Role::Mixed, "mixed"),
        }
    }
}

impl Cli {
    /// The workers to run; the error is one line for the user.
    pub fn worker_configs(&self) -> Result<Vec<WorkerConfig>, String> {
        if self.page_size != model::PAGE_SIZE {
            let (told, is) = (self.page_size, model::PAGE_SIZE);
            return Err(format!(
                "--page-size {told}: the mock model has pages of {is} tokens"
            ));
        }
        if self.max_batch_tokens < self.max_num_seqs {
            return Err(format!(
                "--max-batch-tokens {} is below --max-num-seqs {}: all sequences decode in a step",
                self.max_batch_tokens, self.max_num_seqs
            ));
        }
        let base = self.base_config()?;
        let Some(list) = &self.workers else {
            let role = self.role.ok_or("--role or --workers is needed")?;
            let (role, word) = role.parts();
            let own = || format!("mock-{word}-{}", std::process::id());
            let name = self.name.clone().unwrap_or_else(own);
            return Ok(vec![WorkerConfig { name, role, ..base }]);
        };
        let prefix = self.name.clone().unwrap_or_else(|| "mock".to_owned());
        let mut configs = Vec::new();
        for (role, count) in parse_workers(list)? {
            let (role, word) = role.parts();
            configs.extend((0..count).map(|index| WorkerConfig {
                name: format!("{prefix}-{word}-{index}"),
                role,
                ..base.clone()
            }));
        }
        Ok(configs)
    }

    /// The level is ours; of libraries only warnings are shown, unless a whole filter is given.
    pub fn log_filter(&self) -> Result<EnvFilter, String> {
        let level = &self.log_level;
        let filter = if level.contains(['=', ',']) {
            level.clone()
        } else {
            format!("warn,dopd_mock={level}")
        };
        EnvFilter::try_new(filter).map_err(|error| format!("--log-level {level}: {error}"))
    }

    fn base_config(&self) -> Result<WorkerConfig, String> {
        let by_memory = self
            .kv_memory
            .map(|bytes| bytes / u64::from(model::PAGE_BYTES));
        let pages = match by_memory {
            Some(pages) => u32::try_from(pages)
                .map_err(|_| format!("--kv-memory gives {pages} pages, at most {}", u32::MAX))?,
            None => self.pages.unwrap_or(PAGES_DEFAULT),
        };
        if pages == 0 {
            return Err("no page fits: --pages or --kv-memory is too small".to_owned());
        }
        Ok(WorkerConfig {
            name: String::new(),
            role: Role::Unspecified,
            join: self.join.clone(),
            join_token: self.token()?,
            data_host: self.data_host.clone(),
            model: self.served_model_name.clone(),
            pages,
            num_seqs_max: self.max_num_seqs,
            batch_tokens_max: self.max_batch_tokens,
            model_len_max: self.max_model_len.unwrap_or(model::MAX_MODEL_LEN),
            pace: self.pace()?,
            faults: self.mock_fault.clone(),
        })
    }

    fn pace(&self) -> Result<Pace, String> {
        match self.step_ms {
            Some(ms) => Ok(Pace::fixed(Duration::from_millis(ms.get()))),
            None => Pace::named(&self.mock_timings),
        }
    }

    fn token(&self) -> Result<String, String> {
        let Some(path) = &self.join_token_file else {
            return Ok(self.join_token.clone().unwrap_or_default());
        };
        let failed = |error| format!("--join-token-file {}: {error}", path.display());
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > TOKEN_BYTES_MAX {
            let path = path.display();
            return Err(format!(
                "--join-token-file {path}: {size} bytes, at most {TOKEN_BYTES_MAX}"
            ));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Ok(text.trim().to_owned())
    }
}

/// "prefill=4,decode=4" -> the roles with a count above 0.
fn parse_workers(list: &str) -> Result<Vec<(RoleName, u32)>, String> {
    let mut found = Vec::new();
    let mut sum = 0_u32;
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let wrong = || format!("--workers {list}: {part} is not ROLE=COUNT");
        let (role, count) = part.split_once('=').ok_or_else(wrong)?;
        let role = RoleName::from_str(role.trim(), true).map_err(|_| wrong())?;
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        if found.iter().any(|&(other, _)| other == role) {
            return Err(format!("--workers {list}: a role stands there twice"));
        }
        sum = sum.saturating_add(count);
        found.push((role, count));
    }
    if sum == 0 || sum > WORKERS_MAX {
        return Err(format!(
            "--workers {list}: {sum} workers, must be 1 to {WORKERS_MAX}"
        ));
    }
    Ok(found)
}

/// "512MiB", "1GB", "65536".
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => {
            return Err(format!(
                "unit {unit} is not one of B, KiB, MiB, GiB, kB, MB, GB"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text} is not a size"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text} is too large"))
}
