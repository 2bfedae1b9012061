//! The first message of a worker: bounds on every field, and what must be equal on both sides.

use dopd_core::{
    cost::{Timings, TimingsError},
    fleet::{Role, WorkerFacts},
    units::{Pages, Tokens},
};

use crate::{
    wire::worker::{Hello, KvGeometry, Role as WireRole},
    workers::AttachConfig,
};

/// Bytes of a worker's name.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of other names: model, device, data address, layout, dtype, a transport, the version.
const TEXT_BYTES_MAX: usize = 256;
/// Transports that a worker may name.
const TRANSPORTS_MAX: usize = 8;
/// Bytes of `timings_json`.
const TIMINGS_BYTES_MAX: usize = 64 << 10;
/// Tokens per page.
const PAGE_SIZE_MAX: u32 = 4_096;
/// Layers, heads, head dimension, GPUs per copy.
const DIMENSION_MAX: u32 = 1 << 16;
/// Sequences in one step: bounds the slot table.
pub(super) const NUM_SEQS_MAX: u32 = 1 << 16;
/// Tokens of a step, a context, a vocabulary.
const TOKENS_MAX: u32 = 1 << 26;

/// Checks `hello` by itself; the error says which field has which value and what it may be.
pub(super) fn check(hello: &Hello) -> Result<&KvGeometry, String> {
    let name = &hello.worker;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(format!(
            "worker name {:?} must be 1 to {NAME_BYTES_MAX} of [a-zA-Z0-9._-]",
            shorten(name)
        ));
    }
    let version = env!("CARGO_PKG_VERSION");
    if hello.version != version {
        return Err(format!(
            "worker {name:?} is dopd {:?}, the router is dopd {version:?}; run the same version",
            shorten(&hello.version)
        ));
    }
    if role(hello.role).is_none() {
        return Err(format!("worker {name:?} has no role: {}", hello.role));
    }
    for (field, text) in [
        ("model", &hello.model),
        ("device", &hello.device),
        ("data_address", &hello.data_address),
    ] {
        text_field(name, field, text)?;
    }
    if hello.timings_json.len() > TIMINGS_BYTES_MAX {
        return Err(format!(
            "worker {name:?}: timings_json has {} bytes, at most {TIMINGS_BYTES_MAX} are taken",
            hello.timings_json.len()
        ));
    }
    if hello.transports.is_empty() || hello.transports.len() > TRANSPORTS_MAX {
        return Err(format!(
            "worker {name:?}: transports has {} names, 1 to {TRANSPORTS_MAX} are taken",
            hello.transports.len()
        ));
    }
    for transport in &hello.transports {
        text_field(name, "transports", transport)?;
    }
    for (field, value, max) in [
        ("pages_total", hello.pages_total, u32::MAX),
        ("max_num_seqs", hello.max_num_seqs, NUM_SEQS_MAX),
        ("max_batch_tokens", hello.max_batch_tokens, TOKENS_MAX),
        ("max_model_len", hello.max_model_len, TOKENS_MAX),
        ("vocab_size", hello.vocab_size, TOKENS_MAX),
    ] {
        number(name, field, value, max)?;
    }
    let geometry =
        (hello.geometry.as_ref()).ok_or_else(|| format!("worker {name:?}: geometry is missing"))?;
    check_geometry(name, geometry)?;
    Ok(geometry)
}

fn check_geometry(name: &str, geometry: &KvGeometry) -> Result<(), String> {
    if geometry.model_hash.len() != 32 {
        return Err(format!(
            "worker {name:?}: model_hash has {} bytes, a sha256 has 32",
            geometry.model_hash.len()
        ));
    }
    text_field(name, "dtype", &geometry.dtype)?;
    text_field(name, "layout", &geometry.layout)?;
    for (field, value, max) in [
        ("page_size", geometry.page_size, PAGE_SIZE_MAX),
        ("num_layers", geometry.num_layers, DIMENSION_MAX),
        ("num_kv_heads", geometry.num_kv_heads, DIMENSION_MAX),
        ("head_dim", geometry.head_dim, DIMENSION_MAX),
        ("tensor_parallel", geometry.tensor_parallel, DIMENSION_MAX),
        ("page_bytes", geometry.page_bytes, u32::MAX),
    ] {
        number(name, field, value, max)?;
    }
    Ok(())
}

fn text_field(name: &str, field: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(format!(
            "worker {name:?}: {field} has {} bytes, 1 to {TEXT_BYTES_MAX} are taken",
            text.len()
        ));
    }
    Ok(())
}

fn number(name: &str, field: &str, value: u32, max: u32) -> Result<(), String> {
    if value == 0 || value > max {
        return Err(format!(
            "worker {name:?}: {field} is {value}, 1 to {max} are taken"
        ));
    }
    Ok(())
}

/// Refuses a worker of another model than the router's.
pub(super) fn check_model(
    hello: &Hello,
    geometry: &KvGeometry,
    config: &AttachConfig,
) -> Result<(), String> {
    let mut found = Vec::new();
    if let Some(ours) = config.model_hash
        && geometry.model_hash != ours
    {
        found.push(format!(
            "model_hash is {} (model {:?}), the router has {} (model {:?})",
            hex(&geometry.model_hash),
            hello.model,
            hex(&ours),
            config.model_name
        ));
    }
    if let Some(ours) = config.vocab_size
        && hello.vocab_size != ours
    {
        found.push(format!(
            "vocab_size is {}, the router has {ours}",
            hello.vocab_size
        ));
    }
    refusal(&hello.worker, "the router's model", &found)
}

/// Refuses a worker that could not exchange pages with those that are attached.
pub(super) fn check_fleet(hello: &Hello, ours: &Hello) -> Result<(), String> {
    let mut found = Vec::new();
    let mut compare = |field: &str, theirs: String, fleet: String| {
        if theirs != fleet {
            found.push(format!("{field} is {theirs}, the fleet has {fleet}"));
        }
    };
    if let (Some(a), Some(b)) = (&hello.geometry, &ours.geometry) {
        compare("model_hash", hex(&a.model_hash), hex(&b.model_hash));
        compare("dtype", format!("{:?}", a.dtype), format!("{:?}", b.dtype));
        compare(
            "layout",
            format!("{:?}", a.layout),
            format!("{:?}", b.layout),
        );
        for (field, theirs, fleet) in [
            ("page_size", a.page_size, b.page_size),
            ("num_layers", a.num_layers, b.num_layers),
            ("num_kv_heads", a.num_kv_heads, b.num_kv_heads),
            ("head_dim", a.head_dim, b.head_dim),
            ("tensor_parallel", a.tensor_parallel, b.tensor_parallel),
            ("page_bytes", a.page_bytes, b.page_bytes),
        ] {
            compare(field, theirs.to_string(), fleet.to_string());
        }
    }
    compare(
        "vocab_size",
        hello.vocab_size.to_string(),
        ours.vocab_size.to_string(),
    );
    refusal(
        &hello.worker,
        &format!("the fleet (first worker {:?})", ours.worker),
        &found,
    )
}

fn refusal(worker: &str, what: &str, found: &[String]) -> Result<(), String> {
    if found.is_empty() {
        return Ok(());
    }
    Err(format!(
        "worker {worker:?} does not fit {what}: {}",
        found.join("; ")
    ))
}

/// The brain's facts of a checked worker.
pub(super) fn facts(hello: &Hello, geometry: &KvGeometry) -> Result<WorkerFacts, String> {
    let timings = timings(&hello.timings_json)
        .map_err(|error| format!("worker {:?}: timings_json: {error}", hello.worker))?;
    Ok(WorkerFacts {
        name: hello.worker.clone(),
        incarnation: hello.incarnation,
        role: role(hello.role).unwrap_or(Role::Mixed),
        page_size: geometry.page_size,
        page_bytes: u64::from(geometry.page_bytes),
        pages_total: Pages(hello.pages_total),
        num_seqs_max: hello.max_num_seqs,
        batch_tokens_max: Tokens(hello.max_batch_tokens),
        model_len_max: Tokens(hello.max_model_len),
        timings,
    })
}

/// The core's role; `None` if it is unspecified or unknown.
pub(super) fn role(role: i32) -> Option<Role> {
    match WireRole::try_from(role) {
        Ok(WireRole::Prefill) => Some(Role::Prefill),
        Ok(WireRole::Decode) => Some(Role::Decode),
        Ok(WireRole::Mixed) => Some(Role::Mixed),
        Ok(WireRole::Unspecified) | Err(_) => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The start of a text that may be of any length.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Step times as the worker measured them; if it measured none, those of a device of the middle.
fn timings(json: &str) -> Result<Timings, TimingsError> {
    if json.is_empty() {
        return Ok(Timings::h100_8b());
    }
    Timings::from_json(json)
}
