//! The TOML file: keys with their lines, values into the layers, `[worker]` into flags.

use std::path::Path;

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError, Origin, at,
    layers::{FOREIGN_TABLES, Layers, find},
    records::FIELDS,
    suggest,
};

/// Longest settings file: far above any written by hand, far below what would hurt.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads `path` into `layers`; returns the table `[worker]` as flags.
pub(super) fn read(path: &Path, layers: &mut Layers) -> Result<Vec<String>, ConfigError> {
    let unreadable = |cause: String| ConfigError::Unreadable {
        path: path.display().to_string(),
        cause,
    };
    let bytes = std::fs::metadata(path)
        .map_err(|error| unreadable(error.to_string()))?
        .len();
    if bytes > FILE_BYTES_MAX {
        return Err(unreadable(format!(
            "it has {bytes} bytes, the limit is {FILE_BYTES_MAX}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    parse(path, &text, layers)
}

fn parse(path: &Path, text: &str, layers: &mut Layers) -> Result<Vec<String>, ConfigError> {
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: at(path, text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut worker_args = Vec::new();
    for (key, value) in document.into_inner() {
        let origin = at(path, text, key.span().start);
        let name = key.into_inner();
        let DeValue::Table(table) = value.into_inner() else {
            return Err(not_a_table(&name, origin));
        };
        for (key, value) in table {
            let origin = at(path, text, key.span().start);
            let key = key.into_inner();
            if FOREIGN_TABLES.contains(&&*name) {
                worker_args.extend(worker_flag(&key, &json(value, &origin)?, &origin)?);
                continue;
            }
            let field = find(&name, &key, &origin)?;
            layers.set(field, json(value, &origin)?, origin)?;
        }
        if !FOREIGN_TABLES.contains(&&*name) && !FIELDS.iter().any(|field| field.table == name) {
            // An empty unknown table: nothing in it was looked up above.
            find(&name, "", &origin)?;
        }
    }
    Ok(worker_args)
}

/// A key outside of any table: the table it probably belongs to is in the hint.
fn not_a_table(name: &str, origin: Origin) -> ConfigError {
    let same = FIELDS.iter().find(|field| field.name == name);
    let hint = match same {
        Some(field) => format!(", did you mean {:?} in table [{}]", field.name, field.table),
        None => suggest::hint(name, FIELDS.iter().map(|field| field.name)),
    };
    ConfigError::Unknown {
        origin,
        what: "setting outside of a table",
        name: name.to_owned(),
        hint,
    }
}

/// A TOML value as JSON.
fn json(value: Spanned<DeValue<'_>>, origin: &Origin) -> Result<Value, ConfigError> {
    use serde::{Deserialize as _, de::IntoDeserializer as _};
    Value::deserialize(value.into_deserializer()).map_err(|error| ConfigError::Syntax {
        origin: origin.clone(),
        message: error.message().to_owned(),
    })
}

/// A setting of `[worker]` as the worker's flag: `max_batch_tokens = 8` is `--max-batch-tokens=8`.
fn worker_flag(key: &str, value: &Value, origin: &Origin) -> Result<Option<String>, ConfigError> {
    let flag = format!("--{}", key.replace('_', "-"));
    match value {
        Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(flag)),
        Value::Number(number) => Ok(Some(format!("{flag}={number}"))),
        Value::String(text) => Ok(Some(format!("{flag}={text}"))),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(ConfigError::Syntax {
            origin: origin.clone(),
            message: format!("worker.{key} is neither a text, a number nor a bool"),
        }),
    }
}
