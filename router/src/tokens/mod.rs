//! Text to token ids and back: tokenizers, chat template, incremental detokenizer, stop strings.
//!
//! Owns what a front must know of the served model ([`ServedModel`]); reads no weights but for
//! their fingerprint. Called by `service` and `validate`; nothing here knows of HTTP, gRPC or
//! workers.

mod byte;
mod chatml;
mod detokenize;
mod error;
mod fingerprint;
mod gguf;
mod gguf_model;
mod hf;
mod hf_folder;
mod made_up;
mod model;
mod stop;
mod template;
mod vocabulary;

use std::fmt;

pub use self::{
    byte::ByteTokenizer,
    detokenize::Detokenizer,
    error::ModelError,
    gguf::Header as GgufHeader,
    hf::HfTokenizer,
    made_up::MadeUp,
    model::ServedModel,
    stop::{StopMatcher, StopScan, StopStrings},
    template::{Message, Template},
    vocabulary::Vocabulary,
};
use crate::error::Error;

/// Whether the tokens that the tokenizer itself puts around a text (bos, say) are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As the tokenizer's post-processor says: for a plain prompt.
    Default,
    /// None: a chat template has written them already.
    Bare,
}

/// A model's tokenizer. Implementations are immutable and shared by all threads.
pub trait Tokenizer: fmt::Debug + Send + Sync {
    /// Token ids of `text`. Special tokens written out in the text become their ids, as in HF's.
    fn encode(&self, text: &str, framing: Framing) -> Result<Vec<u32>, Error>;

    /// The way back: bytes of each id.
    fn vocabulary(&self) -> &Vocabulary;
}
