//! `messages` of a chat: roles, and content as a string or as a list of text parts.

use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::{Map, Value, value::RawValue};
use std::fmt;

use super::{fields, harmless};
use crate::{
    error::{Error, Reason},
    tokens::Message,
};

/// Most text parts of one message.
const PARTS_MAX: usize = 1_024;
/// Most tool calls of one message.
const TOOL_CALLS_MAX: usize = 128;

/// A message as it stands in the body; other fields (`refusal`) change nothing.
#[derive(Deserialize)]
struct RawMessage<'a> {
    role: String,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
}

/// A part of a message's content.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    text: Option<String>,
}

/// Reads the list; at most `max` messages.
pub(super) fn read(raw: &RawValue, max: usize) -> Result<Vec<Message>, Error> {
    let list: Vec<&RawValue> = fields::read_list("messages", raw, max)?;
    let numbered = list.into_iter().enumerate();
    numbered.map(|(index, raw)| message(index, raw)).collect()
}

/// The template's name of `role`, of message `index`; or why it is refused.
pub fn chat_role(index: usize, role: &str) -> Result<&str, Error> {
    let (reason, what) = match role {
        "system" | "user" | "assistant" | "tool" => return Ok(role),
        // OpenAI's newer name for it; models and their templates know the old one.
        "developer" => return Ok("system"),
        "function" => (
            Reason::UnsupportedValue,
            "functions are not supported, tools are",
        ),
        _ => {
            let what = "the role must be system, developer, user, assistant or tool";
            (Reason::InvalidValue, what)
        }
    };
    Err(Error::new(reason, what).with_field(format!("messages[{index}].role")))
}

fn message(index: usize, raw: &RawValue) -> Result<Message, Error> {
    let here = || format!("messages[{index}]");
    let message: Option<RawMessage<'_>> = fields::read(&here(), raw)?;
    let refuse = |reason: Reason, part: &str, what: String| {
        Err(Error::new(reason, what).with_field(format!("{}{part}", here())))
    };
    let Some(message) = message else {
        let what = "a message is null".to_owned();
        return refuse(Reason::InvalidValue, "", what);
    };
    let role = chat_role(index, &message.role)?;
    if message
        .function_call
        .is_some_and(|raw| !harmless::is_empty(raw))
    {
        let what = "function calls are not supported, tool calls are".to_owned();
        return refuse(Reason::UnsupportedValue, ".function_call", what);
    }
    let calls = message.tool_calls.filter(|raw| !harmless::is_empty(raw));
    if calls.is_some() && role != "assistant" {
        let what = format!("a message of role {role} has no tool calls");
        return refuse(Reason::InvalidValue, ".tool_calls", what);
    }
    let tool_calls = calls.map(|raw| tool_calls(index, raw)).transpose()?;
    let content = match message.content.filter(|raw| raw.get() != "null") {
        Some(raw) => content(index, raw)?,
        None if role == "assistant" => String::new(),
        None => {
            let what = "content is required".to_owned();
            return refuse(Reason::InvalidValue, ".content", what);
        }
    };
    Ok(Message {
        role: role.to_owned(),
        content,
        name: message.name,
        tool_calls,
        tool_call_id: message.tool_call_id,
    })
}

/// Calls as templates want them: arguments as the object that their text describes.
fn tool_calls(index: usize, raw: &RawValue) -> Result<Value, Error> {
    let field = format!("messages[{index}].tool_calls");
    let mut calls: Vec<Map<String, Value>> = fields::read_list(&field, raw, TOOL_CALLS_MAX)?;
    for call in &mut calls {
        let arguments = call
            .get_mut("function")
            .and_then(|f| f.get_mut("arguments"));
        if let Some(arguments) = arguments
            && let Some(Ok(object)) = arguments.as_str().map(serde_json::from_str::<Value>)
            && object.is_object()
        {
            *arguments = object;
        }
    }
    Ok(calls.into_iter().map(Value::Object).collect())
}

fn content(index: usize, raw: &RawValue) -> Result<String, Error> {
    let field = format!("messages[{index}].content");
    if raw.get().starts_with('[') {
        let parts: Vec<Part> = fields::read_list(&field, raw, PARTS_MAX)?;
        let mut texts = Vec::with_capacity(parts.len());
        for (number, part) in parts.into_iter().enumerate() {
            match (part.kind.as_deref(), part.text) {
                (Some("text"), Some(text)) => texts.push(text),
                (kind, _) => {
                    let what = match kind {
                        Some("text") => "a text part has no text",
                        _ => "only parts of type text are supported",
                    };
                    let error = Error::new(Reason::UnsupportedValue, what);
                    return Err(error.with_field(format!("{field}[{number}]")));
                }
            }
        }
        // As vLLM joins them for templates that want a string.
        return Ok(texts.join("\n"));
    }
    let text: Option<Text> = fields::read(&field, raw)?;
    Ok(text.map(|text| text.0).unwrap_or_default())
}

/// A string, with an error message that tells of lists too.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;
        impl Visitor<'_> for Wanted {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of text parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Text, E> {
                Ok(Text(text))
            }
        }
        deserializer.deserialize_string(Wanted)
    }
}
