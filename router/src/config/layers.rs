//! The layers: defaults, then every value that a file, the environment or a flag sets, checked one
//! by one.
//!
//! Values are held as JSON until the end, where `null` is "none": so a setting without a default is
//! still a known setting.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    ConfigError, Field, Origin, describe,
    keys::{self, KeyConfig},
    records::{Config, FIELDS},
    suggest,
};

/// Prefix of the variables of settings. Table and field are separated by two underscores.
const VARIABLE_PREFIX: &str = "DOPD_";

/// Tables that belong to Python, which reads and checks their variables itself.
pub(super) const FOREIGN_TABLES: [&str; 1] = ["worker"];

/// Values above the defaults, by path.
#[derive(Debug, Default)]
pub(super) struct Layers {
    values: BTreeMap<&'static str, (&'static Field, Value)>,
    origins: BTreeMap<&'static str, Origin>,
    /// Tables `[[key]]`.
    pub(super) keys: Vec<KeyConfig>,
}

impl Layers {
    /// Sets `field`, over any layer below.
    pub(super) fn set(
        &mut self,
        field: &'static Field,
        value: Value,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        if let Err(problem) = check(field, &value) {
            let value = describe::masked(field, &value).to_string();
            return Err(ConfigError::Value {
                path: field.path,
                value,
                problem,
                origin,
            });
        }
        self.values.insert(field.path, (field, value));
        self.origins.insert(field.path, origin);
        Ok(())
    }

    /// Adds every `DOPD_TABLE__FIELD` of the environment.
    pub(super) fn add_variables(
        &mut self,
        variables: &[(String, String)],
    ) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let path = name
                .strip_prefix(VARIABLE_PREFIX)
                .and_then(|rest| rest.split_once("__"));
            let Some((table, key)) = path else { continue };
            let (table, key) = (table.to_lowercase(), key.to_lowercase());
            if FOREIGN_TABLES.contains(&table.as_str()) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            let field = find(&table, &key, &origin)?;
            self.set_text(field, std::slice::from_ref(text), origin)?;
        }
        Ok(())
    }

    /// Adds the flags that were given.
    pub(super) fn add_flags(
        &mut self,
        flags: &[(&'static Field, Vec<String>)],
    ) -> Result<(), ConfigError> {
        for (field, values) in flags {
            let origin = Origin::Flag(field.flag.map_or(field.name, |(name, _)| name));
            if values.is_empty() {
                self.set(field, Value::Bool(true), origin)?;
            } else {
                self.set_text(field, values, origin)?;
            }
        }
        Ok(())
    }

    /// Sets `field` from text: a string where one fits, else what the text says (a number, a bool,
    /// a list).
    fn set_text(
        &mut self,
        field: &'static Field,
        texts: &[String],
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let strings = || texts.iter().map(|text| Value::String(text.clone()));
        let list = Value::Array(strings().collect());
        let Some(text) = texts.last() else {
            return Ok(());
        };
        // Listeners take addresses; this one name needs no resolver.
        let text = if field.name == "host" && text == "localhost" {
            "127.0.0.1"
        } else {
            text
        };
        let text = Value::from(text);
        let parsed = text
            .as_str()
            .and_then(|text| serde_json::from_str::<Value>(text).ok());
        let fits = [Some(&text), parsed.as_ref(), Some(&list)]
            .into_iter()
            .flatten()
            .find(|value| deserialize(field, value).is_ok());
        // Nothing fits: the error is about the number if it is one (a limit), else about the text.
        let value = fits
            .or(parsed.as_ref().filter(|value| value.is_number()))
            .unwrap_or(&text);
        self.set(field, value.clone(), origin)
    }

    /// The settings, and where each that is not a default came from.
    pub(super) fn finish(self) -> Result<(Config, BTreeMap<&'static str, Origin>), ConfigError> {
        let mut tables: Map<String, Value> = Map::new();
        for (field, value) in self.values.into_values() {
            let table = tables
                .entry(field.table)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Some(table) = table.as_object_mut() {
                table.insert(field.name.to_owned(), value);
            }
        }
        // Each value was checked when it was set, so this names a defect rather than a mistake of
        // the user.
        let mut config: Config = serde_json::from_value(Value::Object(tables))
            .map_err(|error| ConfigError::Relation(format!("settings do not fit: {error}")))?;
        config.key = self.keys;
        Ok((config, self.origins))
    }
}

/// The setting `table.key`, or an error that suggests the nearest one.
pub(super) fn find(table: &str, key: &str, origin: &Origin) -> Result<&'static Field, ConfigError> {
    if let Some(field) = FIELDS
        .iter()
        .find(|field| field.table == table && field.name == key)
    {
        return Ok(field);
    }
    let unknown = |what, name: &str, hint| {
        let (origin, name) = (origin.clone(), name.to_owned());
        Err(ConfigError::Unknown {
            origin,
            what,
            name,
            hint,
        })
    };
    let mut same_table = FIELDS
        .iter()
        .filter(|field| field.table == table)
        .peekable();
    if same_table.peek().is_none() {
        let tables = FIELDS.iter().map(|field| field.table);
        let tables = tables.chain(FOREIGN_TABLES).chain([keys::TABLE]);
        return unknown("table", table, suggest::hint(table, tables));
    }
    unknown("setting", &format!("{table}.{key}"), {
        // A key may be mistyped, or right but in the wrong table.
        let elsewhere = FIELDS.iter().find(|field| field.name == key);
        let near = same_table.map(|field| field.name);
        match suggest::hint(key, near) {
            hint if hint.is_empty() => elsewhere.map_or_else(String::new, |field| {
                format!(", did you mean {:?}", field.path)
            }),
            hint => hint,
        }
    })
}

/// Whether `value` has the type of `field` and is within its limits; else what is allowed.
fn check(field: &Field, value: &Value) -> Result<(), String> {
    within(field, value)?;
    deserialize(field, value)
}

/// Whether `value` is within the limits of `field`; else what is allowed.
pub(super) fn within(field: &Field, value: &Value) -> Result<(), String> {
    if let Some(range) = &field.within
        && !value.as_u64().is_some_and(|number| range.contains(&number))
    {
        let (least, most) = (range.start(), range.end());
        return Err(format!("allowed are whole numbers {least} to {most}"));
    }
    if let (Some(words), Some(word)) = (field.one_of, value.as_str())
        && !words.contains(&word)
    {
        return Err(format!("allowed are {}", words.join(", ")));
    }
    Ok(())
}

/// What `error` says was expected.
pub(super) fn expected(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.split_once("expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => message,
    }
}

/// Whether the record takes `value` for `field`; else what it expects.
fn deserialize(field: &Field, value: &Value) -> Result<(), String> {
    let mut table = Map::new();
    table.insert(field.name.to_owned(), value.clone());
    let mut config = Map::new();
    config.insert(field.table.to_owned(), Value::Object(table));
    match serde_json::from_value::<Config>(Value::Object(config)) {
        Ok(_) => Ok(()),
        Err(error) => Err(expected(&error)),
    }
}
