//! From [`Params`] to [`Spec`]: ranges, counts, ids.

use std::fmt::Display;

use super::spec::{AnswerLength, Params, Prompt, Sampling, Spec};
use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    tokens::ServedModel,
};

/// Below this a temperature is greedy: dividing by it would overflow.
const TEMPERATURE_MIN: f64 = 1e-5;
/// Highest temperature; as OpenAI's.
const TEMPERATURE_MAX: f64 = 2.0;
/// Bound of `priority` to both sides.
const PRIORITY_MAX: i64 = 100;
/// Longest part of a client's string that an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 64;

/// Checks everything that can be checked without tokenizing.
pub fn check(params: Params, limits: &LimitsConfig, model: &ServedModel) -> Result<Spec, Error> {
    check_model(params.model.as_deref(), model)?;
    let prompt = check_prompt(params.prompt, limits, model)?;
    check_special_tokens(params.add_special_tokens, &prompt)?;
    let max_tokens = match params.max_tokens {
        Some(wanted) => {
            let name = params.max_tokens_name.unwrap_or("max_tokens");
            AnswerLength::Exactly(count(name, wanted, 1, i64::from(u32::MAX))?)
        }
        None => params
            .max_tokens_default
            .map_or(AnswerLength::Rest, AnswerLength::AtMost),
    };
    let sampling = Sampling {
        temperature: temperature(params.temperature.unwrap_or(1.0))?,
        top_p: top_p(params.top_p.unwrap_or(1.0))?,
        top_k: top_k(params.top_k.unwrap_or(0), model.vocab_size)?,
        min_p: fraction("min_p", params.min_p.unwrap_or(0.0))?,
        seed: params.seed,
    };
    let choices_max = i64::from(limits.choices_max);
    let top_max = i64::from(limits.top_logprobs_max);
    let top_name = params.top_logprobs_name.unwrap_or("top_logprobs");
    let priority = params.priority.unwrap_or(0);
    Ok(Spec {
        prompt,
        sampling,
        max_tokens,
        min_tokens: count(
            "min_tokens",
            params.min_tokens.unwrap_or(0),
            0,
            i64::from(u32::MAX),
        )?,
        choices: count("n", params.n.unwrap_or(1), 1, choices_max)?,
        stop: check_stop(params.stop, limits)?,
        stop_token_ids: check_stop_ids(&params.stop_token_ids, limits, model)?,
        ignore_eos: params.ignore_eos,
        top_logprobs: params
            .top_logprobs
            .map(|top| count(top_name, top, 0, top_max))
            .transpose()?,
        priority: i32::try_from(priority)
            .ok()
            .filter(|priority| i64::from(*priority).abs() <= PRIORITY_MAX)
            .ok_or_else(|| range("priority", priority, -PRIORITY_MAX, PRIORITY_MAX))?,
        timeout: None,
    })
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

fn check_prompt(
    prompt: Option<Prompt>,
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<Prompt, Error> {
    let prompt = prompt.ok_or_else(|| invalid("prompt", "a prompt is required"))?;
    match &prompt {
        Prompt::Text(text) => {
            too_long("prompt", text.len(), limits)?;
            if text.trim().is_empty() {
                return Err(invalid("prompt", "the prompt is empty"));
            }
        }
        Prompt::Tokens(ids) => {
            if ids.is_empty() {
                return Err(invalid("prompt", "the prompt has no token"));
            }
            if let Some(id) = ids.iter().find(|id| **id >= model.vocab_size) {
                return Err(bad_id("prompt", id, model));
            }
        }
        Prompt::Messages(messages) => {
            if model.template.is_none() {
                let message = "the model has no chat template; use /v1/completions";
                return Err(Error::new(Reason::UnsupportedValue, message).with_field("messages"));
            }
            let max = limits.messages_max;
            if messages.len() > max {
                let message = format!("{} messages, at most {max}", messages.len());
                return Err(invalid("messages", message));
            }
            too_long(
                "messages",
                messages.iter().map(|message| message.content.len()).sum(),
                limits,
            )?;
            if messages.iter().all(|m| m.content.trim().is_empty()) {
                return Err(invalid("messages", "the messages have no text"));
            }
        }
    }
    Ok(prompt)
}

/// A chat template writes special tokens itself; a text gets those of the tokenizer.
fn check_special_tokens(wanted: Option<bool>, prompt: &Prompt) -> Result<(), Error> {
    let default = match prompt {
        Prompt::Text(_) => true,
        Prompt::Messages(_) => false,
        Prompt::Tokens(_) => return Ok(()),
    };
    if wanted.is_none_or(|wanted| wanted == default) {
        return Ok(());
    }
    let message = format!("add_special_tokens is not supported here, only {default} is");
    Err(Error::new(Reason::UnsupportedValue, message).with_field("add_special_tokens"))
}

fn too_long(field: &'static str, bytes: usize, limits: &LimitsConfig) -> Result<(), Error> {
    let max = limits.prompt_bytes_max;
    if bytes <= max {
        return Ok(());
    }
    let message = format!("the prompt has {bytes} bytes of text, at most {max}");
    Err(Error::new(Reason::ContextLengthExceeded, message).with_field(field))
}

/// An integer from `min` to `max`, which is at most `u32::MAX`.
fn count(field: &'static str, value: i64, min: i64, max: i64) -> Result<u32, Error> {
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
fn shorten(text: &str) -> String {
    text.chars().take(ECHO_CHARS_MAX).collect()
}

pub(super) fn invalid(field: &'static str, message: impl Into<String>) -> Error {
    Error::new(Reason::InvalidValue, message.into()).with_field(field)
}

fn range(field: &'static str, value: impl Display, min: impl Display, max: impl Display) -> Error {
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
