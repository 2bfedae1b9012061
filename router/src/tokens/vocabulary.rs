//! Bytes of every token id, in one flat table: a look-up is two loads and no allocation.

use std::collections::HashMap;

/// id -> bytes. Special tokens have bytes (for log probabilities) but no text in an answer.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<u32>,
    special: Vec<bool>,
    longest: usize,
}

impl Vocabulary {
    /// From the bytes of each id in order, with whether the token is special.
    pub fn new(tokens: impl IntoIterator<Item = (Vec<u8>, bool)>) -> Self {
        let mut vocabulary = Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            special: Vec::new(),
            longest: 0,
        };
        for (bytes, special) in tokens {
            vocabulary.longest = vocabulary.longest.max(bytes.len());
            vocabulary.bytes.extend_from_slice(&bytes);
            // A vocabulary's text is a few MB; the readers bound it far below 4 GiB.
            let end = u32::try_from(vocabulary.bytes.len()).unwrap_or(u32::MAX);
            vocabulary.ends.push(end);
            vocabulary.special.push(special);
        }
        vocabulary
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of `id`; empty for an id without a token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else {
            return &[];
        };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// Bytes that `id` adds to an answer: those of [`Self::bytes`], none for a special token.
    pub fn text(&self, id: u32) -> &[u8] {
        if self.is_special(id) {
            return &[];
        }
        self.bytes(id)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// The character that byte-level BPE writes for each byte, turned round (GPT-2's table): printable
/// Latin-1 stands for itself, every other byte for a character from U+0100 on.
pub(super) fn byte_of_char() -> HashMap<char, u8> {
    let mut table = HashMap::with_capacity(256);
    let mut next = 0x100;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        if let Some(character) = char::from_u32(code) {
            table.insert(character, byte);
        }
    }
    table
}
