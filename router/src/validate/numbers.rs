//! Numbers of JSON, with error messages that name no type of Rust.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// An integer. Beyond 63 bits it is above every limit, and the check names the limit.
pub(super) struct Integer(pub(super) i64);

/// Any number.
pub(super) struct Number(pub(super) f64);

/// A seed: any 64 bits, signed or not.
pub(super) struct Seed(pub(super) u64);

/// Implements `Deserialize` by what each kind of number becomes.
macro_rules! number {
    ($name:ident, $expected:literal, $read:ident, $($visit:ident($kind:ty) => $into:expr;)+) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Wanted;
                impl de::Visitor<'_> for Wanted {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    $(fn $visit<E: de::Error>(self, value: $kind) -> Result<$name, E> {
                        let into: fn($kind) -> Option<_> = $into;
                        let wrong = || E::custom(format_args!("{value} is not {}", $expected));
                        into(value).map($name).ok_or_else(wrong)
                    })+
                }
                deserializer.$read(Wanted)
            }
        }
    };
}

number! { Integer, "an integer", deserialize_i64,
    visit_i64(i64) => Some;
    visit_u64(u64) => |value| Some(i64::try_from(value).unwrap_or(i64::MAX));
    visit_f64(f64) => whole;
}

number! { Number, "a number", deserialize_f64,
    visit_f64(f64) => Some;
    visit_i64(i64) => |value| Some(value as f64);
    visit_u64(u64) => |value| Some(value as f64);
}

number! { Seed, "an integer of 64 bits", deserialize_u64,
    visit_i64(i64) => |value| Some(value.cast_unsigned());
    visit_u64(u64) => Some;
    visit_f64(f64) => |value| Some(value)
        .filter(|value| value.abs() < TWO_TO_63)
        .and_then(whole)
        .map(i64::cast_unsigned);
}

const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;

/// `16.0` is an integer in JSON, and some clients write it so. Beyond 63 bits as [`Integer`].
#[expect(clippy::cast_possible_truncation, reason = "whole, and saturating")]
fn whole(value: f64) -> Option<i64> {
    (value.fract() == 0.0).then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        let integer = |text: &str| {
            let read = serde_json::from_str::<Integer>(text);
            read.map(|read| read.0).map_err(|error| error.to_string())
        };
        assert_eq!(integer("16.0"), Ok(16));
        assert_eq!(integer("-1.6e1"), Ok(-16));
        assert_eq!(integer("1e300"), Ok(i64::MAX));
        let fraction = integer("1.5").unwrap_err();
        assert!(fraction.starts_with("1.5 is not an integer"), "{fraction}");
        let seed = |text: &str| serde_json::from_str::<Seed>(text).map(|seed| seed.0).ok();
        assert_eq!(seed("7.0"), Some(7));
        assert_eq!(seed("-1"), Some(u64::MAX));
        assert_eq!(seed("18446744073709551615"), Some(u64::MAX));
        assert_eq!(seed("18446744073709551616"), None);
        assert_eq!(seed("0.5"), None);
    }
}
