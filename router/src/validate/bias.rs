//! `logit_bias`: an object from token ids, as strings, to numbers.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{check::invalid, fields, numbers::Number};
use crate::error::Error;

const FIELD: &str = "logit_bias";

/// Reads at most `max` pairs; none for `null`.
pub(super) fn read(raw: &RawValue, max: usize) -> Result<Vec<(i64, f64)>, Error> {
    if raw.get() == "null" {
        return Ok(Vec::new());
    }
    let (pairs, total) = fields::read_seed(FIELD, raw, Pairs(max))?;
    if total > max {
        return Err(invalid(FIELD, format!("{total} biases, at most {max}")));
    }
    let token = |(id, value): (String, f64)| {
        let wrong = |_| {
            let shown: String = id.chars().take(ID_CHARS_MAX).collect();
            invalid(FIELD, format!("{shown:?} is no token id"))
        };
        id.parse().map(|id| (id, value)).map_err(wrong)
    };
    pairs.into_iter().map(token).collect()
}

/// Longest part of a key that an error repeats, in characters.
const ID_CHARS_MAX: usize = 64;

/// The first pairs of an object, and how many there are: what is past the bound takes no memory.
struct Pairs(usize);

impl<'de> DeserializeSeed<'de> for Pairs {
    type Value = (Vec<(String, f64)>, usize);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pairs {
    type Value = (Vec<(String, f64)>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from token ids to numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while pairs.len() < self.0 {
            let Some((id, Number(value))) = map.next_entry()? else {
                let total = pairs.len();
                return Ok((pairs, total));
            };
            pairs.push((id, value));
        }
        let mut total = self.0;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            total += 1;
        }
        Ok((pairs, total))
    }
}
