//! Chat templates, which come with a model and are not trusted.

use dopd_router::tokens::{Message, Template};

/// Longest prompt that a template may write, in bytes.
const RENDERED_BYTES_MAX: usize = 16 << 20;

/// Compiles what comes before the first NUL as a template; renders what follows as messages.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let text = |part: Option<&[u8]>| String::from_utf8_lossy(part.unwrap_or_default()).into_owned();
    let Ok(template) = Template::compile(text(parts.next()), "<s>", "</s>") else {
        return;
    };
    let mut messages = Vec::new();
    while let Some(role) = parts.next() {
        messages.push(Message {
            role: text(Some(role)),
            content: text(parts.next()),
            ..Message::default()
        });
    }
    if let Ok(prompt) = template.render(&messages) {
        assert!(prompt.len() <= RENDERED_BYTES_MAX);
    }
}
