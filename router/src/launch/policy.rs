//! From the settings to the policy: `[policy]` and `[slo]`, in the brain's terms. What `[policy]`
//! does not have keeps the policy's own constants.

use dopd_core::{
    policy::{Order, PlaceBy, PolicyConfig, Refuse, Reserve, Steal},
    step::{StepMode, StepPolicy},
    units::{Micros, Tokens},
};

use crate::config::{
    Config,
    records::{PolicySettings, SloConfig},
};

/// The policy that these settings ask for. Words were checked with the settings.
pub(super) fn policy(config: &Config) -> PolicyConfig {
    let (set, slo) = (&config.policy, &config.slo);
    let own = PolicyConfig::default();
    PolicyConfig {
        ttft: slo.ttft_ms.map_or(own.ttft, Micros::from_millis),
        tpot: tpot(slo, own.tpot),
        order: order(&set.order),
        demote: set.demote,
        refuse: refuse(&set.refuse),
        late_max: Micros::from_millis(set.late_max_ms),
        fair_ratio: f64::from(set.fair_percent) / 100.0,
        share_tenants: set.share_tenants,
        prefill_tokens_max: Tokens(set.prefill_tokens_max),
        steal: steal(set),
        keep: set.keep,
        place: place(&set.place),
        reserve: reserve(&set.reserve),
        step: StepPolicy {
            mode: step(&set.step),
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
    }
}

fn tpot(slo: &SloConfig, own: Micros) -> Micros {
    slo.tpot_ms.map_or(own, Micros::from_millis)
}

fn order(word: &str) -> Order {
    match word {
        "fcfs" => Order::Fcfs,
        "sjf" => Order::Sjf,
        "edf" => Order::Edf,
        _ => Order::Aged,
    }
}

fn refuse(word: &str) -> Refuse {
    match word {
        "never" => Refuse::Never,
        "early" => Refuse::Early,
        _ => Refuse::Late,
    }
}

fn steal(set: &PolicySettings) -> Steal {
    match set.steal.as_str() {
        "never" => Steal::Never,
        "shorter" => Steal::Shorter(Tokens(set.steal_tokens)),
        _ => Steal::InTime,
    }
}

fn place(word: &str) -> PlaceBy {
    match word {
        "fewest_sequences" => PlaceBy::FewestSequences,
        "most_pages" => PlaceBy::MostPages,
        "round_robin" => PlaceBy::RoundRobin,
        _ => PlaceBy::LeastTokens,
    }
}

fn reserve(word: &str) -> Reserve {
    match word {
        "max_tokens" => Reserve::MaxTokens,
        _ => Reserve::FuturePeak,
    }
}

fn step(word: &str) -> StepMode {
    match word {
        "fill" => StepMode::Fill,
        "chunk" => StepMode::Chunk,
        "chunk_in_time" => StepMode::ChunkInTime,
        _ => StepMode::PauseOrMix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_settings_it_is_the_default_policy() {
        assert_eq!(policy(&Config::default()), PolicyConfig::default());
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
        assert_eq!(policy(&config), expected);
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
            policy(&config).check().unwrap();
        }
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
        distinct("policy.order", &|word| format!("{:?}", order(word)));
        distinct("policy.refuse", &|word| format!("{:?}", refuse(word)));
        distinct("policy.place", &|word| format!("{:?}", place(word)));
        distinct("policy.reserve", &|word| format!("{:?}", reserve(word)));
        distinct("policy.step", &|word| format!("{:?}", step(word)));
        distinct("policy.steal", &|word| {
            let set = PolicySettings {
                steal: word.to_owned(),
                ..PolicySettings::default()
            };
            format!("{:?}", steal(&set))
        });
    }
}
