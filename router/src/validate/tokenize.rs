//! Bodies of `/tokenize` and `/detokenize`, in vLLM's shape.

use serde_json::value::RawValue;

use super::{
    check::{bad_id, check_model, invalid},
    fields::{self, Fields},
    harmless, messages,
    numbers::Integer,
    prompt::token_ids,
    spec::{Params, Prompt},
};
use crate::{config::records::LimitsConfig, error::Error, tokens::ServedModel};

/// A body of `/tokenize`, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokenize {
    /// A text, or the messages of a chat.
    pub params: Params,
    /// The tokens' own text beside their ids.
    pub token_strs: bool,
    /// First field that is not known.
    pub unknown: Option<String>,
}

/// A body of `/detokenize`, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detokenize {
    /// Ids of the vocabulary.
    pub tokens: Vec<u32>,
    /// First field that is not known.
    pub unknown: Option<String>,
}

/// Reads a body of `/tokenize`.
pub fn parse_tokenize(body: &[u8], limits: &LimitsConfig) -> Result<Tokenize, Error> {
    let mut out = Tokenize::default();
    let Fields(fields) = fields::read_object(body)?;
    for (name, raw) in fields {
        let params = &mut out.params;
        match &*name {
            "model" => params.model = fields::read(&name, raw)?,
            "add_special_tokens" => params.add_special_tokens = fields::read(&name, raw)?,
            "prompt" => {
                let text: Option<String> = fields::read(&name, raw)?;
                put(params, text.map(Prompt::Text))?;
            }
            "messages" if raw.get() == "null" => {}
            "messages" => {
                let messages = messages::read(raw, limits.messages_max)?;
                put(params, Some(Prompt::Messages(messages)))?;
            }
            "return_token_strs" => out.token_strs = fields::read(&name, raw)?.unwrap_or(false),
            _ => ignore(&mut out.unknown, &name, raw)?,
        }
    }
    Ok(out)
}

/// Takes the one thing that is to be tokenized.
fn put(params: &mut Params, prompt: Option<Prompt>) -> Result<(), Error> {
    if prompt.is_some() && params.prompt.is_some() {
        return Err(invalid(
            "messages",
            "prompt and messages are both there; send one",
        ));
    }
    params.prompt = params.prompt.take().or(prompt);
    Ok(())
}

/// Reads and checks a body of `/detokenize`.
pub fn parse_detokenize(body: &[u8], model: &ServedModel) -> Result<Detokenize, Error> {
    let mut out = Detokenize::default();
    let mut tokens = None;
    let Fields(fields) = fields::read_object(body)?;
    for (name, raw) in fields {
        match &*name {
            "model" => check_model(fields::read::<String>(&name, raw)?.as_deref(), model)?,
            "tokens" => {
                let max = model.max_model_len as usize;
                let ids: Vec<Integer> = fields::read_list(&name, raw, max)?;
                let ids = ids.into_iter().map(|Integer(id)| id);
                tokens = Some(token_ids("tokens", ids)?);
            }
            _ => ignore(&mut out.unknown, &name, raw)?,
        }
    }
    out.tokens = tokens.ok_or_else(|| invalid("tokens", "tokens is required"))?;
    match out.tokens.iter().find(|id| **id >= model.vocab_size) {
        Some(id) => Err(bad_id("tokens", id, model)),
        None => Ok(out),
    }
}

fn ignore(unknown: &mut Option<String>, name: &str, raw: &RawValue) -> Result<(), Error> {
    if !harmless::pass(name, raw)? && unknown.is_none() {
        *unknown = Some(name.to_owned());
    }
    Ok(())
}
