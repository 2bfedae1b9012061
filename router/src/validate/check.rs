//! From [`Params`] to [`Spec`]: ranges, counts, ids.

use std::fmt::Display;

use super::{
    adjust,
    slo::slo,
    spec::{AnswerLength, Params, Prompt, Sampling, Spec, Truncate},
};
use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    tokens::ServedModel,
};

/// Below this a temperature is greedy: dividing by it would overflow.
const TEMPERATURE_MIN: f64 = 1e-5;
/// Highest temperature; as OpenAI's.
const TEMPERATURE_MAX: f64 = 2.0;
/// Longest part of a client's string that an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 64;

/// Checks everything that can be checked without tokenizing.
pub fn check(
    mut params: Params,
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<Spec, Error> {
    check_model(params.model.as_deref(), model)?;
    let prompt = params.prompt.take();
    let prompt = prompt.ok_or_else(|| invalid("prompt", "a prompt is required"))?;
    check_prompts(&prompt, &params.batch, limits, model)?;
    let max_tokens = answer_length(&params)?;
    let sampling = sampling(&params, model)?;
    let adjustments = adjust::check(&params, limits, model)?;
    let (told, choices) = choices(&params, limits)?;
    let (top_logprobs, prompt_logprobs) = logprobs(&params, limits)?;
    let min_tokens = params.min_tokens.unwrap_or(0);
    let slo = slo(&params, limits)?;
    Ok(Spec {
        prompt,
        batch: params.batch,
        truncate: truncate(params.truncate_prompt_tokens, model)?,
        special_tokens: params.add_special_tokens,
        sampling,
        max_tokens,
        min_tokens: count("min_tokens", min_tokens, 0, i64::from(u32::MAX))?,
        choices,
        told,
        echo: params.echo,
        adjustments,
        stop: check_stop(params.stop, limits)?,
        stop_token_ids: check_stop_ids(&params.stop_token_ids, limits, model)?,
        ignore_eos: params.ignore_eos,
        top_logprobs,
        prompt_logprobs,
        include_stop: params.include_stop,
        skip_special: params.skip_special_tokens.unwrap_or(true),
        priority: priority(params.priority.unwrap_or(0))?,
        cache_salt: cache_salt(params.cache_salt.take())?,
        slo,
        timeout: None,
    })
}

fn answer_length(params: &Params) -> Result<AnswerLength, Error> {
    let Some(wanted) = params.max_tokens else {
        let default = params.max_tokens_default;
        return Ok(default.map_or(AnswerLength::Rest, AnswerLength::AtMost));
    };
    let name = params.max_tokens_name.unwrap_or("max_tokens");
    // With its prompt in it, an answer of no token is one.
    let least = i64::from(!params.echo);
    count(name, wanted, least, i64::from(u32::MAX)).map(AnswerLength::Exactly)
}

fn sampling(params: &Params, model: &ServedModel) -> Result<Sampling, Error> {
    Ok(Sampling {
        temperature: temperature(params.temperature.unwrap_or(1.0))?,
        top_p: top_p(params.top_p.unwrap_or(1.0))?,
        top_k: top_k(params.top_k.unwrap_or(0), model.vocab_size)?,
        min_p: fraction("min_p", params.min_p.unwrap_or(0.0))?,
        seed: params.seed,
    })
}

/// Choices to tell and choices to make.
fn choices(params: &Params, limits: &LimitsConfig) -> Result<(u32, u32), Error> {
    let max = i64::from(limits.choices_max);
    let told = count("n", params.n.unwrap_or(1), 1, max)?;
    match params.best_of {
        Some(made) => Ok((told, count("best_of", made, i64::from(told), max)?)),
        None => Ok((told, told)),
    }
}

/// Alternatives of the answer's tokens and of the prompt's.
fn logprobs(params: &Params, limits: &LimitsConfig) -> Result<(Option<u32>, Option<u32>), Error> {
    let max = i64::from(limits.top_logprobs_max);
    let name = params.top_logprobs_name.unwrap_or("top_logprobs");
    let checked = |name, top: Option<i64>| top.map(|top| count(name, top, 0, max)).transpose();
    let top = checked(name, params.top_logprobs)?;
    let prompt = checked("prompt_logprobs", params.prompt_logprobs)?;
    // An answer that begins with its prompt has the log probabilities of both.
    Ok((top, prompt.or(top.filter(|_| params.echo))))
}

fn truncate(wanted: Option<i64>, model: &ServedModel) -> Result<Option<Truncate>, Error> {
    let name = "truncate_prompt_tokens";
    match wanted {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncate::Fit)),
        Some(wanted) => {
            let max = i64::from(model.max_model_len);
            Ok(Some(Truncate::To(count(name, wanted, 1, max)?)))
        }
    }
}

/// Bytes of a cache salt.
const CACHE_SALT_BYTES_MAX: usize = 256;

fn cache_salt(wanted: Option<String>) -> Result<String, Error> {
    let wanted = wanted.unwrap_or_default();
    let bytes = wanted.len();
    if bytes <= CACHE_SALT_BYTES_MAX {
        return Ok(wanted);
    }
    let message = format!("cache_salt has {bytes} bytes, at most {CACHE_SALT_BYTES_MAX}");
    Err(invalid("cache_salt", message))
}

fn priority(wanted: i64) -> Result<i32, Error> {
    i32::try_from(wanted).map_err(|_| range("priority", wanted, i32::MIN, i32::MAX))
}

/// Whether `name` is the model served here; no name means it.
pub fn check_model(name: Option<&str>, model: &ServedModel) -> Result<(), Error> {
    match name {
        None | Some("") => Ok(()),
        Some(name) if name == model.name => Ok(()),
        Some(name) => {
            let message = format!(
                "model {:?} is not served here; {:?} is",
                shorten(name),
                model.name
            );
            Err(Error::new(Reason::ModelNotFound, message).with_field("model"))
        }
    }
}

fn check_prompts(
    first: &Prompt,
    batch: &[Prompt],
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<(), Error> {
    let (prompts, max) = (1 + batch.len(), limits.prompts_max);
    if prompts > max {
        let message = format!("{prompts} prompts, at most {max}");
        return Err(invalid("prompt", message));
    }
    let mut bytes = 0;
    for prompt in std::iter::once(first).chain(batch) {
        check_prompt(prompt, limits, model)?;
        bytes += prompt.text_bytes();
    }
    let max = limits.prompt_bytes_max;
    if bytes <= max {
        return Ok(());
    }
    let message = format!("the prompt has {bytes} bytes of text, at most {max}");
    Err(Error::new(Reason::ContextLengthExceeded, message).with_field(first.field()))
}

fn check_prompt(prompt: &Prompt, limits: &LimitsConfig, model: &ServedModel) -> Result<(), Error> {
    match prompt {
        Prompt::Text(_) => Ok(()),
        Prompt::Tokens(ids) => {
            if ids.is_empty() {
                return Err(invalid("prompt", "the prompt has no token"));
            }
            match ids.iter().find(|id| **id >= model.vocab_size) {
                Some(id) => Err(bad_id("prompt", id, model)),
                None => Ok(()),
            }
        }
        Prompt::Messages(messages) => {
            let Some(template) = &model.template else {
                let message = "the model has no chat template; use /v1/completions";
                return Err(Error::new(Reason::UnsupportedValue, message).with_field("messages"));
            };
            let called = messages
                .iter()
                .position(|message| message.tool_calls.is_some());
            if let Some(index) = called.filter(|_| !template.knows_tool_calls()) {
                let message = "the model's chat template knows no tool calls";
                return Err(Error::new(Reason::UnsupportedValue, message)
                    .with_field(format!("messages[{index}].tool_calls")));
            }
            if messages.is_empty() {
                return Err(invalid("messages", "at least one message is required"));
            }
            let max = limits.messages_max;
            if messages.len() > max {
                let message = format!("{} messages, at most {max}", messages.len());
                return Err(invalid("messages", message));
            }
            Ok(())
        }
    }
}

/// An integer from `min` to `max`, which is at most `u32::MAX`.
pub(super) fn count(field: &'static str, value: i64, min: i64, max: i64) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|_| (min..=max).contains(&value))
        .ok_or_else(|| range(field, value, min, max))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "0 to 2, rounded to the nearest f32"
)]
fn temperature(value: f64) -> Result<f32, Error> {
    if !(0.0..=TEMPERATURE_MAX).contains(&value) {
        return Err(range("temperature", value, 0, TEMPERATURE_MAX));
    }
    Ok(if value < TEMPERATURE_MIN {
        0.0
    } else {
        value as f32
    })
}

fn top_p(value: f64) -> Result<f32, Error> {
    let rounded = fraction("top_p", value)?;
    if rounded > 0.0 {
        return Ok(rounded);
    }
    Err(invalid(
        "top_p",
        format!("top_p is {value}, it must be above 0"),
    ))
}

fn top_k(value: i64, vocab_size: u32) -> Result<u32, Error> {
    // vLLM writes "all tokens" as -1; more than there are means all as well.
    let wanted = if value == -1 { 0 } else { value };
    let wanted = count("top_k", wanted, 0, i64::from(u32::MAX))?;
    Ok(if wanted >= vocab_size { 0 } else { wanted })
}

/// A number from 0 to 1; -0 becomes 0. NaN is outside of every range.
#[expect(
    clippy::cast_possible_truncation,
    reason = "0 to 1, rounded to the nearest f32"
)]
fn fraction(field: &'static str, value: f64) -> Result<f32, Error> {
    if !(0.0..=1.0).contains(&value) {
        return Err(range(field, value, 0, 1));
    }
    Ok(value.abs() as f32)
}

fn check_stop(stop: Vec<String>, limits: &LimitsConfig) -> Result<Vec<String>, Error> {
    if stop.len() > limits.stop_strings_max {
        let (got, max) = (stop.len(), limits.stop_strings_max);
        return Err(invalid(
            "stop",
            format!("{got} stop strings, at most {max}"),
        ));
    }
    let max = limits.stop_bytes_max;
    for text in &stop {
        if text.is_empty() {
            return Err(invalid("stop", "a stop string is empty"));
        }
        if text.len() > max {
            let message = format!("a stop string of {} bytes, at most {max}", text.len());
            return Err(invalid("stop", message));
        }
    }
    Ok(stop)
}

fn check_stop_ids(
    ids: &[i64],
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<Vec<u32>, Error> {
    let max = limits.stop_token_ids_max;
    if ids.len() > max {
        let message = format!("{} stop tokens, at most {max}", ids.len());
        return Err(invalid("stop_token_ids", message));
    }
    let known = |id: &i64| {
        u32::try_from(*id)
            .ok()
            .filter(|id| *id < model.vocab_size)
            .ok_or_else(|| bad_id("stop_token_ids", id, model))
    };
    ids.iter().map(known).collect()
}

/// A client's string, fit for an error message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(ECHO_CHARS_MAX).collect()
}

pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> Error {
    Error::new(Reason::InvalidValue, message.into()).with_field(field)
}

pub(super) fn range(
    field: &'static str,
    value: impl Display,
    min: impl Display,
    max: impl Display,
) -> Error {
    invalid(
        field,
        format!("{field} is {value}, it must be from {min} to {max}"),
    )
}

pub(super) fn bad_id(field: &'static str, id: impl Display, model: &ServedModel) -> Error {
    let size = model.vocab_size;
    invalid(
        field,
        format!("token id {id} is not in the vocabulary of {size} tokens"),
    )
}
