//! Tokens of one choice to the text of its answer.

use std::sync::Arc;

use crate::{
    streams::sink::FinishReason,
    tokens::{Detokenizer, StopMatcher, StopScan, StopStrings, Tokenizer},
};

/// What of an answer's tokens has text.
#[derive(Clone, Debug, Default)]
pub(super) struct TextForm {
    /// Strings that end the answer.
    pub(super) stops: StopStrings,
    /// Tokens that end the answer.
    pub(super) ends: Arc<[u32]>,
    /// Tokens before which neither does.
    pub(super) min_tokens: u32,
    /// What ended the answer is part of it.
    pub(super) include_stop: bool,
    /// Special tokens have no text.
    pub(super) skip_special: bool,
}

/// Detokenizer and stop matcher in a row. A clone goes on from the same place: that is how an
/// answer whose reader is slow is rendered later.
#[derive(Clone, Debug)]
pub(super) struct AnswerText {
    tokenizer: Arc<dyn Tokenizer>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    ends: Arc<[u32]>,
    /// Tokens before which nothing ends the answer: what is left of `min_tokens`.
    unmatched: u32,
    include_stop: bool,
    skip_special: bool,
    stopped: bool,
    scratch: String,
}

impl AnswerText {
    pub(super) fn new(tokenizer: Arc<dyn Tokenizer>, form: TextForm) -> Self {
        Self {
            tokenizer,
            detokenizer: Detokenizer::default(),
            matcher: StopMatcher::new(form.stops, form.include_stop),
            ends: form.ends,
            unmatched: form.min_tokens,
            include_stop: form.include_stop,
            skip_special: form.skip_special,
            stopped: false,
            scratch: String::new(),
        }
    }

    /// Appends to `out` the text that `token` completes.
    pub(super) fn push(&mut self, token: u32, out: &mut String) -> StopScan {
        let is_early = self.unmatched > 0;
        self.unmatched = self.unmatched.saturating_sub(1);
        let ends = self.unmatched == 0 && !self.include_stop && self.ends.contains(&token);
        let vocabulary = self.tokenizer.vocabulary();
        let bytes = match self.skip_special {
            _ if ends => &[],
            true => vocabulary.text(token),
            false => vocabulary.bytes(token),
        };
        self.scratch.clear();
        self.detokenizer.push(bytes, &mut self.scratch);
        if is_early {
            self.matcher.pass(&self.scratch, out);
            return StopScan::Running;
        }
        let scan = self.matcher.push(&self.scratch, out);
        self.stopped = scan == StopScan::Stopped;
        scan
    }

    /// The answer is over: what was held back is part of it, unless a stop string ended it. A
    /// character that the limit of length cut apart is not: it would only be U+FFFD.
    pub(super) fn finish(&mut self, reason: FinishReason, out: &mut String) -> StopScan {
        if self.stopped {
            return StopScan::Stopped;
        }
        self.scratch.clear();
        if reason == FinishReason::Stop {
            self.detokenizer.finish(&mut self.scratch);
        }
        let scan = self.matcher.push(&self.scratch, out);
        if scan == StopScan::Running {
            self.matcher.finish(out);
        }
        self.stopped = true;
        scan
    }
}
