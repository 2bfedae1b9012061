//! The model's chat template: compiled once, rendered per request within bounds.
//!
//! Set up as Hugging Face does (`trim_blocks`, `lstrip_blocks`, methods of Python's strings,
//! `raise_exception`, `tojson`), so that a template gives the same text here and there. A template
//! comes with the model and is not trusted: fuel bounds its time, a cap its output.

use std::io::{self, Write};

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

use crate::error::{Error, Reason};

/// Instructions that one rendering may take. A long chat takes some hundred per message.
const FUEL: u64 = 4_000_000;
/// Longest rendered prompt in bytes: twice the longest prompt text.
const RENDERED_BYTES_MAX: usize = 16 << 20;
/// Name of the only template in the environment.
const NAME: &str = "chat";

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Who of several with the same role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls of an assistant: a list of objects, arguments as objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
    /// The call that a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    knows_tool_calls: bool,
}

impl Template {
    /// Compiles `source`. The tokens are what the template may write as `bos_token`, `eos_token`.
    pub fn compile(source: String, bos_token: &str, eos_token: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let knows_tool_calls = source.contains("tool_calls");
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| format!("the chat template does not compile: {error:#}"))?;
        Ok(Self {
            environment,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            knows_tool_calls,
        })
    }

    /// Whether it writes the calls of an assistant anywhere; else they would be lost.
    pub fn knows_tool_calls(&self) -> bool {
        self.knows_tool_calls
    }

    /// The prompt's text for `messages`, with the head of the assistant's answer.
    pub fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let refused = |error: minijinja::Error| {
            let detail = error.detail().unwrap_or("no reason given").to_owned();
            let message = format!("the model's chat template refused the messages: {detail}");
            Error::new(Reason::InvalidValue, message).with_field("messages")
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut out = Capped(Vec::new());
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => (),
            documents => (),
        };
        template
            .render_captured_to(context, &mut out)
            .map_err(refused)?;
        String::from_utf8(out.0)
            .map_err(|_| Error::new(Reason::Internal, "the chat template wrote broken UTF-8"))
    }
}

/// What templates call when the roles are in the wrong order.
fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which Hugging Face puts in Jinja's place.
fn to_json(value: &Value) -> Result<String, minijinja::Error> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonSpacing);
    let failed = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    value
        .serialize(&mut serializer)
        .map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map_err(|error| failed(error.to_string()))
}

/// `, ` and `: ` between elements.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A buffer that refuses to grow past [`RENDERED_BYTES_MAX`].
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(io::Error::other(format!(
                "more than {RENDERED_BYTES_MAX} bytes of prompt"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(pairs: &[(&str, &str)]) -> Vec<Message> {
        let message = |(role, content): &(&str, &str)| Message {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
            ..Message::default()
        };
        pairs.iter().map(message).collect()
    }

    fn compile(source: &str) -> Template {
        Template::compile(source.to_owned(), "<s>", "</s>").unwrap()
    }

    #[test]
    fn chatml() {
        let template = compile(super::super::chatml::CHATML);
        let text = template
            .render(&messages(&[
                ("system", "be brief"),
                ("user", "{{ 7 * 7 }}<b>"),
            ]))
            .unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n{{ 7 * 7 }}<b><|im_end|>\n\
             <|im_start|>assistant\n"
        );
    }

    #[test]
    fn python_methods_blocks_and_json_as_hugging_face() {
        let template = compile(
            "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}{% endif %}\n\
             {{ m.content.strip().split('-')[-1] | tojson }}{{ {'a': [1, 2]} | tojson }}\n\
             {% endfor %}",
        );
        let text = template
            .render(&messages(&[("user", " x-\u{e9}\" ")]))
            .unwrap();
        assert_eq!(text, "<s>\"\u{e9}\\\"\"{\"a\": [1, 2]}\n");
    }

    #[test]
    fn absent_parts_of_a_message_are_undefined() {
        let template = compile(
            "{% for m in messages %}{{ m.role }}{% if m.name is defined %}({{ m.name }}){% endif %}\
             {% for c in m.tool_calls %} {{ c.function.name }} {{ c.function.arguments | tojson }}\
             {% endfor %}{% if m.tool_call_id %} to {{ m.tool_call_id }}{% endif %};{% endfor %}",
        );
        assert!(template.knows_tool_calls());
        let call = serde_json::json!([{"function": {"name": "f", "arguments": {"a": 1}}}]);
        let mut messages = messages(&[("user", "x"), ("assistant", ""), ("tool", "2")]);
        messages[0].name = Some("ann".to_owned());
        messages[1].tool_calls = Some(call);
        messages[2].tool_call_id = Some("c1".to_owned());
        let text = template.render(&messages).unwrap();
        assert_eq!(text, "user(ann);assistant f {\"a\": 1};tool to c1;");
    }

    #[test]
    fn a_refusal_of_the_template_is_the_clients_error() {
        let template = compile("{{ raise_exception('roles must alternate') }}");
        let error = template.render(&messages(&[("user", "x")])).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidValue);
        assert!(error.message.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn endless_and_huge_templates_are_cut() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}\
                       {% endfor %}{% endfor %}";
        let huge = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        let long = "x".repeat(1 << 14);
        for source in [endless, huge] {
            let result = compile(source).render(&messages(&[("user", &long)]));
            assert_eq!(result.unwrap_err().field.as_deref(), Some("messages"));
        }
    }

    #[test]
    fn a_broken_template_says_where() {
        let error = Template::compile("a\n{% if %}".to_owned(), "", "").unwrap_err();
        assert!(error.contains("line 2") || error.contains(":2"), "{error}");
    }
}
