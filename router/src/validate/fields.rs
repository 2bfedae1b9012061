//! Reads a JSON object field by field, so that an error can name the field.

use std::{borrow::Cow, collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::error::{Error, Reason};

/// Most fields of an object; a request has some forty.
const FIELDS_MAX: usize = 256;
/// Longest part of the parser's complaint that is shown: it may quote the client's text.
const COMPLAINT_CHARS_MAX: usize = 200;

/// Names and raw values of an object, in the order of the text. No name comes twice.
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
                let mut seen = HashSet::new();
                while let Some(Name(name)) = map.next_key()? {
                    if !seen.insert(name.clone()) {
                        let complaint = format_args!("field `{name}` comes twice").to_string();
                        return Err(serde::de::Error::custom(complaint));
                    }
                    if fields.len() == FIELDS_MAX {
                        let complaint = format!("more than {FIELDS_MAX} fields");
                        return Err(serde::de::Error::custom(complaint));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A key, borrowed unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads the object that `body` holds.
pub(super) fn read_object(body: &[u8]) -> Result<Fields<'_>, Error> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let message = format!("the body is not UTF-8 at byte {}", error.valid_up_to());
        Error::new(Reason::InvalidJson, message)
    })?;
    serde_json::from_str(text).map_err(|error| {
        let message = format!("the body is not a valid JSON object: {}", complaint(&error));
        Error::new(Reason::InvalidJson, message)
    })
}

/// Reads one value; `null` is `None`.
pub(super) fn read<'a, T: Deserialize<'a>>(
    field: &str,
    raw: &'a RawValue,
) -> Result<Option<T>, Error> {
    serde_json::from_str(raw.get()).map_err(|error| wrong(field, &error))
}

/// Reads a list of at most `max` elements.
pub(super) fn read_list<'a, T: Deserialize<'a>>(
    field: &str,
    raw: &'a RawValue,
    max: usize,
) -> Result<Vec<T>, Error> {
    let (list, total) = read_counted(field, raw, max)?;
    if total > max {
        let message = format!("{field}: {total} elements, at most {max}");
        return Err(Error::new(Reason::InvalidValue, message).with_field(field.to_owned()));
    }
    Ok(list)
}

/// Reads the first `max` elements of a list, and counts all.
pub(super) fn read_counted<'a, T: Deserialize<'a>>(
    field: &str,
    raw: &'a RawValue,
    max: usize,
) -> Result<(Vec<T>, usize), Error> {
    read_seed(field, raw, List(max, PhantomData))
}

/// Reads one value as `seed` says.
pub(super) fn read_seed<'a, S: DeserializeSeed<'a>>(
    field: &str,
    raw: &'a RawValue,
    seed: S,
) -> Result<S::Value, Error> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    seed.deserialize(&mut deserializer)
        .map_err(|error| wrong(field, &error))
}

fn wrong(field: &str, error: &serde_json::Error) -> Error {
    let complaint = complaint(error);
    // The position is one inside of the value: the field's name says more.
    let what = complaint.split(" at line ").next().unwrap_or(&complaint);
    let message = format!("{field}: {what}");
    Error::new(Reason::InvalidValue, message).with_field(field.to_owned())
}

fn complaint(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.chars().count() <= COMPLAINT_CHARS_MAX {
        return text;
    }
    let shown: String = text.chars().take(COMPLAINT_CHARS_MAX).collect();
    format!(
        "{shown}... at line {} column {}",
        error.line(),
        error.column()
    )
}

/// The start of a list, and how long all of it is: what is past the bound takes no memory.
struct List<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for List<T> {
    type Value = (Vec<T>, usize);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = (Vec<T>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        let mut total = 0;
        while total < self.0 {
            let Some(element) = seq.next_element()? else {
                return Ok((list, total));
            };
            list.push(element);
            total += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            total += 1;
        }
        Ok((list, total))
    }
}
