//! Waiting times against theory: one and several servers of constant service, Poisson arrivals.

use dopd_core::{
    fleet::Role,
    policy::{Bind, Order, PolicyConfig},
    step::StepMode,
    units::{Micros, Tokens},
};
use dopd_sim::{outcome::Outcome, scenario::TraceRequest};

use super::support::{all_finish, is_near, mean, of, poisson, run, sojourns, spec};

const PROMPT: u32 = 1_000;

/// Each step computes one prompt, whose answer is one token: a server of constant service.
fn servers(count: usize, requests: Vec<TraceRequest>) -> (Outcome, f64) {
    let mut policy = PolicyConfig::plain();
    policy.order = Order::Fcfs;
    policy.bind = Bind::Late;
    policy.bind_ahead = Micros(0);
    policy.prefill_tokens_max = Tokens(1);
    policy.step.mode = StepMode::Fill;
    let mut worker = spec(Role::Mixed);
    worker.batch_tokens_max = PROMPT;
    worker.num_seqs_max = 64;
    let service = worker.timings.prefill_us(Tokens(PROMPT)).0 as f64;
    let mut scenario = of(policy, vec![worker; count], requests);
    scenario.network = Micros(0);
    let outcome = run(&scenario);
    all_finish(&outcome);
    (outcome, service)
}

fn arrivals(count: usize, servers: usize, load: f64, seed: u64) -> Vec<TraceRequest> {
    let service_s = spec(Role::Mixed).timings.prefill_us(Tokens(PROMPT)).0 as f64 / 1e6;
    let rate = load * servers as f64 / service_s;
    poisson(count, rate, seed, |_| (PROMPT, 1))
}

/// Mean sojourn of M/D/c by Crommelin: those in the system a service time apart are
/// `max(n - c, 0)` and Poisson arrivals; then Little.
fn theory(servers: usize, load: f64, service_us: f64) -> f64 {
    const STATES: usize = 600;
    let per_service = load * servers as f64;
    let mut poisson = vec![libm::exp(-per_service)];
    for n in 1..STATES {
        let before = poisson[n - 1];
        poisson.push(before * per_service / n as f64);
    }
    let mut states = vec![0.0; STATES];
    states[0] = 1.0;
    for _ in 0..4_000 {
        let mut next = vec![0.0; STATES];
        for (n, part) in states.iter().enumerate().filter(|(_, part)| **part > 1e-16) {
            let left = n.saturating_sub(servers);
            for (new, chance) in poisson.iter().enumerate().take_while(|(new, chance)| {
                left + new < STATES && (*new as f64 <= per_service || **chance > 1e-16)
            }) {
                next[left + new] += part * chance;
            }
        }
        states = next;
    }
    let inside: f64 = states
        .iter()
        .enumerate()
        .map(|(n, part)| n as f64 * part)
        .sum();
    inside / per_service * service_us
}

/// The same arrivals at the same servers, first come first served, by the textbook's recursion.
fn naive(requests: &[TraceRequest], servers: usize, service_us: f64) -> f64 {
    let mut free_at = vec![0.0_f64; servers];
    let mut sum = 0.0;
    for request in requests {
        let arrival = request.arrival.0 as f64;
        free_at.sort_unstable_by(f64::total_cmp);
        free_at[0] = free_at[0].max(arrival) + service_us;
        sum += free_at[0] - arrival;
    }
    sum / requests.len() as f64
}

fn agrees(servers_count: usize, load: f64, count: usize, percent: f64) {
    let requests = arrivals(count, servers_count, load, 7);
    let (outcome, service) = servers(servers_count, requests.clone());
    let seen = mean(sojourns(&outcome));
    is_near(seen, naive(&requests, servers_count, service), 0.01);
    is_near(seen, theory(servers_count, load, service), percent);
}

#[test]
fn theory_of_one_server_is_pollaczek_khinchine() {
    for load in [0.3, 0.6, 0.8, 0.9] {
        let wanted = 1.0 + load / (2.0 * (1.0 - load));
        is_near(theory(1, load, 1.0), wanted, 0.05);
    }
}

#[test]
fn one_server_waits_as_theory_says() {
    agrees(1, 0.5, 20_000, 2.0);
}

#[test]
fn four_servers_wait_as_theory_says() {
    agrees(4, 0.6, 20_000, 2.0);
}

#[test]
#[ignore = "long: make soak"]
fn servers_wait_as_theory_says_at_every_load() {
    for servers in [1, 2, 4, 8] {
        for load in [0.3, 0.6, 0.8, 0.9] {
            agrees(servers, load, 1_000_000, 2.0);
        }
    }
}

/// Little's law at the servers. How many are in service on average is what workers measure, how
/// many come, and for how long, what clients see: neither is made of the other.
#[test]
fn little_holds_at_the_servers() {
    let requests = arrivals(5_000, 2, 0.7, 3);
    let (outcome, service) = servers(2, requests);
    let busy_us: u64 = outcome.workers.iter().map(|worker| worker.prefill_us).sum();
    let end_us = outcome.end.0 as f64;
    let in_service = busy_us as f64 / end_us;
    let rate = outcome.requests.len() as f64 / end_us;
    is_near(in_service, rate * service, 1e-6);
    // Of the load that was asked for, as far as 5,000 arrivals tell.
    is_near(in_service / 2.0, 0.7, 3.0);
}
