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

/// Log probabilities of prompts that one fetch writes: some milliseconds of a front thread, which
/// has other streams. A request may ask for `limits.prompt_logprobs_max` of them.
pub(super) const LOGPROBS_AT_ONCE: usize = 2_048;

/// Tokens without log probabilities that take as long to write as one log probability.
const PLAIN_TOKENS: usize = 16;

/// What an answer tells of its prompt: all of it, and of which positions now.
#[derive(Clone, Copy, Debug)]
pub struct PromptPart<'a> {
    /// With which the answer begins; empty unless `echo` asks for it.
    pub text: &'a str,
    /// Token ids.
    pub tokens: &'a [u32],
    /// If asked for: one per token but the first, which nothing comes before.
    pub logprobs: Option<&'a [TokenLogprobs]>,
    /// First position of this part; 0 in the first.
    pub from: usize,
    /// Position after the last of this part; the number of tokens in the last part.
    pub to: usize,
}

impl<'a> PromptPart<'a> {
    /// Token ids of this part with their log probabilities; `None` where nothing comes before, or
    /// where they were not asked for.
    pub fn entries(self) -> impl Iterator<Item = (u32, Option<&'a TokenLogprobs>)> {
        let known = self.logprobs.unwrap_or_default();
        let tokens = self.tokens.get(self.from..self.to).unwrap_or_default();
        let positions = self.from..;
        (positions.zip(tokens)).map(|(position, id)| {
            let entry = position.checked_sub(1).and_then(|at| known.get(at));
            (*id, entry)
        })
    }

    /// Whether the prompt ends with this part.
    pub fn is_last(self) -> bool {
        self.to == self.tokens.len()
    }
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

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The part that begins at position `from`, for which there is `room`, in log probabilities;
    /// one position at least. Takes what it needs.
    pub(super) fn part(&self, from: usize, room: &mut usize) -> PromptPart<'_> {
        let mut part = PromptPart {
            text: &self.text,
            tokens: &self.tokens,
            logprobs: self.logprobs.as_deref(),
            from,
            to: self.tokens.len(),
        };
        if self.logprobs.is_none() {
            *room = room.saturating_sub(part.to / PLAIN_TOKENS);
            return part;
        }
        let mut left = *room;
        let fits = part.entries().take_while(|(_, entry)| {
            let is_room = left > 0;
            left = left.saturating_sub(1 + entry.map_or(0, |entry| entry.top.len()));
            is_room
        });
        part.to = from + fits.count().max(1);
        *room = left;
        part
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
        let known = prompt.part(0, &mut 9).logprobs.unwrap();
        assert_eq!(known, entries(&[-1.0, -2.0, -3.0, -4.0]));
        assert_eq!(prompt.missing(), 0);
        assert_eq!(Prompt::new(&prepared, false).missing(), 0);
    }

    #[test]
    fn a_part_has_the_positions_that_there_is_room_for() {
        let prepared = PreparedPrompt {
            tokens: vec![1, 2, 3, 4].into(),
            text: String::new(),
            max_tokens: 1,
        };
        let mut prompt = Prompt::new(&prepared, true);
        let entry = |chosen| TokenLogprobs {
            chosen,
            top: vec![(7, -0.5); 2],
        };
        prompt.add(1, &[entry(-1.0), entry(-2.0), entry(-3.0)]);
        // The first position has no log probability and counts as one, each other has three.
        for (from, room, to, left) in [
            (0, 9, 4, 0),
            (0, 99, 4, 89),
            (0, 4, 2, 0),
            (0, 5, 3, 0),
            (2, 1, 3, 0),
            (3, 4, 4, 1),
        ] {
            let mut rest = room;
            let part = prompt.part(from, &mut rest);
            assert_eq!((part.from, part.to, rest), (from, to, left), "{room}");
            assert_eq!(part.is_last(), to == 4);
            let shown: Vec<_> = part.entries().collect();
            let told = (1_u32..).zip([None, Some(-1.0), Some(-2.0), Some(-3.0)]);
            let expected: Vec<_> = told.skip(from).take(to - from).collect();
            let chosen = |(id, entry): &(u32, Option<&TokenLogprobs>)| {
                (*id, entry.map(|entry| entry.chosen))
            };
            assert_eq!(shown.iter().map(chosen).collect::<Vec<_>>(), expected);
        }
    }
}
