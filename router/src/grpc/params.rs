//! Messages of `inference.proto` to the validator's terms, and its names of fields back to theirs.

use std::borrow::Cow;

use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    tokens::Message,
    validate::{self, Params, Prompt},
    wire::v1::{
        AnswerOptions, ChatMessage, ChatRequest, GenerateRequest, TokenizeRequest,
        generate_request, tokenize_request,
    },
};

/// Of a prompt to continue. Absent fields stay absent: defaults are the validator's.
#[expect(
    clippy::unnecessary_wraps,
    reason = "as those beside it, one of which may fail"
)]
pub(super) fn of_generate(request: GenerateRequest, _: &LimitsConfig) -> Result<Params, Error> {
    let prompt = request.prompt.map(|prompt| match prompt {
        generate_request::Prompt::Text(text) => Prompt::Text(text),
        generate_request::Prompt::TokenIds(ids) => Prompt::Tokens(ids.ids),
    });
    let options = request.options.unwrap_or_default();
    Ok(of_options(request.model, prompt, options))
}

/// Of a chat to answer.
pub(super) fn of_chat(request: ChatRequest, limits: &LimitsConfig) -> Result<Params, Error> {
    let prompt = messages(request.messages, limits)?;
    let options = request.options.unwrap_or_default();
    Ok(of_options(request.model, Some(prompt), options))
}

/// Of a text or a chat to tokenize.
pub(super) fn of_tokenize(
    request: TokenizeRequest,
    limits: &LimitsConfig,
) -> Result<Params, Error> {
    let prompt = match request.input {
        Some(tokenize_request::Input::Text(text)) => Some(Prompt::Text(text)),
        Some(tokenize_request::Input::Chat(chat)) => Some(messages(chat.messages, limits)?),
        None => None,
    };
    Ok(Params {
        model: Some(request.model),
        prompt,
        ..Params::default()
    })
}

fn messages(messages: Vec<ChatMessage>, limits: &LimitsConfig) -> Result<Prompt, Error> {
    let (count, max) = (messages.len(), limits.messages_max);
    if count > max {
        let message = format!("{count} messages, at most {max}");
        return Err(Error::new(Reason::InvalidValue, message).with_field("messages"));
    }
    let numbered = messages.into_iter().enumerate();
    let read = numbered.map(|(index, message)| {
        Ok(Message {
            role: validate::chat_role(index, &message.role)?.to_owned(),
            content: message.content,
            ..Message::default()
        })
    });
    Ok(Prompt::Messages(read.collect::<Result<_, Error>>()?))
}

fn of_options(model: String, prompt: Option<Prompt>, options: AnswerOptions) -> Params {
    let sampling = options.sampling.unwrap_or_default();
    let bias = sampling.logit_bias.into_iter();
    Params {
        model: Some(model),
        prompt,
        presence_penalty: sampling.presence_penalty.map(f64::from),
        frequency_penalty: sampling.frequency_penalty.map(f64::from),
        repetition_penalty: sampling.repetition_penalty.map(f64::from),
        logit_bias: bias
            .map(|(token, value)| (token.into(), value.into()))
            .collect(),
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
        cache_salt: Some(options.cache_salt),
        slo_ttft_ms: options.slo_ttft_ms.map(i64::from),
        slo_tpot_ms: options.slo_tpot_ms.map(i64::from),
        ..Params::default()
    }
}

/// Path of a field in `GenerateRequest` and `ChatRequest`, by the validator's name of it.
pub(super) fn field_path(field: &str) -> String {
    match field {
        "temperature" | "top_p" | "top_k" | "min_p" | "seed" | "presence_penalty"
        | "frequency_penalty" | "repetition_penalty" | "logit_bias" => {
            format!("options.sampling.{field}")
        }
        "max_tokens" | "min_tokens" | "n" | "stop" | "stop_token_ids" | "top_logprobs"
        | "priority" | "slo_ttft_ms" | "slo_tpot_ms" | "cache_salt" => format!("options.{field}"),
        _ => field.to_owned(),
    }
}

/// `error` with the path of its field in `TokenizeRequest`.
pub(super) fn in_tokenize(mut error: Error) -> Error {
    error.field = error.field.map(|field| match &*field {
        "prompt" => Cow::Borrowed("input"),
        name if name.starts_with("messages") => Cow::Owned(format!("chat.{name}")),
        _ => field,
    });
    error
}
