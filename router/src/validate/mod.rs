//! The one validator of requests, used by both fronts.
//!
//! A front turns what came over its wire into [`Params`] ([`parse`] does it for JSON bodies);
//! [`check`] turns those into a [`Spec`], in which every number is inside of its limit. Whatever
//! is wrong comes back as an error that names the field. What needs token ids (the length of a
//! text prompt) is checked by `service`, with [`Spec::fit`].

mod adjust;
mod bias;
mod check;
mod fields;
mod harmless;
mod messages;
mod numbers;
mod parse;
mod prompt;
mod slo;
mod spec;
#[cfg(test)]
mod tests;
mod tokenize;

pub use self::{
    check::{check, check_model},
    messages::chat_role,
    parse::{AnswerForm, ChatOrText, Endpoint, parse},
    slo::{SloHead, slo_headers},
    spec::{AnswerLength, Params, Prompt, Sampling, Spec, Truncate},
    tokenize::{Detokenize, Tokenize, parse_detokenize, parse_tokenize},
};
