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

                    $(fn $visit<E>(self, value: $kind) -> Result<$name, E> {
                        let into: fn($kind) -> _ = $into;
                        Ok($name(into(value)))
                    })+
                }
                deserializer.$read(Wanted)
            }
        }
    };
}

number! { Integer, "an integer", deserialize_i64,
    visit_i64(i64) => |value| value;
    visit_u64(u64) => |value| i64::try_from(value).unwrap_or(i64::MAX);
}

number! { Number, "a number", deserialize_f64,
    visit_f64(f64) => |value| value;
    visit_i64(i64) => |value| value as f64;
    visit_u64(u64) => |value| value as f64;
}

number! { Seed, "an integer of 64 bits", deserialize_u64,
    visit_i64(i64) => i64::cast_unsigned;
    visit_u64(u64) => |value| value;
}
