//! `/openapi.json`: what this server accepts and answers.
//!
//! `openapi.json` beside this file is the source, to be read and edited. A string `"$limits.n"` in
//! it stands for a value of the running server, so that the page cannot differ from the settings
//! and from the error table. `tests/conformance` runs schemathesis on the page.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};

use super::pages::VERSION;
use crate::{config::records::LimitsConfig, error::Reason, tokens::ServedModel};

const SOURCE: &str = include_str!("openapi.json");

/// The page of a server of `model` with `limits`, without white space.
pub(super) fn page(model: &ServedModel, limits: &LimitsConfig) -> Bytes {
    let values = values(model, limits);
    // The source is a constant that a test reads; numbers and strings go in: neither can fail.
    let mut document: Value = serde_json::from_str(SOURCE).unwrap_or_default();
    fill(&mut document, &values);
    serde_json::to_vec(&document).unwrap_or_default().into()
}

/// What names in the source stand for, by the path of the name.
fn values(model: &ServedModel, limits: &LimitsConfig) -> Value {
    let rows = || Reason::ALL.iter().map(|reason| reason.row());
    let types: BTreeSet<&str> = rows().map(|row| row.kind).collect();
    let codes: Vec<&str> = rows().map(|row| row.code).collect();
    json!({
        "version": VERSION,
        "model": {
            "name": model.name,
            "vocab_size": model.vocab_size,
            "max_model_len": model.max_model_len,
        },
        "limits": limits,
        "error": { "types": types, "codes": codes },
    })
}

fn fill(value: &mut Value, values: &Value) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('$') {
                let path = format!("/{}", name.replace('.', "/"));
                *value = values.pointer(&path).cloned().unwrap_or_default();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|entry| fill(entry, values)),
        Value::Object(map) => map.values_mut().for_each(|entry| fill(entry, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::records::ModelConfig;

    fn names(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::String(text) => found.extend(text.strip_prefix('$').map(str::to_owned)),
            Value::Array(list) => list.iter().for_each(|entry| names(entry, found)),
            Value::Object(map) => map.values().for_each(|entry| names(entry, found)),
            _ => {}
        }
    }

    fn mock() -> ServedModel {
        ServedModel::mock(&ModelConfig::default()).unwrap()
    }

    #[test]
    fn every_name_of_the_source_has_a_value() {
        let mut found = BTreeSet::new();
        names(&serde_json::from_str(SOURCE).unwrap(), &mut found);
        let values = values(&mock(), &LimitsConfig::default());
        assert!(found.contains("limits.choices_max"));
        for name in found {
            let path = format!("/{}", name.replace('.', "/"));
            assert!(values.pointer(&path).is_some(), "{name}");
        }
    }

    #[test]
    fn bounds_are_those_of_the_settings() {
        let limits = LimitsConfig {
            choices_max: 3,
            top_logprobs_max: 5,
            ..LimitsConfig::default()
        };
        let page: Value = serde_json::from_slice(&page(&mock(), &limits)).unwrap();
        let bound = |path: &str| {
            page.pointer(&format!("/components/schemas/{path}"))
                .cloned()
        };
        assert_eq!(bound("Choices/maximum"), Some(3.into()));
        assert_eq!(bound("TopLogprobs/maximum"), Some(5.into()));
        assert_eq!(bound("ModelName/enum/0"), Some("mock".into()));
        assert_eq!(bound("TokenId/exclusiveMaximum"), Some(258.into()));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Array(list) => list.iter().for_each(|entry| references(entry, found)),
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|entry| references(entry, found));
                }
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(SOURCE).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let path = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(path).is_some(), "{reference}");
        }
    }
}
