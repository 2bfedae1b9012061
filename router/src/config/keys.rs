//! `[[key]]`: who may call. An array of tables, so it has no flags and no variables; `--api-key`
//! and `DOPD_API_KEY` add one key to it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    ConfigError, Origin,
    declare::{Field, maybe, settings},
    layers, suggest,
};

/// Name of the table.
pub(super) const TABLE: &str = "key";
/// Name of the key that `--api-key` and `DOPD_API_KEY` add.
pub const DEFAULT_NAME: &str = "default";
/// Most keys: every presented key is compared with all of them.
const KEYS_MAX: usize = 4_096;
/// Longest name of a key or a tenant: they stand in logs and metrics.
const NAME_BYTES_MAX: usize = 64;

settings! {
    /// One API key.
    KeyConfig "key" {
        /// Name of the key, in logs and metrics: letters, digits, `.`, `_` and `-`.
        name: String = String::new();
        /// SHA-256 of the key in hex: `printf %s KEY | sha256sum`. The key stands nowhere.
        sha256: String = String::new();
        /// Whose key it is; several keys may have the same tenant.
        tenant: String = "default".to_owned();
        /// Share of the tenant where tenants compete.
        weight: u32 = 1, within 1..=1_000;
        /// Target for the time to first token in milliseconds; none: as `slo.ttft_ms`.
        slo_ttft_ms: Option<u64> = None, within 1..=86_400_000;
        /// Target for the time per output token in milliseconds; none: as `slo.tpot_ms`.
        slo_tpot_ms: Option<u64> = None, within 1..=86_400_000;
        /// Least target for the first token that it may ask for, in milliseconds; none: as
        /// `limits.slo_ttft_ms_min`.
        slo_ttft_ms_min: Option<u64> = None, within 1..=86_400_000;
        /// The same per output token; none: as `limits.slo_tpot_ms_min`.
        slo_tpot_ms_min: Option<u64> = None, within 1..=86_400_000;
        /// Requests a minute; none: any number.
        requests_per_minute: Option<u32> = None, within 1..=1_000_000_000;
        /// Tokens of prompts and answers a minute; none: any number.
        tokens_per_minute: Option<u64> = None, within 1..=1 << 50;
        /// Requests at the same time; none: any number.
        requests_running_max: Option<u32> = None, within 1..=1_000_000_000;
    }
}

/// Longest key in bytes; what a request shows is not hashed beyond it.
pub const KEY_BYTES_MAX: usize = 1_024;

/// SHA-256 of a key; the only form in which one is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDigest(pub [u8; 32]);

impl KeyDigest {
    /// Of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Of a key that a user chose; `None` for one that no header could show: empty, longer than
    /// [`KEY_BYTES_MAX`], or with blanks or other characters than printable ASCII.
    pub fn of_chosen(key: &str) -> Option<Self> {
        let can_be_shown = !key.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && key.bytes().all(|byte| byte.is_ascii_graphic());
        can_be_shown.then(|| Self::of(key.as_bytes()))
    }

    fn parse(hex: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if hex.len() != 2 * digest.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

impl KeyConfig {
    /// A key without quotas.
    pub fn unlimited(name: &str, digest: KeyDigest) -> Self {
        let mut sha256 = String::with_capacity(64);
        for byte in digest.0 {
            // Writing into a String cannot fail.
            let _ = write!(sha256, "{byte:02x}");
        }
        Self {
            name: name.to_owned(),
            sha256,
            ..Self::default()
        }
    }

    /// Its hash; `None` if the settings were not checked.
    pub fn digest(&self) -> Option<KeyDigest> {
        KeyDigest::parse(&self.sha256)
    }
}

/// One `[[key]]`: its entries with their places. `at` is where it begins.
pub(super) fn read(
    entries: Vec<(String, Value, Origin)>,
    at: &Origin,
) -> Result<KeyConfig, ConfigError> {
    let mut table = Map::new();
    for (name, value, origin) in entries {
        let Some(field) = FIELDS.iter().find(|field| field.name == name) else {
            return Err(ConfigError::Unknown {
                origin,
                what: "setting",
                hint: suggest::hint(&name, FIELDS.iter().map(|field| field.name)),
                name: format!("{TABLE}.{name}"),
            });
        };
        let problem = layers::within(field, &value).and_then(|()| fits(field, &value));
        problem.map_err(|problem| wrong(field.path, &value, problem, origin))?;
        table.insert(name, value);
    }
    let missing = |what: &str| ConfigError::Syntax {
        origin: at.clone(),
        message: format!("a [[key]] has no {what}"),
    };
    for name in ["name", "sha256"] {
        if !table.contains_key(name) {
            return Err(missing(name));
        }
    }
    serde_json::from_value(Value::Object(table)).map_err(|error| missing(&error.to_string()))
}

/// Adds `key` to `keys`, unless another has its name or its hash, or there are too many.
pub(super) fn add(
    keys: &mut Vec<KeyConfig>,
    key: KeyConfig,
    origin: Origin,
) -> Result<(), ConfigError> {
    if keys.len() == KEYS_MAX {
        let message = format!("more than {KEYS_MAX} keys");
        return Err(ConfigError::Syntax { origin, message });
    }
    let twin = keys
        .iter()
        .find(|other| other.name == key.name || other.digest() == key.digest());
    if let Some(twin) = twin {
        let same = if twin.name == key.name {
            "name"
        } else {
            "sha256"
        };
        let message = format!(
            "key {:?} and key {:?} have the same {same}",
            twin.name, key.name
        );
        return Err(ConfigError::Syntax { origin, message });
    }
    keys.push(key);
    Ok(())
}

/// Whether `value` has the type of `field` and the form of its kind.
fn fits(field: &Field, value: &Value) -> Result<(), String> {
    let mut table = Map::new();
    table.insert(field.name.to_owned(), value.clone());
    if let Err(error) = serde_json::from_value::<KeyConfig>(Value::Object(table)) {
        return Err(layers::expected(&error));
    }
    let text = value.as_str().unwrap_or_default();
    match field.name {
        "name" | "tenant" if !is_name(text) => Err(format!(
            "allowed are 1 to {NAME_BYTES_MAX} letters, digits and . _ -"
        )),
        "sha256" if KeyDigest::parse(text).is_none() => {
            Err("expected 64 hex digits: printf %s KEY | sha256sum".to_owned())
        }
        _ => Ok(()),
    }
}

fn is_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_letter)
}

fn wrong(path: &'static str, value: &Value, problem: String, origin: Origin) -> ConfigError {
    // Somebody may have put the key itself where its hash belongs.
    let value = if path == "key.sha256" {
        "something else".to_owned()
    } else {
        value.to_string()
    };
    ConfigError::Value {
        path,
        value,
        problem,
        origin,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{Scope, Settings, Sources, load},
        *,
    };

    const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn settings(toml: &str, api_key: Option<&str>) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dopd.toml");
        fs::write(&file, toml).unwrap();
        let api_key = api_key.map(|key| (KeyDigest::of_chosen(key), Origin::Flag("api-key")));
        let sources = Sources {
            file: Some(file),
            api_key,
            ..Sources::default()
        };
        let place = format!("{}/", folder.path().display());
        load(&sources, Scope::Router).map_err(|error| error.to_string().replace(&place, ""))
    }

    #[test]
    fn keys_of_the_file_and_of_the_flag_are_together() {
        let toml = format!(
            "[[key]]\nname = \"a\"\nsha256 = \"{HASH}\"\ntenant = \"t\"\nweight = 3\n\
             requests_per_minute = 60\ntokens_per_minute = 1000\nrequests_running_max = 4\n\
             [http]\nport = 0\n[[key]]\nname = \"b\"\nsha256 = \"{}\"\n",
            HASH.replace('2', "3")
        );
        let settings = settings(&toml, Some("geheim")).unwrap();
        let keys = &settings.config.key;
        let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "default"]);
        assert_eq!((keys[0].weight, keys[1].tenant.as_str()), (3, "default"));
        // Of "secret", by sha256sum.
        assert_eq!(keys[0].digest(), Some(KeyDigest::of(b"secret")));
        assert_eq!(keys[2].digest(), Some(KeyDigest::of(b"geheim")));
        assert_eq!(keys[2].tokens_per_minute, None);
    }

    #[test]
    fn a_key_that_no_header_can_show_is_refused_and_not_repeated() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for key in [
            "",
            " geheim",
            "geheim ",
            "ge heim",
            "geh\neim",
            "g\u{e4}heim",
            &long,
        ] {
            let refused = settings("", Some(key)).unwrap_err();
            assert!(refused.contains("--api-key"), "{refused}");
            assert!(key.is_empty() || !refused.contains(key), "{refused}");
        }
        assert!(settings("", Some(&long[1..])).is_ok());
    }

    #[test]
    fn bad_keys_are_refused_with_their_line() {
        let key = format!("[[key]]\nname = \"a\"\nsha256 = \"{HASH}\"\n");
        let other = HASH.replace('2', "3");
        let cases = [
            ("key = 3".to_owned(), None),
            ("[key]\nname = \"a\"".to_owned(), None),
            ("key = [1]".to_owned(), None),
            ("[[key]]\nname = \"a\"\n".to_owned(), None),
            (format!("\n[[key]]\nsha256 = \"{HASH}\"\n"), None),
            (
                "[[key]]\nname = \"a\"\nsha256 = \"sk-the-key-itself\"\n".to_owned(),
                None,
            ),
            ("[[key]]\nname = \"a b\"\n".to_owned(), None),
            (format!("{key}sha = 1\n"), None),
            (format!("{key}weight = 0\n"), None),
            (format!("{key}tokens_per_minute = \"many\"\n"), None),
            (format!("{key}{}", key.replace(HASH, &other)), None),
            (format!("{key}{}", key.replace("\"a\"", "\"b\"")), None),
            (key.replace("\"a\"", "\"default\""), Some("x")),
        ];
        let refused = cases.map(|(toml, flag)| settings(&toml, flag).unwrap_err());
        insta::assert_snapshot!(refused.join("\n"), @r#"
dopd.toml:1: keys are tables of their own, each begins with [[key]]
dopd.toml:1: keys are tables of their own, each begins with [[key]]
dopd.toml:1: keys are tables of their own, each begins with [[key]]
dopd.toml:1: a [[key]] has no sha256
dopd.toml:2: a [[key]] has no name
key.sha256 is something else, expected 64 hex digits: printf %s KEY | sha256sum (from dopd.toml:3)
key.name is "a b", allowed are 1 to 64 letters, digits and . _ - (from dopd.toml:2)
dopd.toml:4: unknown setting "key.sha"
key.weight is 0, allowed are whole numbers 1 to 1000 (from dopd.toml:4)
key.tokens_per_minute is "many", allowed are whole numbers 1 to 1125899906842624 (from dopd.toml:4)
dopd.toml:4: key "a" and key "a" have the same name
dopd.toml:4: key "a" and key "b" have the same sha256
--api-key: key "default" and key "default" have the same name
"#);
    }

    #[test]
    fn off_loopback_somebody_must_have_said_who_may_call() {
        let open = "[http]\nhost = \"0.0.0.0\"\n";
        let refused = settings(open, None).unwrap_err();
        assert!(refused.contains("there is no API key"), "{refused}");
        assert!(settings(open, Some("x")).is_ok());
        assert!(settings(&format!("{open}allow_anonymous = true"), None).is_ok());
    }
}
