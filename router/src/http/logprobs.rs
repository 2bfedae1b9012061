//! Log probabilities in the two shapes of OpenAI's routes.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    streams::sink::TokenLogprobs,
    tokens::{Tokenizer, Vocabulary},
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

/// Tokens of a completion, by column.
#[derive(Debug, Default, Serialize)]
pub(super) struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

/// Entries for `tokens`; `None` where none were asked for. `offset` counts the characters of the
/// choice's tokens so far.
pub(super) fn render(
    endpoint: Endpoint,
    tokenizer: &dyn Tokenizer,
    tokens: &[u32],
    logprobs: &[TokenLogprobs],
    offset: &mut usize,
) -> Option<Logprobs> {
    if logprobs.is_empty() {
        return None;
    }
    let vocabulary = tokenizer.vocabulary();
    let pairs = tokens.iter().zip(logprobs);
    Some(match endpoint {
        Endpoint::Chat => Logprobs::Chat {
            content: pairs
                .map(|(id, entry)| chat(vocabulary, *id, entry))
                .collect(),
            refusal: None,
        },
        Endpoint::Completions => {
            let mut columns = Columns::default();
            for (id, entry) in pairs {
                columns.push(vocabulary, *id, entry, offset);
            }
            Logprobs::Text(columns)
        }
    })
}

fn chat(vocabulary: &Vocabulary, id: u32, entry: &TokenLogprobs) -> Entry {
    let token = |id: u32, logprob: f32| Token {
        text: name(vocabulary, id),
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
    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        id: u32,
        entry: &TokenLogprobs,
        offset: &mut usize,
    ) {
        let token = name(vocabulary, id);
        let mut top = Map::new();
        // The chosen token is always among them, as the API promises.
        for (id, logprob) in entry.top.iter().chain([&(id, entry.chosen)]) {
            top.entry(name(vocabulary, *id))
                .or_insert_with(|| finite(*logprob).into());
        }
        self.text_offset.push(*offset);
        *offset += token.chars().count();
        self.token_logprobs.push(finite(entry.chosen));
        self.top_logprobs.push(top);
        self.tokens.push(token);
    }
}

fn name(vocabulary: &Vocabulary, id: u32) -> String {
    String::from_utf8_lossy(vocabulary.bytes(id)).into_owned()
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() {
        LOGPROB_MIN
    } else {
        logprob.max(LOGPROB_MIN)
    }
}
