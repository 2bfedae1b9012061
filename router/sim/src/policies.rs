//! Policies by name: dopd's own, and those of the literature as values of the same type in the same
//! brain.
//!
//! Called by `setup`. What each does: policy study, section 2. Baselines owe long prompts nothing
//! (`fair_ratio` 0), as published.

use dopd_core::{
    fleet::Role,
    policy::{Bind, Order, PlaceBy, PolicyConfig, Refuse, Reserve, Steal},
    step::StepMode,
    units::Tokens,
};

/// (name, what it is). `P:D` are counts of labels, `K` a count of prefill labels, `N` a number of
/// tokens.
pub const NAMES: &[(&str, &str)] = &[
    (
        "dopd",
        "dopd's policy, a quarter of the workers labelled prefill",
    ),
    ("dopd-K", "dopd's policy, K workers labelled prefill"),
    (
        "static-P:D",
        "fixed split: shortest first with ageing, late ones last, gate",
    ),
    (
        "agg-N",
        "mixed workers, steps of N tokens, least loaded (push)",
    ),
    (
        "agg-dyn",
        "mixed workers, steps that keep the target per token (push)",
    ),
    ("pull-dyn", "the same from one shared queue (pull)"),
    (
        "pull-N",
        "mixed workers, steps of N tokens, one shared queue (pull)",
    ),
    (
        "hybrid-K",
        "steal and keep with mixed steps, without pauses",
    ),
    (
        "local-N-P:D",
        "fixed split; decode workers compute prompts shorter than N themselves",
    ),
    (
        "round-robin-P:D",
        "fixed split, decode workers one after the other",
    ),
    (
        "least-P:D",
        "fixed split, decode worker with fewest sequences",
    ),
    (
        "NAME-fcfs",
        "any of these by arrival, late ones neither set back nor refused",
    ),
    (
        "NAME-no-RULE",
        "any of these with one rule off: ablations, see RULES",
    ),
    ("NAME-sjf", "any of these, shortest first"),
    ("NAME-edf", "any of these, nearest target first"),
];

/// One rule of the policy.
type Rule = (&'static str, &'static str, fn(&mut PolicyConfig));

/// (rule, what is without it, how it is turned off): `dopd-no-steal`, `dopd-3-no-pauses`.
pub const RULES: &[Rule] = &[
    ("ageing", "shortest first for ever", |policy| {
        policy.order = Order::Sjf;
    }),
    ("demotion", "late ones keep their turn", |policy| {
        policy.demote = false;
    }),
    ("refusal", "late ones wait without end", |policy| {
        policy.refuse = Refuse::Never;
    }),
    ("fair", "nothing is owed to long prompts", |policy| {
        policy.fair_ratio = 0.0;
    }),
    ("share", "tenants do not share", |policy| {
        policy.share_tenants = false;
    }),
    ("cap", "prompts are taken without a limit", |policy| {
        policy.prefill_tokens_max = Tokens(u32::MAX);
    }),
    ("late-bind", "prompts are bound when they come", |policy| {
        policy.bind = Bind::Early;
    }),
    (
        "gate",
        "prompts start without a place to decode",
        |policy| {
            policy.gate = false;
        },
    ),
    ("steal", "decode workers take no prompts", |policy| {
        policy.steal = Steal::Never;
    }),
    (
        "linger",
        "prompts are handed off however long that takes",
        |policy| {
            policy.linger_ratio = 0.0;
        },
    ),
    ("keep", "prefill workers keep nothing", |policy| {
        policy.keep = false;
    }),
    ("pauses", "prompts are mixed into steps only", |policy| {
        policy.step.mode = StepMode::ChunkInTime;
    }),
    ("step-limit", "decode steps may take any time", |policy| {
        policy.place_step_ratio = 0.0;
    }),
    ("kv-limit", "pools fill to the brim", |policy| {
        policy.place_kv_ratio = 1.0;
    }),
    (
        "peak",
        "pages for the longest answer are reserved",
        |policy| {
            policy.reserve = Reserve::MaxTokens;
        },
    ),
    ("prefixes", "placing does not look for prefixes", |policy| {
        policy.use_prefixes = false;
    }),
];

/// The policy of that name for a fleet of so many workers, and their labels; `None` if nothing has
/// that name, or it does not suit the fleet. Targets are the caller's to set.
pub fn named(name: &str, workers: usize) -> Option<(PolicyConfig, Vec<Role>)> {
    let orders = [
        ("-fcfs", Order::Fcfs),
        ("-sjf", Order::Sjf),
        ("-edf", Order::Edf),
    ];
    for (suffix, order) in orders {
        if let Some(base) = name.strip_suffix(suffix) {
            let (mut policy, roles) = named(base, workers)?;
            policy.order = order;
            policy.demote = false;
            policy.fair_ratio = 0.0;
            // As published: who is late waits with all others.
            policy.refuse = Refuse::Never;
            return Some((policy, roles));
        }
    }
    if let Some((base, rule)) = name.rsplit_once("-no-") {
        let (_, _, turn_off) = RULES.iter().find(|(known, _, _)| *known == rule)?;
        let (mut policy, roles) = named(base, workers)?;
        turn_off(&mut policy);
        return Some((policy, roles));
    }
    let of = |policy, roles: Option<_>| roles.map(|roles| (policy, roles));
    if name == "dopd" {
        return of(
            PolicyConfig::default(),
            labels(workers.div_ceil(4), workers),
        );
    }
    if let Some(count) = name.strip_prefix("dopd-") {
        return of(
            PolicyConfig::default(),
            labels(count.parse().ok()?, workers),
        );
    }
    if let Some(count) = name.strip_prefix("hybrid-") {
        return of(
            with_mode(StepMode::ChunkInTime),
            labels(count.parse().ok()?, workers),
        );
    }
    aggregated(name, workers).or_else(|| split(name, workers))
}

/// Every worker does both.
fn aggregated(name: &str, workers: usize) -> Option<(PolicyConfig, Vec<Role>)> {
    let mut policy = with_mode(StepMode::ChunkInTime);
    policy.step.mixed_step_ratio = 0.9;
    policy.steal = Steal::Never;
    let (bind, chunk) = match name.split_once('-')? {
        ("agg", chunk) => (Bind::Early, chunk),
        ("pull", chunk) => (Bind::Late, chunk),
        _ => return None,
    };
    policy.bind = bind;
    if chunk != "dyn" {
        policy.step.mode = StepMode::Chunk;
        policy.step.chunk_tokens = Tokens(chunk.parse().ok().filter(|chunk| *chunk > 0)?);
    }
    Some((policy, vec![Role::Mixed; workers]))
}

/// `WHAT-P:D`: labels that nobody crosses.
fn split(name: &str, workers: usize) -> Option<(PolicyConfig, Vec<Role>)> {
    let (what, counts) = name.rsplit_once('-')?;
    let (prefill, decode) = counts.split_once(':')?;
    let (prefill, decode): (usize, usize) = (prefill.parse().ok()?, decode.parse().ok()?);
    let mut policy = PolicyConfig {
        steal: Steal::Never,
        keep: false,
        linger_ratio: 0.0,
        fair_ratio: 0.0,
        ..PolicyConfig::default()
    };
    match (what, what.strip_prefix("local-")) {
        ("static", _) => {}
        ("round-robin", _) => policy.place = PlaceBy::RoundRobin,
        ("least", _) => policy.place = PlaceBy::FewestSequences,
        (_, Some(limit)) => policy.steal = Steal::Shorter(Tokens(limit.parse().ok()?)),
        _ => return None,
    }
    let roles = labels(prefill, workers)?;
    (prefill.checked_add(decode)? == workers && decode > 0).then_some((policy, roles))
}

fn with_mode(mode: StepMode) -> PolicyConfig {
    let mut policy = PolicyConfig {
        linger_ratio: 0.0,
        fair_ratio: 0.0,
        ..PolicyConfig::default()
    };
    policy.step.mode = mode;
    policy
}

/// So many prefill labels, the rest decode; a single worker does both.
fn labels(prefill: usize, workers: usize) -> Option<Vec<Role>> {
    if workers == 1 {
        return Some(vec![Role::Mixed]);
    }
    let label = |at| {
        if at < prefill {
            Role::Prefill
        } else {
            Role::Decode
        }
    };
    (prefill < workers).then(|| (0..workers).map(label).collect())
}
