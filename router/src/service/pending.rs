//! What waits of one choice for its reader.

use std::time::Instant;

use super::{
    outbox::Render,
    prompt::{Prompt, PromptPart},
    text::AnswerText,
};
use crate::{
    streams::sink::{FinishReason, TokenChunk, TokenLogprobs},
    tokens::StopScan,
};

/// What is new of one choice.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// Which choice.
    pub choice: usize,
    /// With the first deltas of a choice: as many as its log probabilities take.
    pub prompt: Option<PromptPart<'a>>,
    /// Whole characters; may be empty.
    pub text: &'a str,
    /// Token ids, if they or log probabilities were asked for.
    pub tokens: &'a [u32],
    /// One per token, if asked for.
    pub logprobs: &'a [TokenLogprobs],
    /// Present when the choice is complete; nothing follows.
    pub finish: Option<FinishReason>,
}

/// Text that waits, or token ids from which it is made later.
#[derive(Debug, Default)]
pub(super) struct Pending {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<FinishReason>,
    backlog: Option<Backlog>,
    /// Positions of the prompt that were written.
    told: usize,
    /// When the choice's last token came.
    pub(super) last_token: Option<Instant>,
}

/// Tokens to be rendered later, and the state of the text before them.
#[derive(Debug)]
struct Backlog {
    text: AnswerText,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    rendered: usize,
}

impl Pending {
    /// From now on token ids are kept; `text` is the state before the first of them.
    pub(super) fn defer(&mut self, text: &AnswerText) {
        self.backlog.get_or_insert_with(|| Backlog {
            text: text.clone(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            rendered: 0,
        });
    }

    /// Takes the tokens up to the one that completes a stop string. Returns how many were taken.
    pub(super) fn push(
        &mut self,
        text: &mut AnswerText,
        chunk: TokenChunk<'_>,
        keep_ids: bool,
    ) -> (usize, StopScan) {
        let mut unread = String::new();
        let late = self.backlog.is_some();
        let mut taken = 0;
        let mut scan = StopScan::Running;
        for token in chunk.tokens {
            let out = if late { &mut unread } else { &mut self.text };
            scan = text.push(*token, out);
            taken += 1;
            if scan == StopScan::Stopped {
                break;
            }
        }
        let logprobs = &chunk.logprobs[..taken.min(chunk.logprobs.len())];
        let (ids, probs) = match &mut self.backlog {
            Some(backlog) => (&mut backlog.tokens, &mut backlog.logprobs),
            None => (&mut self.tokens, &mut self.logprobs),
        };
        if late || keep_ids {
            ids.extend_from_slice(&chunk.tokens[..taken]);
        }
        probs.extend_from_slice(logprobs);
        (taken, scan)
    }

    /// The choice is complete; what the text held back comes out. Returns why it ended.
    pub(super) fn finish(&mut self, text: &mut AnswerText, reason: FinishReason) -> FinishReason {
        let mut unread = String::new();
        let late = self.backlog.is_some();
        let scan = text.finish(reason, if late { &mut unread } else { &mut self.text });
        let reason = match scan {
            StopScan::Stopped => FinishReason::Stop,
            StopScan::Running => reason,
        };
        self.finish = Some(reason);
        reason
    }

    /// Bytes that wait, without those of a backlog.
    pub(super) fn bytes(&self) -> usize {
        let alternatives: usize = self.logprobs.iter().map(|entry| entry.top.len()).sum();
        self.text.len()
            + size_of_val(self.tokens.as_slice())
            + size_of_val(self.logprobs.as_slice())
            + alternatives * size_of::<(u32, f32)>()
    }

    /// Writes what waits, then renders more of a backlog, up to `bytes_max`. Begins with the
    /// prompt, of which so many log probabilities are written as there is `room` for.
    pub(super) fn fetch(
        &mut self,
        choice: usize,
        prompt: &Prompt,
        room: &mut usize,
        bytes_max: usize,
        render: &mut impl Render,
    ) {
        // The end comes after the backlog.
        let finish = self.finish.filter(|_| self.backlog.is_none());
        if !self.text.is_empty() || !self.tokens.is_empty() || finish.is_some() {
            let part = (self.told < prompt.len()).then(|| prompt.part(self.told, room));
            let mut delta = Delta {
                choice,
                prompt: part,
                text: "",
                tokens: &[],
                logprobs: &[],
                finish: None,
            };
            if let Some(part) = part {
                self.told = part.to;
                if !part.is_last() {
                    return render.delta(delta);
                }
            }
            delta.text = &self.text;
            delta.tokens = &self.tokens;
            delta.logprobs = &self.logprobs;
            delta.finish = finish;
            render.delta(delta);
            if finish.is_some() {
                self.finish = None;
            }
            self.text.clear();
            self.tokens.clear();
            self.logprobs.clear();
        }
        self.refill(bytes_max);
    }

    /// Whether another fetch would write something.
    pub(super) fn has_more(&self) -> bool {
        self.backlog.is_some()
            || self.finish.is_some()
            || !self.text.is_empty()
            || !self.tokens.is_empty()
    }

    fn refill(&mut self, bytes_max: usize) {
        let Some(backlog) = &mut self.backlog else {
            return;
        };
        let start = backlog.rendered;
        while self.text.len() < bytes_max
            && let Some(token) = backlog.tokens.get(backlog.rendered)
        {
            // Only the last token can complete a stop string: the answer ended there.
            backlog.text.push(*token, &mut self.text);
            backlog.rendered += 1;
        }
        let rendered = start..backlog.rendered;
        self.tokens
            .extend_from_slice(&backlog.tokens[rendered.clone()]);
        if let Some(logprobs) = backlog.logprobs.get(rendered) {
            self.logprobs.extend_from_slice(logprobs);
        }
        if backlog.rendered == backlog.tokens.len() {
            if let Some(reason) = self.finish {
                backlog.text.finish(reason, &mut self.text);
            }
            self.backlog = None;
        }
    }
}
