//! What strangers write, as functions from bytes: each panics if something does not hold.
//!
//! `cargo test` plays the committed corpus and a bounded number of mutations of it; `make fuzz`
//! lets libFuzzer look for new paths.

mod events;
mod request;
mod template;
mod text;
mod worker;

use std::sync::{Arc, OnceLock};

use dopd_router::{config::records::ModelConfig, tokens::ServedModel};

/// A target: bytes in, a panic if something does not hold.
pub type Target = fn(&[u8]);

/// By name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 5] = [
    ("request", request::run),
    ("events", events::run),
    ("template", template::run),
    ("text", text::run),
    ("worker", worker::run),
];

/// The mock model, which all targets share.
fn model() -> Arc<ServedModel> {
    static MODEL: OnceLock<Option<Arc<ServedModel>>> = OnceLock::new();
    let load = || {
        ServedModel::mock(&ModelConfig::default())
            .ok()
            .map(Arc::new)
    };
    let model = MODEL.get_or_init(load).as_ref().map(Arc::clone);
    assert!(
        model.is_some(),
        "the mock model has no file that could be missing"
    );
    model.unwrap_or_else(|| unreachable!("asserted"))
}

/// The first byte, and the rest.
fn head(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(first, rest)| (*first, rest))
}
