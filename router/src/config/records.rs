//! The records. A field's path in the TOML file is `table.field`, its variable `DOPD_TABLE__FIELD`.

use std::{net::IpAddr, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything that the router can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The OpenAI front.
    pub http: HttpConfig,
    /// The gRPC front.
    pub grpc: GrpcConfig,
    /// Where workers dial in.
    pub workers: WorkersConfig,
    /// Metrics and admin.
    pub admin: AdminConfig,
    /// Bounds on requests.
    pub limits: LimitsConfig,
    /// What is served.
    pub model: ModelConfig,
    /// Local workers that the router starts itself.
    pub cluster: ClusterConfig,
    /// Logs and records.
    pub log: LogConfig,
}

/// The OpenAI front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 picks a free one.
    pub port: u16,
    /// Front threads; 0: cores - 1, at least 1.
    pub threads: usize,
    /// Longest request body. 8 MiB of prompt text and its JSON escapes.
    pub body_bytes_max: usize,
    /// Open connections; more are closed at once.
    pub connections_max: usize,
    /// Time for head and body of a request to arrive, in milliseconds.
    pub read_timeout_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8000,
            threads: 0,
            body_bytes_max: 16 << 20,
            connections_max: 16_384,
            read_timeout_ms: 30_000,
        }
    }
}

/// The gRPC front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Port; 0 picks a free one. The host is that of `http`.
    pub port: u16,
    /// Longest request message.
    pub message_bytes_max: usize,
    /// Concurrent calls per connection; the stack has no limit of its own.
    pub streams_max: u32,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            port: 50051,
            message_bytes_max: 16 << 20,
            streams_max: 1_000,
        }
    }
}

/// Where workers dial in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersConfig {
    /// Address to listen on. Off loopback is refused until mutual TLS exists.
    pub host: IpAddr,
    /// Port; 0 picks a free one.
    pub port: u16,
    /// File with the join token; `None`: one is minted at start.
    pub join_token_file: Option<PathBuf>,
    /// Silence after which a session is over, in milliseconds.
    pub lease_ms: u32,
    /// Longest time between two reports, in milliseconds. Four missed: no new work.
    pub report_interval_ms: u32,
    /// Attached workers; more are refused.
    pub workers_max: usize,
}

impl Default for WorkersConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 50052,
            join_token_file: None,
            lease_ms: 3_000,
            report_interval_ms: 200,
            workers_max: 4_096,
        }
    }
}

/// Metrics and admin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address to listen on. Off loopback is refused until keys exist.
    pub host: IpAddr,
    /// Port; 0 picks a free one.
    pub port: u16,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 9464,
        }
    }
}

/// Bounds on requests, checked before anything is allocated for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Text of a prompt in bytes.
    pub prompt_bytes_max: usize,
    /// Messages of a chat.
    pub messages_max: usize,
    /// Choices per request.
    pub choices_max: u32,
    /// Stop strings per request.
    pub stop_strings_max: usize,
    /// Bytes of one stop string.
    pub stop_bytes_max: usize,
    /// Stop tokens per request.
    pub stop_token_ids_max: usize,
    /// Alternatives per position.
    pub top_logprobs_max: u32,
    /// Requests that wait in the brain.
    pub queue_requests_max: usize,
    /// Prompt tokens that wait in the brain.
    pub queue_tokens_max: u64,
    /// Longest life of a request, and the default, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long a request waits for a first worker, in milliseconds.
    pub no_worker_wait_ms: u64,
    /// Bytes that may wait for a slow reader before its answer is kept as token ids.
    pub slow_reader_bytes_max: usize,
    /// Time without progress after which a slow reader is cut, in milliseconds.
    pub slow_reader_timeout_ms: u64,
    /// Time given to running requests at shutdown, in milliseconds.
    pub drain_timeout_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            prompt_bytes_max: 8 << 20,
            messages_max: 2_048,
            choices_max: 16,
            stop_strings_max: 16,
            stop_bytes_max: 256,
            stop_token_ids_max: 64,
            top_logprobs_max: 20,
            queue_requests_max: 10_000,
            queue_tokens_max: 50_000_000,
            request_timeout_ms: 600_000,
            no_worker_wait_ms: 10_000,
            slow_reader_bytes_max: 256 << 10,
            slow_reader_timeout_ms: 30_000,
            drain_timeout_ms: 120_000,
        }
    }
}

/// What is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder or `.gguf` file; `None` with `cluster.mock`: the built-in mock model.
    pub path: Option<PathBuf>,
    /// Tokenizer, if it lies elsewhere: a folder, a `tokenizer.json` or a `.gguf`.
    pub tokenizer: Option<PathBuf>,
    /// Name that clients use; `None`: the last part of the path.
    pub served_name: Option<String>,
    /// Longest prompt plus answer in tokens; `None`: the model's own.
    pub max_model_len: Option<u32>,
}

/// Local workers that the router starts, restarts and stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Workers labelled prefill.
    pub prefill: u32,
    /// Workers labelled decode.
    pub decode: u32,
    /// Workers labelled mixed.
    pub mixed: u32,
    /// Mock engine instead of a model: no torch, deterministic tokens.
    pub mock: bool,
    /// Step times of the mock: `instant`, `h100-8b`, `h100-70b` or a calibration file.
    pub mock_timings: String,
    /// Element type of weights and KV: `auto`, `float32`, `bfloat16`, `float16`.
    pub dtype: String,
    /// KV memory per worker, for example `512MiB`; `None`: chosen by the worker.
    pub kv_memory: Option<String>,
    /// Sequences per step; `None`: chosen by the worker.
    pub max_num_seqs: Option<u32>,
    /// Further arguments for each worker.
    pub worker_args: Vec<String>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            prefill: 1,
            decode: 1,
            mixed: 0,
            mock: false,
            mock_timings: "instant".to_owned(),
            dtype: "auto".to_owned(),
            kv_memory: None,
            max_num_seqs: None,
            worker_args: Vec::new(),
        }
    }
}

/// Logs and records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Filter in the syntax of `tracing`: `info,dopd_router=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: String,
    /// File for the brain's event log, to be replayed by `dopd replay`.
    pub record: Option<PathBuf>,
    /// Size at which the record is rotated once, in bytes.
    pub record_bytes_max: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: "text".to_owned(),
            record: None,
            record_bytes_max: 256 << 20,
        }
    }
}
