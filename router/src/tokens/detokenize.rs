//! Bytes of tokens to text, a token at a time: whole characters only, at most three bytes held.

use std::str;

/// Turns bytes that arrive in pieces into text. What it has written after [`Self::finish`] equals
/// `String::from_utf8_lossy` of all bytes at once, however they were cut.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// Start of a character whose rest has not come yet.
    held: [u8; 3],
    held_len: usize,
}

impl Detokenizer {
    /// Appends to `out` the characters that `bytes` complete. An invalid sequence becomes one
    /// U+FFFD.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.held_len == 0 {
            self.decode(bytes, out);
            return;
        }
        let mut joined = Vec::with_capacity(self.held_len + bytes.len());
        joined.extend_from_slice(&self.held[..self.held_len]);
        joined.extend_from_slice(bytes);
        self.held_len = 0;
        self.decode(&joined, out);
    }

    /// The bytes are over: a character that is still open is a broken one.
    pub fn finish(&mut self, out: &mut String) {
        if self.held_len > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
            self.held_len = 0;
        }
    }

    fn decode(&mut self, mut bytes: &[u8], out: &mut String) {
        loop {
            let error = match str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            // Valid by the line above; the lossy form borrows then and changes nothing.
            out.push_str(&String::from_utf8_lossy(valid));
            let Some(broken) = error.error_len() else {
                self.held[..rest.len()].copy_from_slice(rest);
                self.held_len = rest.len();
                return;
            };
            out.push(char::REPLACEMENT_CHARACTER);
            bytes = &rest[broken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `bytes` cut after every index in `cuts`.
    fn in_pieces(bytes: &[u8], cuts: &[usize]) -> String {
        let mut out = String::new();
        let mut detokenizer = Detokenizer::default();
        let mut start = 0;
        for &cut in cuts {
            let end = cut.clamp(start, bytes.len());
            detokenizer.push(&bytes[start..end], &mut out);
            start = end;
        }
        detokenizer.push(&bytes[start..], &mut out);
        detokenizer.finish(&mut out);
        out
    }

    /// Text with broken bytes in it: pure noise would hardly hold a whole character.
    fn damaged_text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            ".{0,4}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..4),
            Just("\u{1F600}".as_bytes()[..3].to_vec()),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_lossy_whole(
            bytes in damaged_text(),
            mut cuts in proptest::collection::vec(0_usize..64, 0..16),
        ) {
            cuts.sort_unstable();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(in_pieces(&bytes, &cuts), whole.clone());
            let each: Vec<usize> = (0..bytes.len()).collect();
            prop_assert_eq!(in_pieces(&bytes, &each), whole);
        }
    }

    #[test]
    fn an_open_character_is_held_back() {
        let mut detokenizer = Detokenizer::default();
        let mut out = String::new();
        detokenizer.push(&[b'a', 0xF0, 0x9F, 0x98], &mut out);
        assert_eq!(out, "a");
        detokenizer.push(&[0x80], &mut out);
        assert_eq!(out, "a\u{1F600}");
    }
}
