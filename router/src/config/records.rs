//! The records: every setting of the router with its unit, default, limits and flag.
//!
//! A setting's path in the TOML file is `table.field`, its variable `DOPD_TABLE__FIELD`. See
//! [`super::declare`].

use std::{net::IpAddr, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    declare::{Field, maybe, settings},
    keys::KeyConfig,
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DAY_MS: u64 = 24 * 3_600_000;

/// Everything that the router can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is served.
    pub model: ModelConfig,
    /// Local workers that the router starts itself.
    pub cluster: ClusterConfig,
    /// The OpenAI front.
    pub http: HttpConfig,
    /// The gRPC front.
    pub grpc: GrpcConfig,
    /// Where workers dial in.
    pub workers: WorkersConfig,
    /// Metrics and admin.
    pub admin: AdminConfig,
    /// Latency targets.
    pub slo: SloConfig,
    /// Order, places and steps.
    pub policy: PolicySettings,
    /// Bounds on requests.
    pub limits: LimitsConfig,
    /// Spans.
    pub otel: OtelConfig,
    /// Logs and records.
    pub log: LogConfig,
    /// Who may call; empty: everyone.
    pub key: Vec<KeyConfig>,
}

settings! {
    /// What is served.
    ModelConfig "model" {
        /// Folder, `.gguf` file, or `random:NAME`, random weights of a known shape (`tiny`,
        /// `smollm2-135m`, `llama-3.1-8b`); none with `--mock`: the built-in mock model.
        path: Option<PathBuf> = None, flag "model" "MODEL";
        /// Tokenizer, if it lies elsewhere: a folder, a `tokenizer.json` or a `.gguf`.
        tokenizer: Option<PathBuf> = None, flag "tokenizer" "PATH";
        /// Name that clients use; none: the last part of the path.
        served_name: Option<String> = None, flag "served-model-name" "NAME";
        /// Longest prompt plus answer in tokens; none: the model's own.
        max_model_len: Option<u32> = None, flag "max-model-len" "TOKENS", within 2..=16_777_216;
    }

    /// Local workers that the router starts, restarts and stops.
    ClusterConfig "cluster" {
        /// Workers labelled prefill.
        prefill: u32 = 1, flag "prefill" "N", within 0..=64;
        /// Workers labelled decode.
        decode: u32 = 1, flag "decode" "N", within 0..=64;
        /// Workers labelled mixed. Given without prefill and decode, there are only these.
        mixed: u32 = 0, flag "mixed" "N", within 0..=64;
        /// Mock engine instead of a model: no torch, deterministic tokens.
        mock: bool = false, flag "mock" "";
        /// Step times of the mock: `instant`, `h100-8b`, `h100-70b` or a calibration file.
        mock_timings: String = "instant".to_owned(), flag "mock-timings" "NAME";
        /// Element type of weights and KV.
        dtype: String = "auto".to_owned(), flag "dtype" "TYPE",
            one_of &["auto", "float32", "bfloat16", "float16"];
        /// Attention kernels; `auto`: FlashInfer on a GPU, torch on a CPU.
        attention: String = "auto".to_owned(), flag "attention" "NAME",
            one_of &["auto", "flashinfer", "torch"];
        /// KV memory per worker, for example `512MiB`; none: chosen by the worker.
        kv_memory: Option<String> = None, flag "kv-memory" "SIZE";
        /// Share of a GPU's memory that local workers take for everything; those on one GPU get
        /// equal parts of it.
        gpu_memory_utilization: f64 = 0.9, flag "gpu-memory-utilization" "F";
        /// Most sequences per step; none: chosen by the worker.
        max_num_seqs: Option<u32> = None, flag "max-num-seqs" "N", within 1..=65_536;
        /// Program that runs a local worker and its first arguments, one word each, repeatable;
        /// none: this installation's Python worker.
        worker_command: Vec<String> = Vec::new(), flag "worker-command" "WORD";
        /// Further argument for each local worker, as in `--worker-arg=--threads=2`. Repeatable.
        worker_args: Vec<String> = Vec::new(), flag "worker-arg" "ARG";
        /// Time for all local workers to load and attach, in milliseconds.
        start_timeout_ms: u64 = 300_000, within 1_000..=DAY_MS;
        /// Time for the requests of a local worker that is replaced to end, in milliseconds. Then
        /// they go on elsewhere.
        drain_timeout_ms: u64 = 30_000, within 0..=DAY_MS;
        /// Time without progress, or without a stream to the router, after which a local worker is
        /// killed and started again, in milliseconds; 0: never.
        hang_timeout_ms: u64 = 30_000, within 0..=DAY_MS;
        /// Time for a local worker to end after it was told to, in milliseconds. Then it is killed.
        stop_timeout_ms: u64 = 5_000, within 100..=600_000;
    }

    /// The OpenAI front.
    HttpConfig "http" {
        /// Address to listen on, for HTTP and gRPC.
        host: IpAddr = LOOPBACK, flag "host" "ADDR";
        /// Port of the OpenAI front; 0 picks a free one.
        port: u16 = 8000, flag "port" "PORT", within 0..=65_535;
        /// Front threads; 0: cores - 1, at least 1, at most 4.
        threads: usize = 0, within 0..=256;
        /// Longest request body in bytes. 8 MiB of prompt text and its JSON escapes.
        body_bytes_max: usize = 16 << 20, within 1_024..=1 << 30;
        /// Open connections; more are closed at once.
        connections_max: usize = 16_384, within 1..=1_048_576;
        /// Refuse requests with unknown fields instead of ignoring those.
        strict: bool = false, flag "strict" "";
        /// Time for head and body of a request to arrive, in milliseconds.
        read_timeout_ms: u64 = 30_000, within 100..=DAY_MS;
        /// Time between two requests of a connection after which it is closed, in milliseconds.
        idle_timeout_ms: u64 = 75_000, within 100..=DAY_MS;
        /// Age at which a connection takes no more requests, in milliseconds. A tenth more or less,
        /// so that clients spread.
        connection_age_max_ms: u64 = 1_800_000, within 100..=DAY_MS;
        /// Listen off loopback without API keys: whoever reaches the ports may use them.
        allow_anonymous: bool = false, flag "allow-anonymous" "";
        /// Origins of web pages that may call, as `https://chat.example.org`; `*`: all. None: pages
        /// of other sites cannot.
        cors_origins: Vec<String> = Vec::new(), flag "cors-origin" "ORIGIN";
    }

    /// The gRPC front.
    GrpcConfig "grpc" {
        /// Port of the gRPC front; 0 picks a free one. The host is that of `http`.
        port: u16 = 50051, flag "grpc-port" "PORT", within 0..=65_535;
        /// Longest request message in bytes.
        message_bytes_max: usize = 16 << 20, within 1_024..=1 << 30;
        /// Concurrent calls per connection; the stack has no limit of its own.
        streams_max: u32 = 1_000, within 1..=1_000_000;
        /// Time for the message of a call to arrive, in milliseconds.
        read_timeout_ms: u64 = 30_000, within 100..=DAY_MS;
        /// Age at which a connection takes no more calls, in milliseconds. A tenth more or less, so
        /// that clients spread.
        connection_age_max_ms: u64 = 1_800_000, within 100..=DAY_MS;
        /// Reflection off loopback too; on loopback it is always on.
        reflection: bool = false, flag "reflection" "";
    }

    /// Where workers dial in.
    WorkersConfig "workers" {
        /// Address to listen on. Off loopback is refused until mutual TLS exists.
        host: IpAddr = LOOPBACK, flag "worker-host" "ADDR";
        /// Port for workers; 0 picks a free one.
        port: u16 = 50052, flag "worker-port" "PORT", within 0..=65_535;
        /// File with the join token; none: one is minted at start.
        join_token_file: Option<PathBuf> = None, flag "join-token-file" "FILE";
        /// Silence after which a session is over, in milliseconds.
        lease_ms: u32 = 3_000, within 50..=600_000;
        /// Longest time between two reports, in milliseconds. Four missed: no new work.
        report_interval_ms: u32 = 200, within 5..=60_000;
        /// Least time after which an engine step is taken to hang, in milliseconds; five times the
        /// time that the worker announced, if that is more.
        step_timeout_min_ms: u32 = 1_000, within 10..=600_000;
        /// What the checksum of a hand-off covers: nothing, the ends of each page, or every byte.
        kv_check: String = "header".to_owned(), flag "kv-check" "WHAT",
            one_of &["off", "header", "full"];
        /// When a page of KV memory is zeroed before it is used again: never, if it was another
        /// tenant's, or always.
        kv_scrub: String = "tenant".to_owned(), flag "kv-scrub" "WHEN",
            one_of &["never", "tenant", "always"];
        /// Time without a token after which the router asks its workers for one, in milliseconds;
        /// 0: never. Without a token for twice as long it is not ready.
        canary_interval_ms: u64 = 5_000, within 0..=DAY_MS;
        /// Attached workers; more are refused.
        workers_max: usize = 4_096, within 1..=65_536;
    }

    /// Metrics and admin.
    AdminConfig "admin" {
        /// Address to listen on. Off loopback is refused until mutual TLS exists.
        host: IpAddr = LOOPBACK, flag "metrics-host" "ADDR";
        /// Port for metrics and admin; 0 picks a free one.
        port: u16 = 9464, flag "metrics-port" "PORT", within 0..=65_535;
        /// Whose names the metrics page has besides dopd's own: `none` or `vllm`.
        metrics_compat: String = "none".to_owned(), flag "metrics-compat" "NAMES",
            one_of &["none", "vllm"];
    }

    /// Latency targets: requests are scheduled by them, and counted as attainment and goodput. A
    /// key and a request may have others.
    SloConfig "slo" {
        /// Time to first token in milliseconds; none: no target.
        ttft_ms: Option<u64> = None, flag "slo-ttft-ms" "MS", within 1..=DAY_MS;
        /// The target is at least this for each 1,000 tokens of the prompt, in milliseconds: long
        /// prompts take longer on any machine. It holds for `ttft_ms` and for those of keys.
        ttft_ms_per_1k_tokens: u64 = 0, within 0..=DAY_MS;
        /// Mean time per output token in milliseconds; none: no target.
        tpot_ms: Option<u64> = None, flag "slo-tpot-ms" "MS", within 1..=DAY_MS;
    }

    /// Order, places and steps. docs/concepts/policy.md says what each rule is worth.
    PolicySettings "policy" {
        /// Order of prompts that wait: by arrival, shortest first, earliest target first, or
        /// shortest first but not for ever.
        order: String = "aged".to_owned(), one_of &["fcfs", "sjf", "edf", "aged"];
        /// A prompt that can no longer meet its target goes behind all that can.
        demote: bool = true;
        /// Who is refused for a target that was asked for: nobody, who missed it by `late_max_ms`,
        /// or besides who could not meet it even if it went first.
        refuse: String = "late".to_owned(), one_of &["never", "late", "early"];
        /// How long one that missed its target waits at most, in milliseconds.
        late_max_ms: u64 = 10_000, within 0..=DAY_MS;
        /// What the longest tenth of prompts is owed of the others' attainment, in percent.
        fair_percent: u32 = 50, within 0..=100;
        /// Tenants that compete share by tokens and weight.
        share_tenants: bool = true;
        /// Workers keep what they computed, for later prompts of the same tenant that begin alike.
        prefix_cache: bool = true;
        /// Prompt tokens that a worker takes at once; one prompt may be longer.
        prefill_tokens_max: u32 = 4_096, within 1..=16_777_216;
        /// Prompts that workers labelled decode compute themselves: none, short ones, or any that
        /// they finish in time while prefill workers are behind.
        steal: String = "in_time".to_owned(), one_of &["never", "shorter", "in_time"];
        /// Of `shorter`: prompts of fewer tokens than this.
        steal_tokens: u32 = 512, within 0..=16_777_216;
        /// Workers labelled prefill keep answers for which no decode worker has a place.
        keep: bool = true;
        /// They make the first token themselves where the gap of a hand-off would be longer than a
        /// token may take; short answers end before anything is sent.
        linger: bool = true;
        /// Which decode worker gets an answer.
        place: String = "least_tokens".to_owned(),
            one_of &["least_tokens", "fewest_sequences", "most_pages", "round_robin"];
        /// Pages promised to an answer: for its longest, or as many as all need at any time.
        reserve: String = "future_peak".to_owned(), one_of &["max_tokens", "future_peak"];
        /// How a worker with answers under way computes prompts: in what is left of a step, of a
        /// chunk, of the time per token, or in pauses where that is cheaper than mixing.
        step: String = "pause_or_mix".to_owned(),
            one_of &["fill", "chunk", "chunk_in_time", "pause_or_mix"];
        /// Of `chunk`: tokens of a step.
        chunk_tokens: u32 = 512, within 1..=16_777_216;
        /// Longest pause between two tokens of an answer for prompts, in milliseconds.
        pause_max_ms: u64 = 100, within 1..=DAY_MS;
        /// Decisions that `dopd explain` remembers, a quarter of a KiB each; 0: none.
        explain_decisions_max: usize = 8_192, within 0..=1_000_000;
    }

    /// Bounds on requests, checked before anything is allocated for them.
    LimitsConfig "limits" {
        /// Text of a prompt in bytes.
        prompt_bytes_max: usize = 8 << 20, within 1..=1 << 30;
        /// Messages of a chat.
        messages_max: usize = 2_048, within 1..=1_000_000;
        /// Choices per request; they are numbered in a byte.
        choices_max: u32 = 16, within 1..=255;
        /// Stop strings per request.
        stop_strings_max: usize = 16, within 0..=1_024;
        /// Bytes of one stop string.
        stop_bytes_max: usize = 256, within 1..=65_536;
        /// Stop tokens per request.
        stop_token_ids_max: usize = 64, within 0..=4_096;
        /// Biases of tokens per request.
        logit_bias_max: usize = 1_024, within 0..=65_536;
        /// Prompts of one completion request.
        prompts_max: usize = 64, within 1..=4_096;
        /// Log probabilities of prompt tokens per request, alternatives included, in all choices.
        prompt_logprobs_max: usize = 524_288, within 0..=1 << 30;
        /// Alternatives per position.
        top_logprobs_max: u32 = 20, within 0..=100;
        /// Least target for the first token that a request may ask for, in milliseconds.
        slo_ttft_ms_min: u64 = 1, within 1..=DAY_MS;
        /// Least target per output token that a request may ask for, in milliseconds. A tight one
        /// holds the batch in which it decodes small, for all that share it.
        slo_tpot_ms_min: u64 = 1, within 1..=DAY_MS;
        /// Bytes of request bodies that are received or prepared but do not run yet.
        preparing_bytes_max: usize = 256 << 20, within 1_024..=1 << 40;
        /// Requests that wait in the brain.
        queue_requests_max: usize = 10_000, within 1..=10_000_000;
        /// Prompt tokens that wait in the brain.
        queue_tokens_max: u64 = 50_000_000, within 1..=1 << 40;
        /// Longest life of a request, and the default, in milliseconds.
        request_timeout_ms: u64 = 600_000, within 1..=DAY_MS;
        /// How long a request waits for a first worker, in milliseconds.
        no_worker_wait_ms: u64 = 10_000, within 0..=DAY_MS;
        /// Bytes that may wait for a slow reader before its answer is kept as token ids.
        slow_reader_bytes_max: usize = 256 << 10, within 1_024..=1 << 30;
        /// Time without progress after which a slow reader is cut, in milliseconds.
        slow_reader_timeout_ms: u64 = 30_000, within 1..=DAY_MS;
        /// Time given to running requests at shutdown, in milliseconds.
        drain_timeout_ms: u64 = 120_000, flag "drain-timeout-ms" "MS", within 0..=DAY_MS;
    }

    /// Spans of requests, by OpenTelemetry.
    OtelConfig "otel" {
        /// Collector that gets spans by OTLP over gRPC, as `http://127.0.0.1:4317`; none: no spans.
        endpoint: Option<String> = None, flag "otel" "URL";
    }

    /// Logs and records.
    LogConfig "log" {
        /// Filter in the syntax of `tracing`: `info,dopd_router=debug`.
        filter: String = "info".to_owned(), flag "log-level" "FILTER";
        /// Form of log lines.
        format: String = "text".to_owned(), flag "log-format" "FORMAT", one_of &["text", "json"];
        /// File for the brain's event log, to be replayed by `dopd replay`.
        record: Option<PathBuf> = None, flag "record" "FILE";
        /// Size at which the record ends, in bytes: a replay needs its beginning.
        record_bytes_max: u64 = 256 << 20, within 65_536..=1 << 40;
    }
}
