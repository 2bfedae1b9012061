//! From the settings to the policy: `[policy]` and `[slo]`, in the brain's terms. What `[policy]`
//! does not have keeps the policy's own constants.

use dopd_core::{
    policy::{PolicyConfig, PolicyError, Steal},
    step::StepPolicy,
    units::{Micros, Tokens},
};
use serde::de::{
    DeserializeOwned, IntoDeserializer,
    value::{self, StrDeserializer},
};

use crate::config::{
    Config,
    records::{PolicySettings, SloConfig},
};

/// The policy that these settings ask for, checked. Words were checked with the settings.
pub(super) fn policy(config: &Config) -> Result<PolicyConfig, PolicyError> {
    let (set, slo) = (&config.policy, &config.slo);
    let own = PolicyConfig::default();
    let policy = PolicyConfig {
        ttft: slo.ttft_ms.map_or(own.ttft, Micros::from_millis),
        tpot: tpot(slo, own.tpot),
        order: named(&set.order),
        demote: set.demote,
        refuse: named(&set.refuse),
        late_max: Micros::from_millis(set.late_max_ms),
        fair_ratio: f64::from(set.fair_percent) / 100.0,
        share_tenants: set.share_tenants,
        prefill_tokens_max: Tokens(set.prefill_tokens_max),
        steal: steal(set),
        keep: set.keep,
        linger_ratio: if set.linger { own.linger_ratio } else { 0.0 },
        place: named(&set.place),
        reserve: named(&set.reserve),
        step: StepPolicy {
            mode: named(&set.step),
            chunk_tokens: Tokens(set.chunk_tokens),
            tpot: tpot(slo, own.step.tpot),
            pause_max: Micros::from_millis(set.pause_max_ms),
            pause_min: own
                .step
                .pause_min
                .min(Micros::from_millis(set.pause_max_ms)),
            ..own.step
        },
        ..own
    };
    policy.check()?;
    Ok(policy)
}

fn tpot(slo: &SloConfig, own: Micros) -> Micros {
    slo.tpot_ms.map_or(own, Micros::from_millis)
}

/// What serde knows by this word.
fn named<T: DeserializeOwned + Default>(word: &str) -> T {
    let word: StrDeserializer<'_, value::Error> = word.into_deserializer();
    T::deserialize(word).unwrap_or_default()
}

fn steal(set: &PolicySettings) -> Steal {
    match set.steal.as_str() {
        "never" => Steal::Never,
        "shorter" => Steal::Shorter(Tokens(set.steal_tokens)),
        _ => Steal::InTime,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use dopd_core::{
        policy::{Order, PlaceBy, Refuse, Reserve},
        step::StepMode,
    };

    use super::*;

    #[test]
    fn without_settings_it_is_the_default_policy() {
        assert_eq!(policy(&Config::default()), Ok(PolicyConfig::default()));
    }

    #[test]
    fn every_setting_reaches_the_policy() {
        let mut config = Config::default();
        config.slo.ttft_ms = Some(500);
        config.slo.tpot_ms = Some(30);
        config.policy = PolicySettings {
            order: "edf".to_owned(),
            demote: false,
            refuse: "early".to_owned(),
            late_max_ms: 7,
            fair_percent: 100,
            share_tenants: false,
            prefix_cache: false,
            prefill_tokens_max: 9,
            steal: "shorter".to_owned(),
            steal_tokens: 511,
            keep: false,
            linger: false,
            place: "round_robin".to_owned(),
            reserve: "max_tokens".to_owned(),
            step: "chunk".to_owned(),
            chunk_tokens: 256,
            pause_max_ms: 20,
            explain_decisions_max: 5,
        };
        let own = PolicyConfig::default();
        let expected = PolicyConfig {
            ttft: Micros(500_000),
            tpot: Micros(30_000),
            order: Order::Edf,
            demote: false,
            refuse: Refuse::Early,
            late_max: Micros(7_000),
            fair_ratio: 1.0,
            share_tenants: false,
            prefill_tokens_max: Tokens(9),
            steal: Steal::Shorter(Tokens(511)),
            keep: false,
            linger_ratio: 0.0,
            place: PlaceBy::RoundRobin,
            reserve: Reserve::MaxTokens,
            step: StepPolicy {
                mode: StepMode::Chunk,
                chunk_tokens: Tokens(256),
                tpot: Micros(30_000),
                pause_max: Micros(20_000),
                pause_min: Micros(20_000),
                ..own.step
            },
            ..own
        };
        assert_eq!(policy(&config), Ok(expected));
    }

    /// What the settings let pass, the policy takes: its own check would come without a place.
    #[test]
    fn the_greatest_and_least_settings_make_a_policy() {
        for end in [false, true] {
            let at = |path: &str| {
                let field = crate::config::records::FIELDS
                    .iter()
                    .find(|f| f.path == path);
                let within = field.and_then(|field| field.within.clone()).unwrap();
                if end { *within.end() } else { *within.start() }
            };
            let small = |path| u32::try_from(at(path)).unwrap();
            let mut config = Config::default();
            config.slo.ttft_ms = Some(at("slo.ttft_ms"));
            config.slo.tpot_ms = Some(at("slo.tpot_ms"));
            config.policy.late_max_ms = at("policy.late_max_ms");
            config.policy.fair_percent = small("policy.fair_percent");
            config.policy.prefill_tokens_max = small("policy.prefill_tokens_max");
            config.policy.steal = "shorter".to_owned();
            config.policy.steal_tokens = small("policy.steal_tokens");
            config.policy.chunk_tokens = small("policy.chunk_tokens");
            config.policy.pause_max_ms = at("policy.pause_max_ms");
            policy(&config).unwrap();
        }
    }

    fn said<T: DeserializeOwned + Default + Debug>(word: &str) -> String {
        format!("{:?}", named::<T>(word))
    }

    /// A word that the settings allow and this does not know would be taken for the default.
    #[test]
    fn every_word_of_the_settings_is_known() {
        let words = |path| {
            let field = crate::config::records::FIELDS
                .iter()
                .find(|f| f.path == path);
            field.and_then(|field| field.one_of).unwrap_or_default()
        };
        let distinct = |path, of: &dyn Fn(&str) -> String| {
            let values: std::collections::BTreeSet<String> =
                words(path).iter().map(|word| of(word)).collect();
            assert_eq!(values.len(), words(path).len(), "{path}");
            assert!(values.len() > 1, "{path}");
        };
        distinct("policy.order", &said::<Order>);
        distinct("policy.refuse", &said::<Refuse>);
        distinct("policy.place", &said::<PlaceBy>);
        distinct("policy.reserve", &said::<Reserve>);
        distinct("policy.step", &said::<StepMode>);
        distinct("policy.steal", &|word| {
            let set = PolicySettings {
                steal: word.to_owned(),
                ..PolicySettings::default()
            };
            format!("{:?}", steal(&set))
        });
    }
}
