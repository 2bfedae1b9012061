//! Stop strings over a text that arrives in pieces.
//!
//! The answer ends at the first place where any stop string is complete; of several complete
//! there, the longest counts; its text is not part of the answer, unless that is asked for. One KMP
//! automaton per stop string, fed byte by byte: the result cannot depend on how tokens cut the
//! text, no text is scanned twice, and what is held back is exactly the longest end of the text
//! that may still become a stop string.

use std::sync::Arc;

/// Stop strings of a request, prepared once and shared by its choices.
#[derive(Clone, Debug, Default)]
pub struct StopStrings(Arc<[Pattern]>);

#[derive(Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// `border[i]`: length of the longest proper prefix of `bytes[..=i]` that also ends it.
    border: Box<[usize]>,
}

/// Outcome of [`StopMatcher::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopScan {
    /// No stop string so far.
    Running,
    /// A stop string is complete; everything before it has been written, nothing follows.
    Stopped,
}

/// Scans one choice's text.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: StopStrings,
    /// Per stop string: how much of it the text ends with.
    matched: Vec<usize>,
    /// The stop string is part of the answer.
    include: bool,
    /// Text that may yet become a stop string.
    held: String,
}

impl StopStrings {
    /// Prepares `stops`; empty strings are refused by `validate` and skipped here.
    pub fn new(stops: &[String]) -> Self {
        let patterns = stops.iter().filter(|stop| !stop.is_empty());
        Self(patterns.map(|stop| Pattern::new(stop)).collect())
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes: Box<[u8]> = stop.as_bytes().into();
        let mut border = vec![0; bytes.len()];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = border[length - 1];
            }
            if bytes[index] == bytes[length] {
                length += 1;
            }
            border[index] = length;
        }
        Self {
            bytes,
            border: border.into(),
        }
    }

    /// Length of the longest prefix that ends the text after `byte`, given that before it.
    fn step(&self, mut length: usize, byte: u8) -> usize {
        while length > 0 && (length == self.bytes.len() || self.bytes[length] != byte) {
            length = self.border[length - 1];
        }
        if self.bytes[length] == byte {
            length + 1
        } else {
            0
        }
    }
}

impl StopMatcher {
    /// A matcher at the start of an answer, of which the stop string is a part if `include` says.
    pub fn new(stops: StopStrings, include: bool) -> Self {
        Self {
            include,
            matched: vec![0; stops.0.len()],
            stops,
            held: String::new(),
        }
    }

    /// As [`Self::push`] of a text in which no stop string may end: one that begins in it may.
    pub fn pass(&mut self, text: &str, out: &mut String) {
        self.held.push_str(text);
        for byte in text.bytes() {
            for (pattern, matched) in self.stops.0.iter().zip(&mut self.matched) {
                *matched = pattern.step(*matched, byte);
                if *matched == pattern.bytes.len() {
                    *matched = pattern.border[*matched - 1];
                }
            }
        }
        self.release(out);
    }

    /// Appends to `out` what is sure to belong to the answer now that `text` has come.
    pub fn push(&mut self, text: &str, out: &mut String) -> StopScan {
        if self.matched.is_empty() {
            out.push_str(text);
            return StopScan::Running;
        }
        let held_len = self.held.len();
        self.held.push_str(text);
        for (index, byte) in text.bytes().enumerate() {
            let mut complete = 0;
            for (pattern, matched) in self.stops.0.iter().zip(&mut self.matched) {
                *matched = pattern.step(*matched, byte);
                if *matched == pattern.bytes.len() {
                    complete = complete.max(*matched);
                }
            }
            if complete > 0 {
                let end = held_len + index + 1;
                let end = if self.include { end } else { end - complete };
                out.push_str(&self.held[..end]);
                self.held.clear();
                return StopScan::Stopped;
            }
        }
        self.release(out);
        StopScan::Running
    }

    fn release(&mut self, out: &mut String) {
        let hold = self.matched.iter().copied().max().unwrap_or(0);
        // A stop string starts on a character boundary, so its prefix in the text does as well.
        let sure = self.held.len() - hold;
        out.push_str(&self.held[..sure]);
        self.held.drain(..sure);
    }

    /// The text is over: what was held back belongs to the answer.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same rule on the whole text, of which `early` bytes end nothing, by brute force.
    fn naive(text: &str, early: usize, stops: &[String], include: bool) -> (String, StopScan) {
        for end in early + 1..=text.len() {
            let complete = stops
                .iter()
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(String::len)
                .max();
            if let Some(length) = complete {
                let end = if include { end + length } else { end };
                return (text[..end - length].to_owned(), StopScan::Stopped);
            }
        }
        (text.to_owned(), StopScan::Running)
    }

    fn in_pieces(
        pieces: &[&str],
        early: usize,
        stops: &[String],
        include: bool,
    ) -> (String, StopScan) {
        let mut matcher = StopMatcher::new(StopStrings::new(stops), include);
        let mut out = String::new();
        let (passed, pieces) = pieces.split_at(early);
        for piece in passed {
            matcher.pass(piece, &mut out);
        }
        for piece in pieces {
            if matcher.push(piece, &mut out) == StopScan::Stopped {
                return (out, StopScan::Stopped);
            }
        }
        matcher.finish(&mut out);
        (out, StopScan::Running)
    }

    proptest! {
        /// A small alphabet with a two-byte letter: overlaps, borders and cuts inside of matches.
        #[test]
        fn equals_a_search_on_the_whole_text(
            pieces in proptest::collection::vec("[ab\u{e9}]{0,4}", 0..12),
            stops in proptest::collection::vec("[ab\u{e9}]{1,5}", 0..4),
            early in 0_usize..6,
            include in any::<bool>(),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let early = early.min(pieces.len());
            let passed = pieces[..early].concat().len();
            let expected = naive(&pieces.concat(), passed, &stops, include);
            prop_assert_eq!(in_pieces(&pieces, early, &stops, include), expected);
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let stops = ["\n\nUser".to_owned()];
        let mut matcher = StopMatcher::new(StopStrings::new(&stops), false);
        let mut out = String::new();
        assert_eq!(matcher.push("hello\n", &mut out), StopScan::Running);
        assert_eq!(out, "hello");
        assert_eq!(matcher.push("\n\nUs", &mut out), StopScan::Running);
        assert_eq!(out, "hello\n");
        assert_eq!(matcher.push("er: x", &mut out), StopScan::Stopped);
        assert_eq!(out, "hello\n");
    }
}
