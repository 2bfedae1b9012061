//! `GenerateRequest` to the validator's terms.

use crate::{
    validate::{Params, Prompt},
    wire::v1::{GenerateRequest, generate_request},
};

/// Absent fields stay absent: defaults are the validator's.
pub(super) fn params(request: GenerateRequest) -> Params {
    let options = request.options.unwrap_or_default();
    let sampling = options.sampling.unwrap_or_default();
    let prompt = request.prompt.map(|prompt| match prompt {
        generate_request::Prompt::Text(text) => Prompt::Text(text),
        generate_request::Prompt::TokenIds(ids) => Prompt::Tokens(ids.ids),
    });
    Params {
        model: Some(request.model),
        prompt,
        max_tokens: options.max_tokens.map(i64::from),
        min_tokens: options.min_tokens.map(i64::from),
        n: options.n.map(i64::from),
        temperature: sampling.temperature.map(f64::from),
        top_p: sampling.top_p.map(f64::from),
        top_k: sampling.top_k.map(i64::from),
        min_p: sampling.min_p.map(f64::from),
        seed: sampling.seed,
        stop: options.stop,
        stop_token_ids: options.stop_token_ids.into_iter().map(i64::from).collect(),
        ignore_eos: options.ignore_eos,
        top_logprobs: options.top_logprobs.map(i64::from),
        priority: options.priority.map(i64::from),
        ..Params::default()
    }
}

/// Path of a field in `GenerateRequest`, by the validator's name of it.
pub(super) fn field_path(field: &str) -> String {
    match field {
        "temperature" | "top_p" | "top_k" | "min_p" | "seed" => {
            format!("options.sampling.{field}")
        }
        "max_tokens" | "min_tokens" | "n" | "stop" | "stop_token_ids" | "top_logprobs"
        | "priority" => format!("options.{field}"),
        _ => field.to_owned(),
    }
}
