//! JSON bodies of OpenAI's routes, field by field.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    check::invalid,
    fields::{self, Fields},
    harmless, messages,
    numbers::{Integer, Number, Seed},
    prompt,
    spec::{Params, Prompt},
};
use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    tokens::ServedModel,
};

/// OpenAI's default of `max_tokens` for completions.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// Which route the body came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// A body, read: what to do, and in which form to answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOrText {
    /// What to do.
    pub params: Params,
    /// Server-sent events instead of one object.
    pub stream: bool,
    /// Usage in a last event.
    pub include_usage: bool,
}

/// What the fields leave behind until all of them are read: some bear on each other.
#[derive(Default)]
struct Draft {
    out: ChatOrText,
    max_completion_tokens: Option<i64>,
    chat_logprobs: bool,
    has_stream_options: bool,
}

/// Reads a body of `endpoint`.
pub fn parse(
    endpoint: Endpoint,
    body: &[u8],
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<ChatOrText, Error> {
    let mut draft = Draft::default();
    let Fields(fields) = fields::read_object(body)?;
    for (name, raw) in fields {
        if !prompt_field(endpoint, &name, raw, &mut draft.out.params, limits, model)?
            && !answer_field(endpoint, &name, raw, &mut draft, limits)?
            && !sampling_field(&name, raw, &mut draft.out.params)?
        {
            harmless::pass(&name, raw)?;
            draft.out.params.ignored_fields += 1;
        }
    }
    draft.finish(endpoint)
}

/// Reads a body of `/tokenize`: a prompt, or the messages of a chat.
pub fn parse_tokenize(
    body: &[u8],
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<Params, Error> {
    let mut params = Params::default();
    let Fields(fields) = fields::read_object(body)?;
    for (name, raw) in fields {
        let endpoint = if name == "messages" {
            Endpoint::Chat
        } else {
            Endpoint::Completions
        };
        if !prompt_field(endpoint, &name, raw, &mut params, limits, model)? {
            harmless::pass(&name, raw)?;
        }
    }
    Ok(params)
}

fn prompt_field(
    endpoint: Endpoint,
    name: &str,
    raw: &RawValue,
    params: &mut Params,
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<bool, Error> {
    match (name, endpoint) {
        ("model", _) => params.model = fields::read(name, raw)?,
        ("add_special_tokens", _) => params.add_special_tokens = fields::read(name, raw)?,
        ("messages", Endpoint::Chat) => {
            let messages = messages::read(raw, limits.messages_max)?;
            params.prompt = Some(Prompt::Messages(messages));
        }
        ("prompt", Endpoint::Completions) => {
            params.prompt = prompt::read(raw, model.max_model_len as usize)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn answer_field(
    endpoint: Endpoint,
    name: &str,
    raw: &RawValue,
    draft: &mut Draft,
    limits: &LimitsConfig,
) -> Result<bool, Error> {
    let params = &mut draft.out.params;
    match name {
        "max_tokens" => params.max_tokens = integer(name, raw)?,
        "max_completion_tokens" => draft.max_completion_tokens = integer(name, raw)?,
        "min_tokens" => params.min_tokens = integer(name, raw)?,
        "n" => params.n = integer(name, raw)?,
        "stop" => params.stop = stop(raw, limits.stop_strings_max)?,
        "stop_token_ids" if raw.get() == "null" => {}
        "stop_token_ids" => {
            let ids: Vec<Integer> = fields::read_list(name, raw, limits.stop_token_ids_max)?;
            params.stop_token_ids = ids.into_iter().map(|id| id.0).collect();
        }
        "ignore_eos" => params.ignore_eos = flag(name, raw)?,
        "stream" => draft.out.stream = flag(name, raw)?,
        "stream_options" => stream_options(raw, draft)?,
        "logprobs" if endpoint == Endpoint::Chat => draft.chat_logprobs = flag(name, raw)?,
        "logprobs" => {
            params.top_logprobs = integer(name, raw)?;
            params.top_logprobs_name = Some("logprobs");
        }
        "top_logprobs" if endpoint == Endpoint::Chat => {
            params.top_logprobs = integer(name, raw)?;
        }
        "priority" => params.priority = integer(name, raw)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn sampling_field(name: &str, raw: &RawValue, params: &mut Params) -> Result<bool, Error> {
    match name {
        "temperature" => params.temperature = number(name, raw)?,
        "top_p" => params.top_p = number(name, raw)?,
        "top_k" => params.top_k = integer(name, raw)?,
        "min_p" => params.min_p = number(name, raw)?,
        "seed" => params.seed = fields::read::<Seed>(name, raw)?.map(|seed| seed.0),
        _ => return Ok(false),
    }
    Ok(true)
}

impl Draft {
    fn finish(self, endpoint: Endpoint) -> Result<ChatOrText, Error> {
        let mut out = self.out;
        let params = &mut out.params;
        if self.max_completion_tokens.is_some() {
            params.max_tokens = self.max_completion_tokens;
            params.max_tokens_name = Some("max_completion_tokens");
        }
        if params.prompt.is_none() {
            let field = match endpoint {
                Endpoint::Chat => "messages",
                Endpoint::Completions => "prompt",
            };
            return Err(invalid(field, format!("{field} is required")));
        }
        if self.has_stream_options && !out.stream {
            let message = "stream_options needs stream to be true";
            return Err(invalid("stream_options", message));
        }
        match endpoint {
            Endpoint::Completions => {
                params.max_tokens_default = Some(COMPLETION_TOKENS_DEFAULT);
            }
            Endpoint::Chat if self.chat_logprobs => {
                params.top_logprobs = params.top_logprobs.or(Some(0));
            }
            Endpoint::Chat if params.top_logprobs.is_some_and(|top| top != 0) => {
                let message = "top_logprobs needs logprobs to be true";
                return Err(invalid("top_logprobs", message));
            }
            Endpoint::Chat => params.top_logprobs = None,
        }
        Ok(out)
    }
}

fn integer(field: &str, raw: &RawValue) -> Result<Option<i64>, Error> {
    Ok(fields::read::<Integer>(field, raw)?.map(|integer| integer.0))
}

fn number(field: &str, raw: &RawValue) -> Result<Option<f64>, Error> {
    Ok(fields::read::<Number>(field, raw)?.map(|number| number.0))
}

fn flag(field: &str, raw: &RawValue) -> Result<bool, Error> {
    Ok(fields::read(field, raw)?.unwrap_or(false))
}

/// One string or a list of them; `null` and `""` are none.
fn stop(raw: &RawValue, max: usize) -> Result<Vec<String>, Error> {
    if raw.get().starts_with('[') {
        return fields::read_list("stop", raw, max);
    }
    let one: Option<String> = fields::read("stop", raw)?;
    Ok(one.into_iter().filter(|stop| !stop.is_empty()).collect())
}

fn stream_options(raw: &RawValue, draft: &mut Draft) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Options {
        #[serde(default)]
        include_usage: Option<bool>,
        #[serde(default)]
        continuous_usage_stats: Option<bool>,
    }
    let Some(options) = fields::read::<Options>("stream_options", raw)? else {
        return Ok(());
    };
    if options.continuous_usage_stats == Some(true) {
        let message = "continuous_usage_stats is not supported, only false is";
        return Err(Error::new(Reason::UnsupportedValue, message)
            .with_field("stream_options.continuous_usage_stats"));
    }
    draft.has_stream_options = true;
    draft.out.include_usage = options.include_usage.unwrap_or(false);
    Ok(())
}
