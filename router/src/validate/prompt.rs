//! `prompt` of a completion: text, token ids, or a list of either.

use serde_json::value::RawValue;

use super::{check::invalid, fields, numbers::Integer, spec::Prompt};
use crate::error::{Error, Reason};

/// Bounds of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Prompts in one request.
    pub(super) prompts: usize,
    /// Token ids of one prompt.
    pub(super) tokens: usize,
}

/// Reads all prompts; none for `null`.
pub(super) fn read(raw: &RawValue, bounds: Bounds) -> Result<Vec<Prompt>, Error> {
    let text = raw.get();
    let Some(inner) = text.strip_prefix('[') else {
        let text: Option<String> = fields::read("prompt", raw)?;
        return Ok(text.map(Prompt::Text).into_iter().collect());
    };
    match inner.trim_start().chars().next() {
        Some('"') => {
            let texts: Vec<String> = fields::read_list("prompt", raw, bounds.prompts)?;
            Ok(texts.into_iter().map(Prompt::Text).collect())
        }
        Some('[') => {
            let lists: Vec<&RawValue> = fields::read_list("prompt", raw, bounds.prompts)?;
            let read = lists.into_iter().map(|list| tokens(list, bounds.tokens));
            read.collect()
        }
        _ => Ok(vec![tokens(raw, bounds.tokens)?]),
    }
}

fn tokens(raw: &RawValue, max: usize) -> Result<Prompt, Error> {
    let (ids, total): (Vec<Integer>, usize) = fields::read_counted("prompt", raw, max)?;
    if total > max {
        let message = format!("the prompt has {total} tokens; the model's context is {max} tokens");
        return Err(Error::new(Reason::ContextLengthExceeded, message).with_field("prompt"));
    }
    let ids = ids.into_iter().map(|Integer(id)| id);
    Ok(Prompt::Tokens(token_ids("prompt", ids)?))
}

/// Ids that may be in a vocabulary.
pub(super) fn token_ids(
    field: &'static str,
    ids: impl Iterator<Item = i64>,
) -> Result<Vec<u32>, Error> {
    let id = |id: i64| {
        u32::try_from(id)
            .map_err(|_| invalid(field, format!("token id {id} is not in the vocabulary")))
    };
    ids.map(id).collect()
}
