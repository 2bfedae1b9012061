//! `prompt` of a completion: text, token ids, or a list with one of them.

use serde_json::value::RawValue;

use super::{check::invalid, fields, numbers::Integer, spec::Prompt};
use crate::error::{Error, Reason};

/// Prompts of a list that are kept until it is refused.
const PROMPTS_KEPT: usize = 2;

/// Reads a prompt of at most `tokens_max` token ids.
pub(super) fn read(raw: &RawValue, tokens_max: usize) -> Result<Option<Prompt>, Error> {
    let text = raw.get();
    let Some(inner) = text.strip_prefix('[') else {
        let text: Option<String> = fields::read("prompt", raw)?;
        return Ok(text.map(Prompt::Text));
    };
    let first = inner.trim_start().chars().next().unwrap_or(']');
    if first != '"' && first != '[' {
        return tokens(raw, tokens_max).map(Some);
    }
    let (list, total): (Vec<&RawValue>, usize) = fields::read_counted("prompt", raw, PROMPTS_KEPT)?;
    match list.as_slice() {
        [one] if first == '"' => {
            let text: Option<String> = fields::read("prompt", one)?;
            Ok(text.map(Prompt::Text))
        }
        [one] => tokens(one, tokens_max).map(Some),
        _ => {
            let message = format!(
                "{total} prompts in one request are not supported; send one request per prompt"
            );
            Err(Error::new(Reason::UnsupportedValue, message).with_field("prompt"))
        }
    }
}

fn tokens(raw: &RawValue, max: usize) -> Result<Prompt, Error> {
    let (ids, total): (Vec<Integer>, usize) = fields::read_counted("prompt", raw, max)?;
    if total > max {
        let message = format!("the prompt has {total} tokens; the model's context is {max} tokens");
        return Err(Error::new(Reason::ContextLengthExceeded, message).with_field("prompt"));
    }
    let id = |Integer(id): Integer| {
        u32::try_from(id)
            .map_err(|_| invalid("prompt", format!("token id {id} is not in the vocabulary")))
    };
    Ok(Prompt::Tokens(
        ids.into_iter().map(id).collect::<Result<_, _>>()?,
    ))
}
