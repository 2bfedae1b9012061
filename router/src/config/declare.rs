//! The macro that declares a setting once: record field, default, help text, flag and limits come
//! from one place.
//!
//! ```text
//! /// The OpenAI front.                       help of the table
//! HttpConfig "http" {                         record, and table of the TOML file
//!     /// Port; 0 picks a free one.           help of the setting, with its unit
//!     port: u16 = 8000, flag "port" "PORT", within 0..=65_535;
//! }
//! ```
//!
//! gives the record `HttpConfig { port }` with its `Default`, and in
//! [`FIELDS`](super::records::FIELDS) a [`Field`] for the file, the environment
//! (`DOPD_HTTP__PORT`), the flag (`--port PORT`), `--help`, `config show` and the JSON Schema.
//! A value that nobody may see ends in `, secret true`: it is masked wherever settings are shown.

use std::ops::RangeInclusive;

/// What is known of one setting besides its value.
#[derive(Clone, Debug)]
pub struct Field {
    /// Table of the TOML file.
    pub table: &'static str,
    /// Key in the table.
    pub name: &'static str,
    /// `table.name`.
    pub path: &'static str,
    /// Help text: one space before every line of the doc comment.
    pub help: &'static str,
    /// Name of the flag and of its value; no value for a switch.
    pub flag: Option<(&'static str, &'static str)>,
    /// Allowed numbers.
    pub within: Option<RangeInclusive<u64>>,
    /// Allowed words.
    pub one_of: Option<&'static [&'static str]>,
    /// Whether its value is never shown.
    pub is_secret: bool,
    /// Rust's type, as declared.
    pub rust_type: &'static str,
}

impl Field {
    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!(
            "DOPD_{}__{}",
            self.table.to_uppercase(),
            self.name.to_uppercase()
        )
    }
}

/// The argument as an `Option`.
macro_rules! maybe {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

/// See the module's documentation.
macro_rules! settings {
    ($(
        $(#[doc = $table_doc:literal])+
        $record:ident $table:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr
                $(, flag $flag:literal $value:literal)?
                $(, within $range:expr)?
                $(, one_of $words:expr)?
                $(, secret $secret:literal)?;
            )+
        }
    )+) => {
        $(
            $(#[doc = $table_doc])+
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $record {
                $($(#[doc = $doc])+ pub $field: $type,)+
            }

            impl Default for $record {
                fn default() -> Self {
                    Self { $($field: $default,)+ }
                }
            }
        )+

        /// Every setting, in the order of the records.
        pub const FIELDS: &[Field] = &[$($(
            Field {
                table: $table,
                name: stringify!($field),
                path: concat!($table, ".", stringify!($field)),
                help: concat!($($doc),+),
                flag: maybe!($(($flag, $value))?),
                within: maybe!($($range)?),
                one_of: maybe!($($words)?),
                is_secret: matches!(maybe!($($secret)?), Some(true)),
                rust_type: stringify!($type),
            },
        )+)+];
    };
}

pub(super) use {maybe, settings};
