//! From a checked request to token ids: template, tokenizer, length. Runs on whatever thread is
//! right for the size of its text, so it waits for nothing.

use super::prompt::PreparedPrompt;
use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    tokens::{Detokenizer, Framing, ServedModel},
    validate::{Prompt, Spec},
};

/// A request whose prompts are token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    pub(super) spec: Spec,
    /// At least one.
    pub(super) prompts: Vec<PreparedPrompt>,
}

impl Prepared {
    /// Tokenizes the prompts of `spec` and checks that they fit.
    pub fn new(spec: Spec, model: &ServedModel, limits: &LimitsConfig) -> Result<Self, Error> {
        let mut prompts = Vec::with_capacity(1 + spec.batch.len());
        let mut positions = 0;
        for prompt in spec.prompts() {
            let prompt = prepare(prompt, &spec, model)?;
            positions += prompt.tokens.len();
            prompts.push(prompt);
        }
        check_prompt_logprobs(&spec, positions, limits)?;
        Ok(Self { spec, prompts })
    }

    /// The request.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Most tokens of all prompts and answers.
    pub(super) fn tokens_max(&self) -> u64 {
        let choices = u64::from(self.spec.choices);
        let of = |prompt: &PreparedPrompt| {
            prompt.tokens.len() as u64 + choices * u64::from(prompt.max_tokens)
        };
        self.prompts.iter().map(of).sum()
    }

    /// Tokens of all prompts.
    pub(super) fn prompt_tokens(&self) -> u32 {
        let tokens = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let tokens: usize = tokens;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

/// Bytes of text that preparing `spec` has to work on.
pub(super) fn text_bytes(spec: &Spec) -> usize {
    spec.prompts().map(Prompt::text_bytes).sum()
}

/// Token ids of `prompt`, with the tokenizer's own tokens around it or not; by default a text has
/// them, and a chat those of its template.
pub fn tokenize(
    prompt: &Prompt,
    special_tokens: Option<bool>,
    model: &ServedModel,
) -> Result<Vec<u32>, Error> {
    match prompt {
        Prompt::Tokens(ids) => Ok(ids.clone()),
        Prompt::Text(text) => {
            refuse_hopeless(text, model)?;
            let framing = framing(special_tokens.unwrap_or(true));
            model.tokenizer.encode(text, framing)
        }
        Prompt::Messages(messages) => {
            let text = render(messages, model)?;
            refuse_hopeless(&text, model)?;
            let framing = framing(special_tokens.unwrap_or(false));
            model.tokenizer.encode(&text, framing)
        }
    }
}

fn render(messages: &[crate::tokens::Message], model: &ServedModel) -> Result<String, Error> {
    let missing = || Error::new(Reason::UnsupportedValue, "the model has no chat template");
    model
        .template
        .as_ref()
        .ok_or_else(missing)?
        .render(messages)
}

fn framing(special_tokens: bool) -> Framing {
    if special_tokens {
        Framing::Default
    } else {
        Framing::Bare
    }
}

fn prepare(prompt: &Prompt, spec: &Spec, model: &ServedModel) -> Result<PreparedPrompt, Error> {
    let named = |error: Error| match error.field {
        Some(_) => error,
        None => error.with_field(prompt.field()),
    };
    let most = spec.prompt_tokens_max(model.max_model_len);
    let mut tokens = match (prompt, most) {
        // What is cut away may be hopeless.
        (Prompt::Text(text), Some(_)) => {
            let framing = framing(spec.special_tokens.unwrap_or(true));
            model.tokenizer.encode(text, framing)
        }
        _ => tokenize(prompt, spec.special_tokens, model),
    }
    .map_err(named)?;
    if tokens.is_empty() {
        let error = Error::new(Reason::InvalidValue, "the prompt has no token");
        return Err(named(error));
    }
    let cut = most.and_then(|most| tokens.len().checked_sub(most));
    tokens.drain(..cut.unwrap_or(0));
    let text = match prompt {
        _ if !spec.echo => String::new(),
        Prompt::Text(text) if cut.unwrap_or(0) == 0 => text.clone(),
        _ => text_of(&tokens, model),
    };
    Ok(PreparedPrompt {
        max_tokens: spec.fit(tokens.len(), model.max_model_len)?,
        tokens: tokens.into(),
        text,
    })
}

/// Text of token ids, special ones included.
pub fn text_of(tokens: &[u32], model: &ServedModel) -> String {
    let (mut out, mut detokenizer) = (String::new(), Detokenizer::default());
    for token in tokens {
        let bytes = model.tokenizer.vocabulary().bytes(*token);
        detokenizer.push(bytes, &mut out);
    }
    detokenizer.finish(&mut out);
    out
}

/// Refuses a text that cannot fit even if every token were the longest there is: spares its
/// tokenization.
fn refuse_hopeless(text: &str, model: &ServedModel) -> Result<(), Error> {
    let longest = model.tokenizer.vocabulary().longest().max(1);
    let least = text.len() / longest;
    if least < model.max_model_len as usize {
        return Ok(());
    }
    let message = format!(
        "the prompt has at least {least} tokens; the model's context is {} tokens",
        model.max_model_len
    );
    Err(Error::new(Reason::ContextLengthExceeded, message))
}

fn check_prompt_logprobs(
    spec: &Spec,
    positions: usize,
    limits: &LimitsConfig,
) -> Result<(), Error> {
    let Some(top) = spec.prompt_logprobs else {
        return Ok(());
    };
    // Each choice of the answer tells them.
    let (each, choices) = (1 + top as usize, spec.choices as usize);
    let wanted = positions.saturating_mul(each).saturating_mul(choices);
    let max = limits.prompt_logprobs_max;
    if wanted <= max {
        return Ok(());
    }
    let message = format!(
        "{positions} prompt tokens with {top} alternatives each, in {choices} choices, are \
         {wanted} log probabilities, at most {max}"
    );
    Err(Error::new(Reason::InvalidValue, message).with_field("prompt_logprobs"))
}
