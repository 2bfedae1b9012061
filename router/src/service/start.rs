//! From a prepared request to a running one: one submission per prompt, one sink per choice.

use std::{sync::Arc, time::Instant};

use dopd_core::request::Slo;

use super::{
    Answer, Arrival, Prepared, Running, Service, Wanted, ids,
    outbox::{Outbox, OutboxConfig},
    prompt::{PreparedPrompt, Prompt},
    record::{Asked, Record},
    sink::ChoiceSink,
    targets::{slo, targets},
    text::{AnswerText, TextForm},
};
use crate::{
    dispatch::Submission,
    error::Error,
    streams::{prefix::salt, sink::Sink},
    tokens::StopStrings,
    validate::{self, Spec},
    wire::worker,
};

impl Service {
    pub(super) fn run(
        &self,
        arrival: &Arrival,
        prepared: &Prepared,
        wanted: Wanted,
    ) -> Result<Answer, Error> {
        let spec = &prepared.spec;
        let deadline = self.deadline(arrival.at, spec.timeout);
        let prompt_tokens = prepared.prompt_tokens();
        if let Some(lease) = &arrival.lease {
            lease.charge(prepared.tokens_max(), arrival.at)?;
        }
        let with_logprobs = spec.prompt_logprobs.is_some();
        let prompts = prepared.prompts.iter();
        let told: Vec<Prompt> = prompts
            .map(|prompt| Prompt::new(prompt, with_logprobs))
            .collect();
        let limits = prepared.prompts.iter().map(|prompt| prompt.max_tokens);
        // Several prompts are one answer: it is as late as the longest of them.
        let longest = prepared.prompts.iter().map(|prompt| prompt.tokens.len());
        let judged = |tokens: usize| {
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            targets(spec.slo, arrival.caller.slo, &self.slo, tokens)
        };
        let asked = Asked {
            prompt_tokens,
            choices: u32::try_from(told.len()).map_or(u32::MAX, |prompts| prompts * spec.choices),
            choices_each: spec.choices,
            limit_tokens: limits.max().unwrap_or(0),
            targets: judged(longest.max().unwrap_or(0)),
            operation: operation(&spec.prompt),
        };
        let outbox = Outbox::new(
            OutboxConfig {
                choices: spec.choices as usize,
                wanted,
                drops_answer: spec.drops_answer(),
                bytes_max: self.limits.slow_reader_bytes_max,
                deadline,
            },
            told,
            Record::new(arrival, &self.metrics, asked),
        );
        let text = self.text(spec);
        let mut running = Vec::with_capacity(prepared.prompts.len());
        for (index, prompt) in prepared.prompts.iter().enumerate() {
            let slo = slo(judged(prompt.tokens.len()));
            let submission = submission(arrival, spec, prompt, (deadline, slo), || {
                let first = index * spec.choices as usize;
                let choices = first..first + spec.choices as usize;
                let sink = |choice| {
                    let sink = ChoiceSink::new(Arc::clone(&outbox), choice, text.clone());
                    Box::new(sink) as Box<dyn Sink>
                };
                choices.map(sink).collect()
            });
            let submitted = submission.and_then(|submission| self.backend.submit(submission));
            // What runs already is cancelled with `running`.
            running.push(submitted.inspect_err(|_| outbox.forget())?);
        }
        let running: Running = match running.pop() {
            Some(only) if running.is_empty() => only,
            last => {
                running.extend(last);
                Box::new(running)
            }
        };
        let (id, place) = (arrival.id.clone(), self.live.add(&outbox));
        Ok(Answer::new(id, prompt_tokens, outbox, running, place))
    }

    fn text(&self, spec: &Spec) -> AnswerText {
        let mut ends = spec.stop_token_ids.clone();
        if !spec.ignore_eos {
            ends.extend_from_slice(&self.model.eos_token_ids);
        }
        AnswerText::new(
            Arc::clone(&self.model.tokenizer),
            TextForm {
                stops: StopStrings::new(&spec.stop),
                ends: ends.into(),
                min_tokens: spec.min_tokens,
                include_stop: spec.include_stop,
                skip_special: spec.skip_special,
            },
        )
    }
}

/// `gen_ai.operation.name` of its span.
const fn operation(prompt: &validate::Prompt) -> &'static str {
    match prompt {
        validate::Prompt::Messages(_) => "chat",
        validate::Prompt::Text(_) | validate::Prompt::Tokens(_) => "text_completion",
    }
}

/// The request for one prompt. Without a seed of the client's each draws its own.
fn submission(
    arrival: &Arrival,
    spec: &Spec,
    prompt: &PreparedPrompt,
    (deadline, slo): (Instant, Slo),
    sinks: impl FnOnce() -> Vec<Box<dyn Sink>>,
) -> Result<Submission, Error> {
    let seed = match spec.sampling.seed {
        Some(seed) => seed,
        None => ids::seed()?,
    };
    Ok(Submission {
        request_id: arrival.id.clone(),
        prompt: Arc::clone(&prompt.tokens),
        sampling: sampling(spec, seed),
        limits: worker::Limits {
            max_tokens: prompt.max_tokens,
            min_tokens: spec.min_tokens,
            stop_token_ids: spec.stop_token_ids.clone(),
            ignore_eos: spec.ignore_eos,
        },
        adjustments: spec.adjustments.clone(),
        prompt_logprobs: spec.prompt_logprobs,
        traceparent: arrival.traceparent.clone(),
        tenant: Arc::clone(&arrival.caller.tenant),
        weight: arrival.caller.weight,
        priority: spec.priority,
        slo,
        prefix_salt: Some(salt(&arrival.caller.tenant, &spec.cache_salt)),
        deadline,
        sinks: sinks(),
    })
}

fn sampling(spec: &Spec, seed: u64) -> worker::Sampling {
    // The best choices are those with the highest log probabilities.
    let ranked = (spec.told < spec.choices).then_some(0);
    worker::Sampling {
        temperature: spec.sampling.temperature,
        top_p: spec.sampling.top_p,
        top_k: spec.sampling.top_k,
        min_p: spec.sampling.min_p,
        seed,
        choice: 0,
        top_logprobs: spec.top_logprobs.or(ranked),
    }
}
