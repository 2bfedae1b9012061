//! ChatML, the template of the mock model.

/// Role and content of each message between `<|im_start|>` and `<|im_end|>`.
pub(super) const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
