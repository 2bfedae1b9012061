//! The sums against those that are worked out anew.

use super::*;
use crate::{
    brain::{breaker::Outcome, config::BrainConfig, random::Random},
    cost::Timings,
    event::Suspicion,
    fleet::{Role, WorkerFacts},
    policy::PolicyConfig,
    units::Pages,
};

fn facts(number: u64, random: &mut Random) -> WorkerFacts {
    let mut up_to = |most| random.between(Micros(0), Micros(most)).0;
    let roles = [Role::Prefill, Role::Decode, Role::Mixed];
    WorkerFacts {
        name: format!("worker-{number}"),
        incarnation: 1 + number,
        role: roles[usize::try_from(up_to(2)).expect("small")],
        page_size: 16,
        page_bytes: 16,
        pages_total: Pages(100 + u32::try_from(up_to(3)).expect("small")),
        num_seqs_max: 4,
        batch_tokens_max: Tokens(8_192),
        model_len_max: Tokens(131_072),
        timings: Timings {
            weights_us: up_to(5) as f64 * 1_000.0,
            ..Timings::h100_8b()
        },
    }
}

/// Totals and speed of each group, and totals of those that stay.
type Sums = ([(GroupTotals, u64, Option<Speed>); 2], GroupTotals);

fn sums(workers: &Workers) -> Sums {
    let of = |tally: &Tally| {
        (
            tally.totals,
            tally.tokens_per_ks,
            tally.speeds.first().copied(),
        )
    };
    let [prompts, decode] = &workers.tallies;
    ([of(prompts), of(decode)], workers.staying.totals)
}

fn anew(workers: &Workers) -> Sums {
    let (mut tallies, mut staying) = (<[Tally; 2]>::default(), Tally::default());
    for (key, worker) in &workers.by_key {
        let one = worker.counted(key);
        if one.is_usable {
            tallies[one.group as usize].add(&one);
        }
        if one.is_staying {
            staying.add(&one);
        }
    }
    let workers = Workers {
        tallies,
        staying,
        ..Workers::default()
    };
    sums(&workers)
}

fn limited(workers: &Workers) -> Vec<bool> {
    let of_all = workers.by_key.iter();
    of_all
        .map(|(_, worker)| worker.is_limited && worker.breaker.is_shut())
        .collect()
}

#[test]
fn sums_are_those_of_all_workers_after_whatever_happens() {
    let mut random = Random::new(5);
    let config = BrainConfig::default();
    let mut workers = Workers::new(&PolicyConfig::default());
    let (mut keys, mut seen) = (Vec::new(), [0; 2]);
    for number in 0..3_000_u64 {
        let now = Micros(number * 100_000);
        let mut up_to = |most| usize::try_from(random.between(Micros(0), Micros(most)).0);
        let what = up_to(9).expect("small");
        let at = up_to(11).expect("small");
        match (what, keys.get(at).copied()) {
            (_, None) => {
                let facts = facts(number, &mut random);
                keys.push(workers.add(SessionId(number), facts).0);
            }
            (0, Some(key)) => {
                keys.swap_remove(at);
                assert!(workers.remove(key).is_some());
            }
            (1, Some(key)) => {
                workers.update(key, |worker| worker.is_draining = !worker.is_draining);
            }
            (2, Some(key)) => {
                workers.update(key, |worker| {
                    let was_well = worker.ejected.is_none();
                    worker.ejected = was_well.then_some(Suspicion::Silent);
                });
            }
            (3, Some(key)) => {
                workers.update(key, |worker| worker.role = Role::Decode);
            }
            (_, Some(key)) => {
                let outcomes = [
                    Outcome::Lost,
                    Outcome::Failed,
                    Outcome::Due,
                    Outcome::Placed,
                ];
                let outcome = *outcomes.get(what - 4).unwrap_or(&Outcome::Succeeded);
                workers.update(key, |worker| {
                    worker.breaker.hear(outcome, now, &config, &mut random)
                });
            }
        }
        assert_eq!(sums(&workers), anew(&workers), "after {number} changes");
        let before = limited(&workers);
        seen[0] += usize::from(before.contains(&true));
        seen[1] += usize::from(workers.broken == [0, 0]);
        workers.limit(Group::Prompts);
        workers.limit(Group::Decode);
        assert_eq!(before, limited(&workers), "after {number} changes");
    }
    assert!(seen.iter().all(|&times| times > 100), "{seen:?}");
}
