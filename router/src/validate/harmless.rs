//! Known fields that this server does not implement: which values change nothing, so that they
//! may pass. Any other value is refused, never read past: a wrong answer is worse than an error.

use serde_json::{Map, Value, value::RawValue};

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
    /// A string of at most [`LABEL_CHARS_MAX`].
    Label,
    /// Strings by name, within bounds.
    Metadata,
    /// Descriptions of tools, within bounds; `parse` says when they may pass.
    Tools,
}

/// Longest name of a user, and the like.
const LABEL_CHARS_MAX: usize = 512;
/// Bounds of `metadata` as OpenAI has them: entries, and characters of a name and of its value.
const METADATA_MAX: usize = 16;
const METADATA_NAME_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
/// Most tools of a request, and bytes of all of them.
const TOOLS_MAX: usize = 128;
const TOOLS_BYTES_MAX: usize = 256 << 10;

use Harmless::{Any, Empty, False, Label, Metadata, Number, OneOf, TextFormat, Tools, True};

/// By name: OpenAI's fields, then vLLM's. `null` always passes.
const RULES: &[(&str, Harmless)] = &[
    // Accepted; they are about the caller, billing or caching, not about the answer.
    ("audio", Any),
    ("metadata", Metadata),
    ("moderation", Any),
    ("parallel_tool_calls", Any),
    ("prediction", Any),
    ("prompt_cache_key", Label),
    ("prompt_cache_options", Any),
    ("prompt_cache_retention", Any),
    ("safety_identifier", Label),
    ("service_tier", Any),
    ("store", Any),
    ("user", Label),
    ("web_search_options", Any),
    // They would change the answer.
    ("best_of", Number(1.0)),
    ("echo", False),
    ("function_call", OneOf(&["none", "auto"])),
    ("functions", Tools),
    ("modalities", OneOf(&["text"])),
    ("reasoning_effort", OneOf(&["none"])),
    ("response_format", TextFormat),
    ("suffix", Empty),
    ("tool_choice", OneOf(&["none", "auto"])),
    ("tools", Tools),
    ("verbosity", OneOf(&["medium"])),
    // vLLM's.
    ("add_generation_prompt", True),
    ("allowed_token_ids", Empty),
    ("bad_words", Empty),
    ("chat_template", Empty),
    ("chat_template_kwargs", Empty),
    ("continue_final_message", False),
    ("documents", Empty),
    ("guided_choice", Empty),
    ("guided_grammar", Empty),
    ("guided_json", Empty),
    ("guided_regex", Empty),
    ("kv_transfer_params", Empty),
    ("length_penalty", Number(1.0)),
    ("logits_processors", Empty),
    ("mm_processor_kwargs", Empty),
    ("return_token_strs", False),
    ("spaces_between_special_tokens", True),
    ("structured_outputs", Empty),
    ("use_beam_search", False),
];

/// Lets `field` pass if it changes nothing (true) or is not known at all (false); refuses it
/// otherwise.
pub(super) fn pass(field: &str, raw: &RawValue) -> Result<bool, Error> {
    let Some((_, rule)) = RULES.iter().find(|(name, _)| *name == field) else {
        return Ok(false);
    };
    match rule {
        Any => return Ok(true),
        Tools => {
            tools(field, raw)?;
            return Ok(true);
        }
        _ => {}
    }
    let value: Value = match fields::read(field, raw)? {
        None => return Ok(true),
        Some(value) => value,
    };
    if rule.holds(&value) {
        return Ok(true);
    }
    let (reason, message) = match rule {
        Label | Metadata => (
            Reason::InvalidValue,
            format!("{field} must be {}", rule.named()),
        ),
        _ => {
            let message = format!("{field} is not supported, only {} is", rule.named());
            (Reason::UnsupportedValue, message)
        }
    };
    Err(Error::new(reason, message).with_field(field.to_owned()))
}

/// Whether the value is `null`, `[]` or `{}`.
pub(super) fn is_empty(raw: &RawValue) -> bool {
    let inner = raw.get().strip_prefix(['[', '{']);
    raw.get() == "null" || inner.is_some_and(|rest| rest.trim_start().starts_with([']', '}']))
}

fn tools(field: &str, raw: &RawValue) -> Result<(), Error> {
    if raw.get() == "null" {
        return Ok(());
    }
    let bytes = raw.get().len();
    if bytes > TOOLS_BYTES_MAX {
        let message = format!("{field}: {bytes} bytes, at most {TOOLS_BYTES_MAX}");
        return Err(Error::new(Reason::InvalidValue, message).with_field(field.to_owned()));
    }
    let _: Vec<Map<String, Value>> = fields::read_list(field, raw, TOOLS_MAX)?;
    Ok(())
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
            (Label, Value::String(text)) => text.chars().count() <= LABEL_CHARS_MAX,
            (Metadata, Value::Object(map)) => {
                map.len() <= METADATA_MAX
                    && map.iter().all(|(name, value)| {
                        let text = value.as_str();
                        name.chars().count() <= METADATA_NAME_CHARS_MAX
                            && text.is_some_and(|text| {
                                text.chars().count() <= METADATA_VALUE_CHARS_MAX
                            })
                    })
            }
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
            Label => format!("a string of at most {LABEL_CHARS_MAX} characters"),
            Metadata => format!(
                "at most {METADATA_MAX} strings of at most {METADATA_VALUE_CHARS_MAX} characters, \
                 by names of at most {METADATA_NAME_CHARS_MAX}"
            ),
            Tools => "a list of objects".to_owned(),
        }
    }
}
