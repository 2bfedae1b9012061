//! Bodies of all routes: parsed, checked, prepared. What passes is inside of its limits.

use dopd_router::{
    config::records::LimitsConfig,
    error::Error,
    service::Prepared,
    validate::{Endpoint, check, parse, parse_detokenize, parse_tokenize},
};

/// Longest message of an error, in bytes: it may quote the client, but not all of it.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// Reads `data` as a body of each route.
pub(crate) fn run(data: &[u8]) {
    let (model, limits) = (crate::model(), LimitsConfig::default());
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let read = parse(endpoint, data, &limits, &model)
            .and_then(|asked| check(asked.params, &limits, &model))
            .and_then(|spec| Prepared::new(spec, &model, &limits));
        match read {
            Ok(prepared) => {
                let spec = prepared.spec();
                assert!((1..=limits.choices_max).contains(&spec.choices));
                assert!((1..=spec.choices).contains(&spec.told));
                assert!(spec.prompts().count() <= limits.prompts_max);
                assert!(spec.stop.iter().all(|stop| !stop.is_empty()));
                assert!(spec.top_logprobs.unwrap_or(0) <= limits.top_logprobs_max);
            }
            Err(error) => check_error(&error),
        }
    }
    let tokenize = parse_tokenize(data, &limits);
    if let Err(error) = tokenize.and_then(|asked| check(asked.params, &limits, &model)) {
        check_error(&error);
    }
    if let Err(error) = parse_detokenize(data, &model) {
        check_error(&error);
    }
}

fn check_error(error: &Error) {
    assert!((400..500).contains(&error.reason.row().http), "{error}");
    assert!(error.message.len() <= MESSAGE_BYTES_MAX, "{error}");
}
