//! Log probabilities in the two shapes of OpenAI's routes.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use super::form::Form;
use crate::{
    service::{Delta, PromptPart},
    streams::sink::TokenLogprobs,
    tokens::{Detokenizer, Vocabulary},
    validate::Endpoint,
};

/// Stands for minus infinity, which JSON cannot write; OpenAI's own number.
const LOGPROB_MIN: f32 = -9999.0;

/// Of one choice's new tokens, in the shape of its route.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs {
    /// `{"content": [...]}`.
    Chat {
        /// One entry per token.
        content: Vec<Entry>,
        /// Always `null`: there are no refusals.
        refusal: Option<()>,
    },
    /// Columns.
    Text(Columns),
}

/// One token of a chat.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    chosen: Token,
    top_logprobs: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    #[serde(rename = "token")]
    text: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Tokens of a completion, by column. `null` where nothing comes before a token.
#[derive(Debug, Default, Serialize)]
pub(super) struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<InOrder<String, f32>>>,
    text_offset: Vec<usize>,
}

/// An object whose names come in the order in which they were put in.
#[derive(Debug)]
pub(super) struct InOrder<K, V>(Vec<(K, V)>);

impl<K: PartialEq, V> InOrder<K, V> {
    /// Puts in `value`, unless there is one of the same name; there are few.
    fn push(&mut self, name: K, value: V) {
        if self.0.iter().all(|(known, _)| *known != name) {
            self.0.push((name, value));
        }
    }
}

impl<K: Serialize, V: Serialize> Serialize for InOrder<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Of one token of a prompt, as vLLM tells it.
#[derive(Debug, Serialize)]
pub(super) struct PromptToken {
    logprob: f32,
    rank: Option<usize>,
    decoded_token: String,
}

/// By token id; `None` of the first token, which nothing comes before.
pub(super) type PromptLogprobs = Vec<Option<InOrder<u32, PromptToken>>>;

/// Where the next token of a completion begins, in characters of its text.
#[derive(Clone, Debug, Default)]
pub(super) struct Offset {
    detokenizer: Detokenizer,
    chars: usize,
    scratch: String,
    /// Bytes of the prompt's text that the tokens so far have.
    echoed: usize,
}

impl Offset {
    /// Where in `text`, with which the answer begins, the next token does: between characters.
    pub(super) fn in_echo(&self, text: &str) -> usize {
        let end = self.echoed.min(text.len());
        (0..=end)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0)
    }

    /// Goes past a token with the text `bytes`; returns where it began. A token in the middle of a
    /// character begins where the character does.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let begin = self.chars;
        self.scratch.clear();
        self.detokenizer.push(bytes, &mut self.scratch);
        self.chars += self.scratch.chars().count();
        begin
    }
}

/// Log probabilities of what `delta` brings; `None` where none were asked for.
pub(super) fn render(
    form: Form,
    vocabulary: &Vocabulary,
    delta: &Delta<'_>,
    offset: &mut Offset,
) -> Option<Logprobs> {
    if !form.logprobs {
        return None;
    }
    let pairs = delta.tokens.iter().zip(delta.logprobs);
    match form.endpoint {
        Endpoint::Chat => (!delta.logprobs.is_empty()).then(|| Logprobs::Chat {
            content: pairs
                .map(|(id, entry)| chat(vocabulary, *id, entry))
                .collect(),
            refusal: None,
        }),
        Endpoint::Completions => {
            let mut columns = Columns::default();
            if let Some(prompt) = delta.prompt.filter(|_| form.echo) {
                columns.echo(vocabulary, prompt, offset);
            }
            for (id, entry) in pairs {
                let text = if form.skip_special {
                    vocabulary.text(*id)
                } else {
                    vocabulary.bytes(*id)
                };
                columns.push(vocabulary, *id, Some(entry), offset.pass(text));
            }
            (!columns.tokens.is_empty()).then_some(Logprobs::Text(columns))
        }
    }
}

fn chat(vocabulary: &Vocabulary, id: u32, entry: &TokenLogprobs) -> Entry {
    let token = |id: u32, logprob: f32| Token {
        text: token_name(vocabulary, id),
        logprob: finite(logprob),
        bytes: vocabulary.bytes(id).to_vec(),
    };
    let top = entry.top.iter().map(|(id, logprob)| token(*id, *logprob));
    Entry {
        chosen: token(id, entry.chosen),
        top_logprobs: top.collect(),
    }
}

impl Columns {
    /// The tokens of the prompt, with whose text the answer begins.
    fn echo(&mut self, vocabulary: &Vocabulary, prompt: PromptPart<'_>, offset: &mut Offset) {
        let text = prompt.text.as_bytes();
        for (id, entry) in prompt.entries() {
            let bytes = vocabulary.bytes(id);
            let unread = text.get(offset.echoed..).unwrap_or_default();
            // What the tokenizer put around the text has no place in it.
            let is_own = vocabulary.is_special(id) && !unread.starts_with(bytes);
            let bytes = if is_own { &[] } else { bytes };
            offset.echoed += bytes.len();
            self.push(vocabulary, id, entry, offset.pass(bytes));
        }
    }

    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        id: u32,
        entry: Option<&TokenLogprobs>,
        offset: usize,
    ) {
        self.text_offset.push(offset);
        self.token_logprobs
            .push(entry.map(|entry| finite(entry.chosen)));
        self.top_logprobs.push(entry.map(|entry| {
            let mut top = InOrder(Vec::with_capacity(entry.top.len() + 1));
            // The chosen token is always among them, as the API promises.
            for (id, logprob) in entry.top.iter().chain([&(id, entry.chosen)]) {
                top.push(column_name(vocabulary, *id), finite(*logprob));
            }
            top
        }));
        self.tokens.push(column_name(vocabulary, id));
    }
}

/// Log probabilities of a prompt as vLLM tells them: per token, alternatives by id.
pub(super) fn of_prompt(
    vocabulary: &Vocabulary,
    entries: &[TokenLogprobs],
    tokens: &[u32],
) -> PromptLogprobs {
    let describe = |id: u32, logprob: f32, rank: Option<usize>| PromptToken {
        logprob: finite(logprob),
        rank,
        decoded_token: token_name(vocabulary, id),
    };
    let position = |(id, entry): (&u32, &TokenLogprobs)| {
        let mut by_id = InOrder(Vec::with_capacity(entry.top.len() + 1));
        for (place, (id, logprob)) in entry.top.iter().enumerate() {
            by_id.push(*id, describe(*id, *logprob, Some(place + 1)));
        }
        // Of a token that is not among the alternatives nobody knows the rank.
        by_id.push(*id, describe(*id, entry.chosen, None));
        Some(by_id)
    };
    let rest = tokens.iter().skip(1).zip(entries).map(position);
    std::iter::once(None).chain(rest).collect()
}

/// OpenAI's name of a token: its text, escaped if that is no whole characters.
pub(super) fn token_name(vocabulary: &Vocabulary, id: u32) -> String {
    let bytes = vocabulary.bytes(id);
    name(bytes).unwrap_or_else(|| escaped(bytes))
}

/// A token's text; `None` if it is no whole characters.
fn name(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// OpenAI's name of a part of a character in a completion.
fn column_name(vocabulary: &Vocabulary, id: u32) -> String {
    let bytes = vocabulary.bytes(id);
    name(bytes).unwrap_or_else(|| format!("bytes:{}", escaped(bytes)))
}

/// `\xe2\x82`: never U+FFFD, under which different tokens would have one name.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(4 * bytes.len());
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(out, "\\x{byte:02x}");
    }
    out
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() {
        LOGPROB_MIN
    } else {
        logprob.max(LOGPROB_MIN)
    }
}
