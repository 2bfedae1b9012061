//! What settings look like from outside: every setting with value and origin, and a JSON Schema of
//! the file. Called by `launch`; made from the declarations, so that a new setting is in both.

use serde_json::{Map, Value, json};

use super::{Config, FIELDS, Field, KeyConfig, Origin, Settings, keys};

/// Shown in the place of a secret.
pub const MASK: &str = "********";

/// One setting of a run.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its declaration.
    pub field: &'static Field,
    /// Its value, masked if it is a secret.
    pub value: Value,
    /// Where the value came from.
    pub origin: &'a Origin,
}

/// Every setting, in the order of the records.
pub fn entries(settings: &Settings) -> Vec<Entry<'_>> {
    let values = serde_json::to_value(&settings.config).unwrap_or_default();
    let entry = |field: &'static Field| Entry {
        field,
        value: masked(field, &values[field.table][field.name]),
        origin: settings.origin(field.path),
    };
    FIELDS.iter().map(entry).collect()
}

/// The value as it may be shown.
pub fn masked(field: &Field, value: &Value) -> Value {
    let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if field.is_secret && !is_empty {
        Value::from(MASK)
    } else {
        value.clone()
    }
}

/// JSON Schema (draft 2020-12) of the settings file. `worker` is the schema of Python's table.
pub fn schema(worker: Value) -> Value {
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut tables: Map<String, Value> = Map::new();
    for field in FIELDS {
        let table = tables.entry(field.table).or_insert_with(
            || json!({"type": "object", "additionalProperties": false, "properties": {}}),
        );
        table["properties"][field.name] = property(field, &defaults[field.table][field.name]);
    }
    tables.insert("worker".to_owned(), worker);
    tables.insert(keys::TABLE.to_owned(), key_schema());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Settings of dopd {}", env!("CARGO_PKG_VERSION")),
        "type": "object",
        "additionalProperties": false,
        "properties": tables,
    })
}

/// Of the tables `[[key]]`.
fn key_schema() -> Value {
    let defaults = serde_json::to_value(KeyConfig::default()).unwrap_or_default();
    let fields = keys::FIELDS.iter();
    let properties: Map<String, Value> = fields
        .map(|field| {
            (
                field.name.to_owned(),
                property(field, &defaults[field.name]),
            )
        })
        .collect();
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name", "sha256"],
            "properties": properties,
        },
    })
}

/// Name and element of a type in JSON Schema's words; `None` for a type that is not known here.
pub(super) fn json_type(rust_type: &str) -> Option<Value> {
    let rust_type: String = rust_type.split_whitespace().collect();
    let inner = |generic: &str| {
        rust_type
            .strip_prefix(generic)
            .and_then(|rest| rest.strip_prefix('<'))
            .and_then(|rest| rest.strip_suffix('>'))
    };
    if let Some(inner) = inner("Option") {
        return json_type(inner);
    }
    if let Some(inner) = inner("Vec") {
        return Some(json!({"type": "array", "items": json_type(inner)?}));
    }
    let name = match &*rust_type {
        "bool" => "boolean",
        "u8" | "u16" | "u32" | "u64" | "usize" => "integer",
        "f32" | "f64" => "number",
        "String" | "PathBuf" | "IpAddr" => "string",
        _ => return None,
    };
    Some(json!({"type": name}))
}

fn property(field: &Field, default: &Value) -> Value {
    // A type that is not known allows everything; a test names it.
    let mut property = json_type(field.rust_type).unwrap_or_else(|| json!({}));
    property["description"] = Value::from(one_line(field.help));
    if !default.is_null() {
        property["default"] = default.clone();
    }
    if let Some(range) = &field.within {
        property["minimum"] = Value::from(*range.start());
        property["maximum"] = Value::from(*range.end());
    }
    if let Some(words) = field.one_of {
        property["enum"] = json!(words);
    }
    // Not words of JSON Schema, which ignores what begins so.
    property["x-variable"] = Value::from(field.variable());
    if let Some((flag, _)) = field.flag {
        property["x-flag"] = Value::from(format!("--{flag}"));
    }
    property
}

/// Help text on one line.
pub fn one_line(help: &str) -> String {
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}
