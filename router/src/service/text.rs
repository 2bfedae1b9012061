//! Tokens of one choice to the text of its answer.

use std::sync::Arc;

use crate::tokens::{Detokenizer, StopMatcher, StopScan, StopStrings, Tokenizer};

/// Detokenizer and stop matcher in a row. A clone goes on from the same place: that is how an
/// answer whose reader is slow is rendered later.
#[derive(Clone, Debug)]
pub(super) struct AnswerText {
    tokenizer: Arc<dyn Tokenizer>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Tokens before which stop strings do not count: what is left of `min_tokens`.
    unmatched: u32,
    stopped: bool,
    scratch: String,
}

impl AnswerText {
    pub(super) fn new(tokenizer: Arc<dyn Tokenizer>, stops: StopStrings, min_tokens: u32) -> Self {
        Self {
            tokenizer,
            detokenizer: Detokenizer::default(),
            matcher: StopMatcher::new(stops),
            unmatched: min_tokens,
            stopped: false,
            scratch: String::new(),
        }
    }

    /// Appends to `out` the text that `token` completes.
    pub(super) fn push(&mut self, token: u32, out: &mut String) -> StopScan {
        let bytes = self.tokenizer.vocabulary().text(token);
        if self.unmatched > 0 {
            self.unmatched -= 1;
            self.detokenizer.push(bytes, out);
            return StopScan::Running;
        }
        self.scratch.clear();
        self.detokenizer.push(bytes, &mut self.scratch);
        let scan = self.matcher.push(&self.scratch, out);
        self.stopped = scan == StopScan::Stopped;
        scan
    }

    /// The answer is over: what was held back is part of it, unless a stop string ended it.
    pub(super) fn finish(&mut self, out: &mut String) -> StopScan {
        if self.stopped {
            return StopScan::Stopped;
        }
        self.scratch.clear();
        self.detokenizer.finish(&mut self.scratch);
        let scan = self.matcher.push(&self.scratch, out);
        if scan == StopScan::Running {
            self.matcher.finish(out);
        }
        self.stopped = true;
        scan
    }
}
