//! A prompt as its answers show it: text, token ids, log probabilities.

use std::sync::Arc;

use crate::streams::sink::TokenLogprobs;

/// A prompt, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PreparedPrompt {
    /// At least one.
    pub(super) tokens: Arc<[u32]>,
    /// With which answers begin; empty unless that was asked for.
    pub(super) text: String,
    /// Most tokens to make after it.
    pub(super) max_tokens: u32,
}

/// What an answer tells of its prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptPart<'a> {
    /// With which the answer begins; empty unless `echo` asks for it.
    pub text: &'a str,
    /// Token ids.
    pub tokens: &'a [u32],
    /// If asked for: one per token but the first, which nothing comes before.
    pub logprobs: Option<&'a [TokenLogprobs]>,
}

/// The prompt of some choices, and what workers told of it so far.
#[derive(Debug)]
pub(super) struct Prompt {
    text: String,
    tokens: Arc<[u32]>,
    /// `None` unless they were asked for.
    logprobs: Option<Vec<TokenLogprobs>>,
}

impl Prompt {
    pub(super) fn new(prepared: &PreparedPrompt, with_logprobs: bool) -> Self {
        Self {
            text: prepared.text.clone(),
            tokens: Arc::clone(&prepared.tokens),
            logprobs: with_logprobs.then(Vec::new),
        }
    }

    /// Keeps what is new of `entries`, which are of positions `start` and on: every choice and
    /// every replay tells them again.
    pub(super) fn add(&mut self, start: u32, entries: &[TokenLogprobs]) {
        let wanted = self.tokens.len().saturating_sub(1);
        let Some(logprobs) = &mut self.logprobs else {
            return;
        };
        let Some(known) = (logprobs.len() + 1).checked_sub(start as usize) else {
            return;
        };
        let new = entries.get(known..).unwrap_or_default();
        let room = wanted - logprobs.len();
        logprobs.extend_from_slice(new.get(..room).unwrap_or(new));
    }

    /// How many log probabilities are missing.
    pub(super) fn missing(&self) -> usize {
        let wanted = self.tokens.len().saturating_sub(1);
        let known = self.logprobs.as_ref().map_or(wanted, Vec::len);
        wanted - known
    }

    pub(super) fn part(&self) -> PromptPart<'_> {
        PromptPart {
            text: &self.text,
            tokens: &self.tokens,
            logprobs: self.logprobs.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(chosen: &[f32]) -> Vec<TokenLogprobs> {
        let entry = |chosen: &f32| TokenLogprobs {
            chosen: *chosen,
            top: Vec::new(),
        };
        chosen.iter().map(entry).collect()
    }

    #[test]
    fn log_probabilities_are_kept_once_in_order_and_no_more_than_there_are_tokens() {
        let prepared = PreparedPrompt {
            tokens: vec![1, 2, 3, 4, 5].into(),
            text: String::new(),
            max_tokens: 1,
        };
        let mut prompt = Prompt::new(&prepared, true);
        prompt.add(1, &entries(&[-1.0, -2.0]));
        assert_eq!(prompt.missing(), 2);
        // A hole, then a replay that tells everything again, and more than there is.
        prompt.add(4, &entries(&[-4.0]));
        assert_eq!(prompt.missing(), 2);
        prompt.add(1, &entries(&[-9.0, -9.0, -3.0]));
        prompt.add(3, &entries(&[-9.0, -4.0, -5.0]));
        let known = prompt.part().logprobs.unwrap();
        assert_eq!(known, entries(&[-1.0, -2.0, -3.0, -4.0]));
        assert_eq!(prompt.missing(), 0);
        assert_eq!(Prompt::new(&prepared, false).missing(), 0);
    }
}
