//! The gate of both fronts: default-deny over all their routes, known and unknown.

use std::time::Duration;

use hyper::{HeaderMap, header::AUTHORIZATION};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::{Caller, quota::Quota};
use crate::{
    config::{KEY_BYTES_MAX, KeyConfig, KeyDigest},
    error::{Error, Reason},
    metrics::SloTargets,
};

/// Which front asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The OpenAI front.
    Http,
    /// The gRPC front.
    Grpc,
}

impl Door {
    /// Paths that need no key: a balancer must see whether the router lives. Nothing else is open.
    pub const fn open_paths(self) -> &'static [&'static str] {
        match self {
            Self::Http => &["/health", "/ready"],
            Self::Grpc => &[
                "/grpc.health.v1.Health/Check",
                "/grpc.health.v1.Health/Watch",
            ],
        }
    }
}

/// All keys; none: every caller may pass.
#[derive(Debug, Default)]
pub struct Gate {
    keys: Vec<Key>,
    anonymous: Caller,
}

#[derive(Debug)]
struct Key {
    digest: KeyDigest,
    caller: Caller,
}

impl Gate {
    /// A gate for `keys`, which were checked with the settings.
    pub fn new(keys: &[KeyConfig]) -> Self {
        // One without a hash would be a defect of that check; it opens for nobody.
        let keys = keys.iter().filter_map(|config| {
            let digest = config.digest()?;
            let caller = Caller {
                key: config.name.as_str().into(),
                tenant: config.tenant.as_str().into(),
                weight: config.weight,
                slo: targets(config.slo_ttft_ms, config.slo_tpot_ms),
                slo_least: targets(config.slo_ttft_ms_min, config.slo_tpot_ms_min),
                quota: Quota::of(config),
            };
            Some(Key { digest, caller })
        });
        Self {
            keys: keys.collect(),
            anonymous: Caller::default(),
        }
    }

    /// Who calls `path`; or why they may not. `path` is the parsed one, which also chooses the
    /// route: there is no second reading of it to disagree with.
    pub fn admit(&self, door: Door, path: &str, headers: &HeaderMap) -> Result<Caller, Error> {
        if self.keys.is_empty() || door.open_paths().contains(&path) {
            return Ok(self.anonymous.clone());
        }
        let presented = bearer(headers)?;
        self.find(presented)
            .ok_or_else(|| refusal("the API key is not known here"))
    }

    /// Compares with every key, and each in the same time: how long it takes tells nothing.
    fn find(&self, presented: &[u8]) -> Option<Caller> {
        let digest = KeyDigest::of(presented);
        let mut found = u64::MAX;
        for (index, key) in (0_u64..).zip(&self.keys) {
            let is_same = key.digest.0.ct_eq(&digest.0);
            found.conditional_assign(&index, is_same);
        }
        let key = self.keys.get(usize::try_from(found).ok()?)?;
        Some(key.caller.clone())
    }
}

fn targets(ttft_ms: Option<u64>, tpot_ms: Option<u64>) -> SloTargets {
    SloTargets {
        ttft: ttft_ms.map(Duration::from_millis),
        tpot: tpot_ms.map(Duration::from_millis),
    }
}

/// The key of `authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Result<&[u8], Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => {
            let message = "an API key is required: send the header authorization: Bearer KEY";
            return Err(refusal(message));
        }
        (Some(_), Some(_)) => return Err(refusal("the header authorization comes twice")),
        (Some(value), None) => value.as_bytes(),
    };
    let scheme = value
        .iter()
        .position(|byte| *byte == b' ')
        .unwrap_or(value.len());
    let (scheme, key) = value.split_at(scheme);
    let key = key.trim_ascii();
    if !scheme.eq_ignore_ascii_case(b"bearer") || key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(refusal("the header authorization must be: Bearer KEY"));
    }
    Ok(key)
}

fn refusal(message: &'static str) -> Error {
    Error::new(Reason::Unauthenticated, message)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn gate(keys: &[(&str, &str)]) -> Gate {
        let key =
            |(name, key): &(&str, &str)| KeyConfig::unlimited(name, KeyDigest::of(key.as_bytes()));
        Gate::new(&keys.iter().map(key).collect::<Vec<_>>())
    }

    fn ask(gate: &Gate, values: &[&str]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        let admitted = gate.admit(Door::Http, "/v1/models", &headers);
        admitted
            .map(|caller| caller.key.to_string())
            .map_err(|error| format!("{} {}", error.reason.row().code, error.message))
    }

    #[test]
    fn a_known_key_names_its_caller() {
        let gate = gate(&[("a", "one"), ("b", "two"), ("c", "three")]);
        for (value, name) in [
            ("Bearer one", "a"),
            ("bearer  two ", "b"),
            ("BEARER three", "c"),
        ] {
            assert_eq!(ask(&gate, &[value]).as_deref(), Ok(name));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let gate = gate(&[("a", "one")]);
        let long = format!("Bearer {}", "x".repeat(KEY_BYTES_MAX + 1));
        let cases: [&[&str]; 10] = [
            &[],
            &["Bearer"],
            &["Bearer "],
            &["one"],
            &["Basic one"],
            &["Bearer on"],
            &["Bearer onee"],
            &["Bearer one one"],
            &["Bearer one", "Bearer one"],
            &[&long],
        ];
        for values in cases {
            let refused = ask(&gate, values).unwrap_err();
            assert!(
                refused.starts_with("unauthenticated "),
                "{values:?}: {refused}"
            );
            assert!(!refused.contains("one"), "{refused}");
        }
    }

    #[test]
    fn only_the_exact_paths_of_health_are_open() {
        let gate = gate(&[("a", "one")]);
        let admit = |door, path| gate.admit(door, path, &HeaderMap::new());
        for path in ["/health", "/ready"] {
            assert!(admit(Door::Http, path).is_ok(), "{path}");
            assert!(admit(Door::Grpc, path).is_err(), "{path}");
        }
        for path in [
            "/health/",
            "//health",
            "/Health",
            "/health/../v1/models",
            "/health%2f",
            "*",
            "",
        ] {
            assert!(admit(Door::Http, path).is_err(), "{path}");
        }
    }

    #[test]
    fn without_keys_everybody_passes() {
        assert_eq!(ask(&Gate::default(), &[]).as_deref(), Ok("anonymous"));
    }
}
