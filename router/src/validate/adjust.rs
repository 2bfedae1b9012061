//! Changes to the logits: penalties and biases.

use super::{
    check::{bad_id, invalid, range},
    spec::Params,
};
use crate::{config::records::LimitsConfig, error::Error, tokens::ServedModel, wire::worker};

/// Bound of presence and frequency penalty to both sides; as OpenAI's.
const PENALTY_MAX: f64 = 2.0;
/// Highest repetition penalty.
const REPETITION_MAX: f64 = 2.0;
/// Bound of a bias to both sides; as OpenAI's.
const BIAS_MAX: f64 = 100.0;

/// The adjustments that `params` ask for; `None` if they change nothing.
pub(super) fn check(
    params: &Params,
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<Option<worker::LogitAdjustments>, Error> {
    let (bias_tokens, bias_values) = bias(&params.logit_bias, limits, model)?;
    let adjustments = worker::LogitAdjustments {
        presence_penalty: penalty("presence_penalty", params.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", params.frequency_penalty)?,
        repetition_penalty: repetition(params.repetition_penalty.unwrap_or(1.0))?,
        bias_tokens,
        bias_values,
    };
    let is_neutral = adjustments.presence_penalty == 0.0
        && adjustments.frequency_penalty == 0.0
        && (adjustments.repetition_penalty - 1.0).abs() < f32::EPSILON
        && adjustments.bias_tokens.is_empty();
    Ok(Some(adjustments).filter(|_| !is_neutral))
}

fn penalty(field: &'static str, value: Option<f64>) -> Result<f32, Error> {
    bounded(field, value.unwrap_or(0.0), PENALTY_MAX)
}

/// A number from `-max` to `max`; NaN is outside of every range.
#[expect(
    clippy::cast_possible_truncation,
    reason = "within 100 of 0, rounded to the nearest f32"
)]
fn bounded(field: &'static str, value: f64, max: f64) -> Result<f32, Error> {
    if (-max..=max).contains(&value) {
        return Ok(value as f32);
    }
    Err(range(field, value, -max, max))
}

fn repetition(value: f64) -> Result<f32, Error> {
    let field = "repetition_penalty";
    if value > 0.0 && value <= REPETITION_MAX {
        // Not 0 in a worker's terms either, which would divide by it.
        return Ok(bounded(field, value, REPETITION_MAX)?.max(f32::MIN_POSITIVE));
    }
    let message = format!("{field} is {value}, it must be above 0 and at most {REPETITION_MAX}");
    Err(invalid(field, message))
}

/// Tokens and what is added to their logits, in the order of the tokens; those that add nothing
/// are left away.
fn bias(
    pairs: &[(i64, f64)],
    limits: &LimitsConfig,
    model: &ServedModel,
) -> Result<(Vec<u32>, Vec<f32>), Error> {
    let field = "logit_bias";
    if pairs.len() > limits.logit_bias_max {
        let message = format!("{} biases, at most {}", pairs.len(), limits.logit_bias_max);
        return Err(invalid(field, message));
    }
    let mut checked = Vec::with_capacity(pairs.len());
    for (token, value) in pairs {
        let known = u32::try_from(*token)
            .ok()
            .filter(|id| *id < model.vocab_size);
        let token = known.ok_or_else(|| bad_id(field, token, model))?;
        checked.push((token, bounded(field, *value, BIAS_MAX)?));
    }
    checked.sort_by_key(|(token, _)| *token);
    if let Some(twice) = checked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("token id {} comes twice", twice[0].0);
        return Err(invalid(field, message));
    }
    checked.retain(|(_, value)| *value != 0.0);
    Ok(checked.into_iter().unzip())
}
