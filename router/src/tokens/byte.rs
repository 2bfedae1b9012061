//! The mock model's tokenizer: ids 0 to 255 are bytes, then the two tokens of ChatML.

use super::{Framing, Tokenizer, Vocabulary};
use crate::error::Error;

/// `<|im_start|>`.
const IM_START: (u32, &str) = (256, "<|im_start|>");
/// `<|im_end|>`, the end of an answer.
const IM_END: (u32, &str) = (257, "<|im_end|>");

/// One token per byte.
#[derive(Debug)]
pub struct ByteTokenizer {
    vocabulary: Vocabulary,
}

impl ByteTokenizer {
    /// Ends an answer.
    pub const EOS: u32 = IM_END.0;

    /// That of the mock.
    pub fn new() -> Self {
        Self::with_vocabulary(0)
    }

    /// That of a model with `size` tokens. Those that no text has are written as some printable
    /// character each, so that an answer of random ids is seen to grow.
    pub fn with_vocabulary(size: u32) -> Self {
        let bytes = (0..=255_u8).map(|byte| (vec![byte], false));
        let special = [IM_START, IM_END].map(|(_, text)| (text.as_bytes().to_vec(), true));
        let printable = (b' '..=b'~').cycle();
        let others = (Self::EOS + 1..size).zip(printable);
        let others = others.map(|(_, byte)| (vec![byte], false));
        Self {
            vocabulary: Vocabulary::new(bytes.chain(special).chain(others)),
        }
    }
}

impl Default for ByteTokenizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str, _framing: Framing) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(byte) = rest.bytes().next() {
            let special = [IM_START, IM_END]
                .into_iter()
                .find(|(_, token)| byte == b'<' && rest.starts_with(token));
            if let Some((id, token)) = special {
                ids.push(id);
                rest = &rest[token.len()..];
            } else {
                // A whole character at a time, so that the slice stays on a boundary.
                let width = rest.chars().next().map_or(1, char::len_utf8);
                ids.extend(rest.bytes().take(width).map(u32::from));
                rest = &rest[width..];
            }
        }
        Ok(ids)
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_in_text_become_their_ids_and_have_no_text() {
        let tokenizer = ByteTokenizer::new();
        let ids = tokenizer
            .encode("<|im_start|>\u{e9}<|im<|im_end|>", Framing::Bare)
            .unwrap();
        assert_eq!(
            ids,
            [256, 0xC3, 0xA9, 0x3C, 0x7C, 0x69, 0x6D, 257],
            "id by id"
        );
        let text: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokenizer.vocabulary().text(id).to_vec())
            .collect();
        assert_eq!(text, "\u{e9}<|im".as_bytes());
        assert_eq!(tokenizer.vocabulary().bytes(257), b"<|im_end|>");
        assert_eq!(tokenizer.vocabulary().len(), 258);
    }

    #[test]
    fn every_token_of_a_larger_vocabulary_is_a_character() {
        let wide = ByteTokenizer::with_vocabulary(1_000);
        assert_eq!(wide.vocabulary().len(), 1_000);
        let is_printable = |id| matches!(wide.vocabulary().text(id), [b' '..=b'~']);
        assert!((258..1_000).all(is_printable));
        let ids = wide.encode("abc", Framing::Bare).unwrap();
        assert_eq!(ids, [97, 98, 99]);
    }
}
