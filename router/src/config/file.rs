//! The TOML file: keys with their lines, values into the layers, `[worker]` into flags.

use std::path::Path;

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError, Origin, at, keys,
    layers::{FOREIGN_TABLES, Layers, find},
    records::FIELDS,
    suggest,
};

/// Longest settings file: far above any written by hand, far below what would hurt.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One value of a table that belongs to Python, and where its key stands.
#[derive(Clone, Debug)]
pub struct ForeignValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// File, line and column.
    pub origin: Origin,
}

/// Reads `path` into `layers`, notes what is wrong in `problems`; returns the table `[worker]`.
pub(super) fn read(
    path: &Path,
    layers: &mut Layers,
    problems: &mut Vec<ConfigError>,
) -> Vec<ForeignValue> {
    match text(path) {
        Ok(text) => parse(path, &text, layers, problems),
        Err(problem) => {
            problems.push(problem);
            Vec::new()
        }
    }
}

fn text(path: &Path) -> Result<String, ConfigError> {
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
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}

fn parse(
    path: &Path,
    text: &str,
    layers: &mut Layers,
    problems: &mut Vec<ConfigError>,
) -> Vec<ForeignValue> {
    let mut foreign = Vec::new();
    let document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            problems.push(ConfigError::Syntax {
                origin: at(path, text, error.span().map_or(0, |span| span.start)),
                message: error.message().to_owned(),
            });
            return foreign;
        }
    };
    for (key, value) in document {
        let origin = at(path, text, key.span().start);
        let name = key.into_inner();
        if name == keys::TABLE {
            read_keys(path, text, value, &origin, layers, problems);
            continue;
        }
        let DeValue::Table(table) = value.into_inner() else {
            problems.push(not_a_table(&name, origin));
            continue;
        };
        let is_foreign = FOREIGN_TABLES.contains(&&*name);
        if !is_foreign && !FIELDS.iter().any(|field| field.table == name) {
            problems.extend(find(&name, "", &origin).err());
            continue;
        }
        for (key, value) in table {
            let origin = at(path, text, key.span().start);
            let key = key.into_inner();
            let outcome = json(value, &origin).and_then(|value| {
                if is_foreign {
                    let key = key.into_owned();
                    foreign.push(ForeignValue { key, value, origin });
                    return Ok(());
                }
                layers.set(find(&name, &key, &origin)?, value, origin)
            });
            problems.extend(outcome.err());
        }
    }
    foreign
}

/// The tables `[[key]]`.
fn read_keys(
    path: &Path,
    text: &str,
    value: Spanned<DeValue<'_>>,
    origin: &Origin,
    layers: &mut Layers,
    problems: &mut Vec<ConfigError>,
) {
    let not_tables = || ConfigError::Syntax {
        origin: origin.clone(),
        message: "keys are tables of their own, each begins with [[key]]".to_owned(),
    };
    let DeValue::Array(tables) = value.into_inner() else {
        problems.push(not_tables());
        return;
    };
    for table in tables {
        let begins = at(path, text, table.span().start);
        let DeValue::Table(table) = table.into_inner() else {
            problems.push(not_tables());
            continue;
        };
        let entries = table.into_iter().map(|(key, value)| {
            let origin = at(path, text, key.span().start);
            let value = json(value, &origin)?;
            Ok((key.into_inner().into_owned(), value, origin))
        });
        let key = entries
            .collect::<Result<Vec<_>, _>>()
            .and_then(|entries| keys::read(entries, &begins))
            .and_then(|key| keys::add(&mut layers.keys, key, begins));
        problems.extend(key.err());
    }
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
pub(super) fn worker_flag(setting: &ForeignValue) -> Result<Option<String>, ConfigError> {
    let ForeignValue { key, value, origin } = setting;
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
