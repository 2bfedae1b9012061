//! JSON bodies of OpenAI's routes, field by field.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    bias,
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
    /// How to answer.
    pub form: AnswerForm,
    /// First field that no version of the API knows; refused by strict servers.
    pub unknown: Option<String>,
}

/// What a body says of its answer's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of the request")]
pub struct AnswerForm {
    /// Server-sent events instead of one object.
    pub stream: bool,
    /// Usage in a last event.
    pub include_usage: bool,
    /// Usage so far in every event, if there is one in the last.
    pub continuous_usage: bool,
    /// Token ids of prompt and answer beside the text.
    pub token_ids: bool,
    /// Log probabilities of the prompt in vLLM's shape.
    pub prompt_logprobs: bool,
}

/// What the fields leave behind until all of them are read: some bear on each other.
#[derive(Default)]
struct Draft {
    out: ChatOrText,
    max_completion_tokens: Option<i64>,
    chat_logprobs: bool,
    has_stream_options: bool,
    /// Name of the field that offers tools to the model.
    tools: Option<&'static str>,
    /// The model shall call none of them.
    tools_unused: bool,
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
            && !length_field(&name, raw, &mut draft, limits)?
            && !form_field(endpoint, &name, raw, &mut draft)?
            && !logprobs_field(endpoint, &name, raw, &mut draft)?
            && !sampling_field(&name, raw, &mut draft.out.params, limits)?
        {
            draft.pass(&name, raw)?;
        }
    }
    draft.finish(endpoint)
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
        ("truncate_prompt_tokens", _) => params.truncate_prompt_tokens = integer(name, raw)?,
        ("messages", Endpoint::Chat) => {
            let messages = messages::read(raw, limits.messages_max)?;
            params.prompt = Some(Prompt::Messages(messages));
        }
        ("prompt", Endpoint::Completions) => {
            let bounds = prompt::Bounds {
                prompts: limits.prompts_max,
                tokens: model.max_model_len as usize,
            };
            let mut prompts = prompt::read(raw, bounds)?.into_iter();
            params.prompt = prompts.next();
            params.batch = prompts.collect();
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// How long the answer is, and how many there are.
fn length_field(
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
        "priority" => params.priority = integer(name, raw)?,
        "cache_salt" => params.cache_salt = fields::read(name, raw)?,
        "slo_ttft_ms" => params.slo_ttft_ms = integer(name, raw)?,
        "slo_tpot_ms" => params.slo_tpot_ms = integer(name, raw)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// What the answer looks like.
fn form_field(
    endpoint: Endpoint,
    name: &str,
    raw: &RawValue,
    draft: &mut Draft,
) -> Result<bool, Error> {
    let params = &mut draft.out.params;
    match (name, endpoint) {
        ("best_of", Endpoint::Completions) => params.best_of = integer(name, raw)?,
        ("echo", Endpoint::Completions) => params.echo = flag(name, raw)?,
        ("include_stop_str_in_output", _) => params.include_stop = flag(name, raw)?,
        ("skip_special_tokens", _) => params.skip_special_tokens = fields::read(name, raw)?,
        ("return_token_ids", _) => draft.out.form.token_ids = flag(name, raw)?,
        ("stream", _) => draft.out.form.stream = flag(name, raw)?,
        ("stream_options", _) => stream_options(raw, draft)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn logprobs_field(
    endpoint: Endpoint,
    name: &str,
    raw: &RawValue,
    draft: &mut Draft,
) -> Result<bool, Error> {
    let params = &mut draft.out.params;
    match (name, endpoint) {
        ("logprobs", Endpoint::Chat) => draft.chat_logprobs = flag(name, raw)?,
        ("logprobs", Endpoint::Completions) => {
            params.top_logprobs = integer(name, raw)?;
            params.top_logprobs_name = Some("logprobs");
        }
        ("top_logprobs", Endpoint::Chat) => params.top_logprobs = integer(name, raw)?,
        ("prompt_logprobs", _) => params.prompt_logprobs = integer(name, raw)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn sampling_field(
    name: &str,
    raw: &RawValue,
    params: &mut Params,
    limits: &LimitsConfig,
) -> Result<bool, Error> {
    match name {
        "temperature" => params.temperature = number(name, raw)?,
        "top_p" => params.top_p = number(name, raw)?,
        "top_k" => params.top_k = integer(name, raw)?,
        "min_p" => params.min_p = number(name, raw)?,
        "presence_penalty" => params.presence_penalty = number(name, raw)?,
        "frequency_penalty" => params.frequency_penalty = number(name, raw)?,
        "repetition_penalty" => params.repetition_penalty = number(name, raw)?,
        "logit_bias" => params.logit_bias = bias::read(raw, limits.logit_bias_max)?,
        "seed" => params.seed = fields::read::<Seed>(name, raw)?.map(|seed| seed.0),
        _ => return Ok(false),
    }
    Ok(true)
}

impl Draft {
    /// Takes note of a field that is not read.
    fn pass(&mut self, name: &str, raw: &RawValue) -> Result<(), Error> {
        let known = harmless::pass(name, raw)?;
        match name {
            "tools" if !harmless::is_empty(raw) => self.tools = Some("tools"),
            "functions" if !harmless::is_empty(raw) => self.tools = Some("functions"),
            "tool_choice" | "function_call" => self.tools_unused = raw.get() == "\"none\"",
            _ => {}
        }
        if !known && self.out.unknown.is_none() {
            self.out.unknown = Some(name.to_owned());
        }
        self.out.params.ignored_fields += 1;
        Ok(())
    }

    fn finish(self, endpoint: Endpoint) -> Result<ChatOrText, Error> {
        if let Some(field) = self.tools.filter(|_| !self.tools_unused) {
            let message = format!("{field} are not supported, unless the choice of tool is none");
            return Err(Error::new(Reason::UnsupportedValue, message).with_field(field));
        }
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
        if self.has_stream_options && !out.form.stream {
            let message = "stream_options needs stream to be true";
            return Err(invalid("stream_options", message));
        }
        if out.form.stream
            && params
                .best_of
                .is_some_and(|made| made != params.n.unwrap_or(1))
        {
            let message = "best_of cannot be streamed: the best is known at the end";
            return Err(invalid("best_of", message));
        }
        if out.form.stream && params.prompt_logprobs.is_some() {
            let message = "prompt_logprobs cannot be streamed; echo with logprobs can";
            return Err(invalid("prompt_logprobs", message));
        }
        out.form.prompt_logprobs = params.prompt_logprobs.is_some();
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
    draft.has_stream_options = true;
    draft.out.form.include_usage = options.include_usage.unwrap_or(false);
    draft.out.form.continuous_usage = options.continuous_usage_stats.unwrap_or(false);
    Ok(())
}
