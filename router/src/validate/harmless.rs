//! Known fields that this server does not implement: which values change nothing, so that they
//! may pass. Any other value is refused, never read past: a wrong answer is worse than an error.

use serde_json::{Value, value::RawValue};

use super::fields;
use crate::error::{Error, Reason};

/// Values under which an unsupported field asks for nothing.
enum Harmless {
    /// Any: the field never changes an answer.
    Any,
    /// `null`, `""`, `[]`, `{}`.
    Empty,
    /// `false`.
    False,
    /// `true`.
    True,
    /// This number.
    Number(f64),
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// `{"type": "text"}`.
    TextFormat,
}

use Harmless::{Any, Empty, False, Number, OneOf, TextFormat, True};

/// By name: OpenAI's fields, then vLLM's. `null` always passes.
const RULES: &[(&str, Harmless)] = &[
    // Accepted; they are about the caller, billing or caching, not about the answer.
    ("audio", Any),
    ("metadata", Any),
    ("moderation", Any),
    ("parallel_tool_calls", Any),
    ("prediction", Any),
    ("prompt_cache_key", Any),
    ("prompt_cache_options", Any),
    ("prompt_cache_retention", Any),
    ("safety_identifier", Any),
    ("service_tier", Any),
    ("store", Any),
    ("user", Any),
    ("web_search_options", Any),
    // They would change the answer.
    ("best_of", Number(1.0)),
    ("echo", False),
    ("frequency_penalty", Number(0.0)),
    ("function_call", OneOf(&["none", "auto"])),
    ("functions", Empty),
    ("logit_bias", Empty),
    ("modalities", OneOf(&["text"])),
    ("presence_penalty", Number(0.0)),
    ("reasoning_effort", OneOf(&["none"])),
    ("response_format", TextFormat),
    ("suffix", Empty),
    ("tool_choice", OneOf(&["none", "auto"])),
    ("tools", Empty),
    ("verbosity", OneOf(&["medium"])),
    // vLLM's.
    ("add_generation_prompt", True),
    ("allowed_token_ids", Empty),
    ("bad_words", Empty),
    ("cache_salt", Empty),
    ("chat_template", Empty),
    ("chat_template_kwargs", Empty),
    ("continue_final_message", False),
    ("documents", Empty),
    ("guided_choice", Empty),
    ("guided_grammar", Empty),
    ("guided_json", Empty),
    ("guided_regex", Empty),
    ("include_stop_str_in_output", False),
    ("kv_transfer_params", Empty),
    ("length_penalty", Number(1.0)),
    ("logits_processors", Empty),
    ("mm_processor_kwargs", Empty),
    ("prompt_logprobs", Empty),
    ("repetition_penalty", Number(1.0)),
    ("return_token_ids", False),
    ("return_token_strs", False),
    ("skip_special_tokens", True),
    ("spaces_between_special_tokens", True),
    ("structured_outputs", Empty),
    ("truncate_prompt_tokens", Empty),
    ("use_beam_search", False),
];

/// Lets `field` pass if it changes nothing or is not known at all; refuses it otherwise.
pub(super) fn pass(field: &str, raw: &RawValue) -> Result<(), Error> {
    let Some((_, rule)) = RULES.iter().find(|(name, _)| *name == field) else {
        return Ok(());
    };
    if matches!(rule, Any) {
        return Ok(());
    }
    let value: Value = match fields::read(field, raw)? {
        None => return Ok(()),
        Some(value) => value,
    };
    if rule.holds(&value) {
        return Ok(());
    }
    let message = format!("{field} is not supported, only {} is", rule.named());
    Err(Error::new(Reason::UnsupportedValue, message).with_field(field.to_owned()))
}

impl Harmless {
    fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (Any, _) => true,
            (Empty, Value::String(text)) => text.is_empty(),
            (Empty, Value::Array(list)) => list.is_empty(),
            (Empty, Value::Object(map)) => map.is_empty(),
            (False, Value::Bool(flag)) => !flag,
            (True, Value::Bool(flag)) => *flag,
            (Number(neutral), Value::Number(number)) => number.as_f64() == Some(*neutral),
            (OneOf(allowed), Value::String(text)) => allowed.contains(&text.as_str()),
            // `modalities` is a list.
            (OneOf(allowed), Value::Array(list)) => list
                .iter()
                .all(|entry| entry.as_str().is_some_and(|text| allowed.contains(&text))),
            (TextFormat, Value::Object(map)) => map.get("type").is_some_and(|kind| kind == "text"),
            _ => false,
        }
    }

    fn named(&self) -> String {
        match self {
            Any => "any value".to_owned(),
            Empty => "an empty value".to_owned(),
            False => "false".to_owned(),
            True => "true".to_owned(),
            Number(neutral) => neutral.to_string(),
            OneOf(allowed) => allowed.join(" or "),
            TextFormat => "type text".to_owned(),
        }
    }
}
