//! Tokenizers of Hugging Face's library, from `tokenizer.json` or built from a GGUF file.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use super::{Framing, Tokenizer, Vocabulary, vocabulary::byte_of_char};
use crate::error::{Error, Reason};

/// Stands for a space in SentencePiece vocabularies.
const WORD_START: char = '\u{2581}';

/// A `tokenizers::Tokenizer` with its table of bytes.
#[derive(Debug)]
pub struct HfTokenizer {
    inner: Inner,
    vocabulary: Vocabulary,
}

/// How a vocabulary writes bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's: one character per byte.
    ByteLevel,
    /// SentencePiece's: text, `▁` for a space, `<0x0A>` for a byte without a token.
    ByteFallback,
}

impl HfTokenizer {
    /// Wraps `inner`. Fails if its decoder cannot be written as a table of bytes.
    pub fn new(inner: Inner) -> Result<Self, String> {
        let decoder = serde_json::to_value(inner.get_decoder()).map_err(|e| e.to_string())?;
        let spelling = spelling_of(&decoder)?;
        let vocabulary = read_vocabulary(&inner, spelling);
        Ok(Self { inner, vocabulary })
    }

    /// Reads `tokenizer.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        Self::new(Inner::from_bytes(bytes).map_err(|e| e.to_string())?)
    }

    /// Id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The library's own decoding, the oracle of tests.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.inner.decode(ids, true).map_err(|e| e.to_string())
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str, framing: Framing) -> Result<Vec<u32>, Error> {
        match self.inner.encode_fast(text, framing == Framing::Default) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::new(
                Reason::Internal,
                format!("the tokenizer failed: {error}"),
            )),
        }
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

/// Which spelling the decoder undoes; it says what the vocabulary looks like.
fn spelling_of(decoder: &Value) -> Result<Spelling, String> {
    let kinds: Vec<&str> = match decoder["decoders"].as_array() {
        Some(list) => list.iter().filter_map(|d| d["type"].as_str()).collect(),
        None => decoder["type"].as_str().into_iter().collect(),
    };
    let fallback = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
    if kinds == ["ByteLevel"] {
        Ok(Spelling::ByteLevel)
    } else if kinds.contains(&"ByteFallback") && kinds.iter().all(|kind| fallback.contains(kind)) {
        Ok(Spelling::ByteFallback)
    } else {
        Err(format!(
            "the tokenizer's decoder {kinds:?} is not supported; ByteLevel and ByteFallback are"
        ))
    }
}

fn read_vocabulary(inner: &Inner, spelling: Spelling) -> Vocabulary {
    let added = inner.get_added_tokens_decoder();
    let len = inner
        .get_vocab(true)
        .into_values()
        .max()
        .map_or(0, |id| id + 1);
    let table = byte_of_char();
    Vocabulary::new((0..len).map(|id| {
        // As in the library's `decode`: added tokens shadow those of the model.
        let (token, special) = match added.get(&id) {
            Some(added) => (added.content.clone(), added.special),
            None => (inner.id_to_token(id).unwrap_or_default(), false),
        };
        let bytes = match spelling {
            Spelling::ByteLevel => byte_level(&token, &table),
            Spelling::ByteFallback => byte_fallback(&token),
        };
        (bytes, special)
    }))
}

/// A token with a character outside of the table (an added one, say) stands for its own text.
fn byte_level(token: &str, table: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| table.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

fn byte_fallback(token: &str) -> Vec<u8> {
    let hex = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    match hex.map(|digits| u8::from_str_radix(digits, 16)) {
        Some(Ok(byte)) => vec![byte],
        _ => token.replace(WORD_START, " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_fallback_spelling() {
        assert_eq!(byte_fallback("<0x0A>"), b"\n");
        assert_eq!(byte_fallback("<0xZZ>"), b"<0xZZ>");
        assert_eq!(byte_fallback("\u{2581}Paris"), b" Paris");
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        let word_piece = serde_json::json!({"type": "WordPiece", "prefix": "##"});
        let error = spelling_of(&word_piece).unwrap_err();
        assert!(error.contains("WordPiece"), "{error}");
        assert_eq!(
            spelling_of(&serde_json::json!({"type": "ByteLevel"})),
            Ok(Spelling::ByteLevel)
        );
    }
}
