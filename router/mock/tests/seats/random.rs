//! Two workers, a router and a network under random events; then the faults stop and everything
//! must end clean.

use dopd_core::units::Micros;
use dopd_mock::seats::Event;
use proptest::prelude::*;

use crate::{
    network::{Network, Side},
    requests::{Ask, Requests, State},
};

/// Rounds without faults after which everything must be over.
const ROUNDS_MAX: usize = 2_000;

struct World {
    network: Network,
    requests: Requests,
}

/// What can happen, with how often.
#[derive(Clone, Copy, Debug)]
enum Act {
    Command,
    Report,
    Flush,
    Forward,
    Backward,
    Progress,
    Step,
    Place,
    Pair,
    Move,
    Cancel,
    Timer,
    LoseAtRouter,
    LoseAtWorker,
    Attach,
    BreakLink,
    Tick,
    Preempt,
    Crash,
    Tamper,
    Flip,
    Drain,
}

fn act() -> impl Strategy<Value = Act> {
    use Act::*;
    prop_oneof![
        60 => Just(Command), 60 => Just(Report), 60 => Just(Flush), 160 => Just(Forward),
        80 => Just(Backward), 40 => Just(Progress), 60 => Just(Step), 3 => Just(Place),
        40 => Just(Pair), 25 => Just(Move), 2 => Just(Cancel), 3 => Just(Timer),
        1 => Just(LoseAtRouter), 1 => Just(LoseAtWorker), 30 => Just(Attach), 2 => Just(BreakLink),
        4 => Just(Tick), 2 => Just(Preempt), 1 => Just(Crash), 2 => Just(Tamper), 1 => Just(Flip), 1 => Just(Drain),
    ]
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = (1_u32..70, 1_u32..60, 0_u64..1_000);
    let ask = ask.prop_map(|(length, most, seed)| Ask::new(length, most, seed));
    prop::collection::vec(ask, 1..16)
}

impl World {
    fn new(asks: Vec<Ask>) -> Self {
        let mut world = Self {
            network: Network::new(),
            requests: Requests::new(asks),
        };
        for worker in 0..2 {
            world.requests.attach(&mut world.network, worker);
        }
        world
    }

    fn act(&mut self, act: Act, pick: usize) {
        let (worker, ask) = (pick % 2, pick / 2 % self.requests.asks.len());
        let at = pick / 2 % self.network.conns.len().max(1);
        let some = 0..=pick / 16 % 4;
        match act {
            Act::Command => some.for_each(|_| self.command(worker)),
            Act::Report => some.for_each(|_| self.report(worker)),
            Act::Flush => self.flush(worker),
            Act::Forward => some.for_each(|_| self.network.forward(at)),
            Act::Backward => some.for_each(|_| self.network.backward(at)),
            Act::Progress => self.network.progress(at, worker == 0),
            Act::Step => self.network.step(worker),
            Act::Place => self.requests.place(ask, worker),
            Act::Pair => self.requests.place_pair(ask, worker),
            Act::Move => self.requests.move_on(ask),
            Act::Cancel => self.requests.cancel(ask),
            Act::Timer => self.requests.hand_off_timer(ask),
            Act::LoseAtRouter => self.requests.session_lost(worker),
            Act::LoseAtWorker => self.lose_at_worker(worker),
            Act::Attach => self.attach(worker),
            Act::BreakLink => {
                if let Some(conn) = self.network.conns.get_mut(at) {
                    conn.is_broken = true;
                }
            }
            Act::Tick => self.tick(worker, 300),
            Act::Preempt => {
                let slot = u32::try_from(pick / 2 % 4).expect("small");
                self.network.handle(worker, Event::Preempt(slot));
            }
            Act::Crash => {
                self.requests.sessions[worker].worker_has_it = false;
                self.requests.sessions[worker].reports.clear();
                self.network.crash(worker);
            }
            Act::Tamper => self.network.tamper(at, worker == 0),
            Act::Flip => self.network.flip = Some(pick * 37),
            Act::Drain => self
                .requests
                .set_drain(worker, (pick / 2).is_multiple_of(4)),
        }
        // What a step would read; checked where pages change.
        if let Act::Step | Act::Forward = act {
            self.requests.check_kv(&self.network, 0);
            self.requests.check_kv(&self.network, 1);
        }
    }

    /// The next command reaches the worker, even if it is of a session that it has lost.
    fn command(&mut self, worker: usize) {
        if let Some((session, command)) = self.requests.sessions[worker].commands.pop_front() {
            self.network
                .handle(worker, Event::Command(session, command));
        }
    }

    /// The side that does not know yet learns that the session is over; after that, a new one.
    fn attach(&mut self, worker: usize) {
        let session = &self.requests.sessions[worker];
        match (session.router_has_it, session.worker_has_it) {
            (true, false) => self.requests.session_lost(worker),
            (false, true) => self.lose_at_worker(worker),
            _ => self.requests.attach(&mut self.network, worker),
        }
    }

    fn flush(&mut self, worker: usize) {
        if self.network.workers[worker].is_dirty()
            && let Some(report) = self.network.workers[worker].take_report(0)
        {
            self.requests.sessions[worker].reports.push_back(report);
        }
    }

    fn report(&mut self, worker: usize) {
        if let Some(report) = self.requests.sessions[worker].reports.pop_front() {
            self.requests.report(worker, &report);
        }
    }

    fn lose_at_worker(&mut self, worker: usize) {
        self.requests.sessions[worker].worker_has_it = false;
        self.network.handle(worker, Event::SessionLost);
    }

    fn tick(&mut self, worker: usize, millis: u64) {
        self.network.now = self.network.now.plus(Micros::from_millis(millis));
        self.network.handle(worker, Event::Tick);
    }

    /// No more faults: everything that is under way gets through, what is stuck is freed by the
    /// timers, every request is placed until it ends.
    fn fault_free_round(&mut self, round: usize) {
        for worker in 0..2 {
            self.act(Act::Attach, worker);
            self.act(Act::Attach, worker);
            if round == 0 {
                self.requests.set_drain(worker, false);
            }
            while !self.requests.sessions[worker].commands.is_empty() {
                self.act(Act::Command, worker);
            }
            self.act(Act::Step, worker);
            self.act(Act::Step, worker);
            self.act(Act::Flush, worker);
            while !self.requests.sessions[worker].reports.is_empty() {
                self.act(Act::Report, worker);
            }
        }
        for at in 0..self.network.conns.len() {
            for act in [Act::Progress, Act::Forward, Act::Forward, Act::Backward] {
                self.act(act, 2 * at);
            }
        }
        for ask in 0..self.requests.asks.len() {
            if round % 10 == 9 {
                self.act(Act::Timer, 2 * ask);
            }
            self.act(Act::Place, 2 * ask + round % 2);
        }
        if round % 10 == 9 {
            self.tick(0, 500);
            self.tick(1, 0);
        }
    }

    fn is_over(&self) -> bool {
        let are_ended = self.requests.asks.iter().all(|ask| ask.state == State::End);
        let are_clean = self
            .network
            .workers
            .iter()
            .all(dopd_mock::seats::Seats::is_clean);
        let mut sessions = self.requests.sessions.iter();
        are_ended && are_clean && sessions.all(|session| session.slots.is_empty())
    }

    /// `every_fault_free_run_ends_clean`, `terminal_state_is_clean`.
    fn end_clean(&mut self) {
        let mut rounds = 0..ROUNDS_MAX;
        while !self.is_over() {
            let Some(round) = rounds.next() else {
                panic!("every_fault_free_run_ends_clean: {:?}", self.requests);
            };
            self.fault_free_round(round);
        }
        for ask in &self.requests.asks {
            assert!(ask.is_cancelled || ask.got == ask.answer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// All safety invariants hold after every event, and everything ends once faults stop.
    #[test]
    fn random_events_keep_every_invariant(
        asks in asks(),
        acts in prop::collection::vec((act(), any::<u16>()), 0..1_000),
    ) {
        let mut world = World::new(asks);
        for (act, pick) in acts {
            world.act(act, usize::from(pick));
        }
        world.end_clean();
    }
}

/// Two full workers, a move each way: both are refused, both requests run on.
#[test]
fn full_pools_opposite_moves_end() {
    let ask = |seed| Ask::new(100, 30, seed);
    let mut world = World::new(vec![ask(1), ask(2)]);
    world.act(Act::Place, 0);
    world.act(Act::Place, 3);
    for _ in 0..10 {
        for worker in 0..2 {
            world.act(Act::Command, worker);
            world.act(Act::Step, worker);
            world.act(Act::Flush, worker);
            world.act(Act::Report, worker);
        }
    }
    world.act(Act::Move, 0);
    world.act(Act::Move, 2);
    assert!(
        world
            .requests
            .asks
            .iter()
            .all(|ask| ask.state == State::Moving)
    );
    for worker in 0..2 {
        world.act(Act::Command, worker);
        world.act(Act::Flush, worker);
        while !world.requests.sessions[worker].reports.is_empty() {
            world.act(Act::Report, worker);
        }
    }
    assert!(
        world
            .requests
            .asks
            .iter()
            .all(|ask| ask.state == State::Run)
    );
    world.end_clean();
}

/// The random events reach what they are meant to test: hand-offs, fences, late and damaged writes.
#[test]
fn random_events_reach_hand_offs_and_fences() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut arrivals, mut fences, mut late_writes, mut flips) = (0, 0, 0, 0);
    for _ in 0..60 {
        let acts = prop::collection::vec((act(), any::<u16>()), 1_000);
        let world = asks().new_tree(&mut runner).expect("asks").current();
        let mut world = World::new(world);
        for (act, pick) in acts.new_tree(&mut runner).expect("acts").current() {
            let has_fence =
                |world: &World| world.network.workers.iter().any(|w| w.pool().fenced() > 0);
            let was_fenced = has_fence(&world);
            if let Act::Report = act {
                let session = &world.requests.sessions[usize::from(pick) % 2];
                arrivals += session.reports.front().map_or(0, |r| r.arrived_slots.len());
            }
            world.act(act, usize::from(pick));
            fences += usize::from(!was_fenced && has_fence(&world));
            let up =
                |conn: &&crate::network::Conn| conn.target == Side::Up && !conn.forward.is_empty();
            late_writes +=
                usize::from(has_fence(&world) && world.network.conns.iter().any(|c| up(&c)));
        }
        flips += world.network.flips;
    }
    assert!(
        arrivals > 20 && fences > 5 && late_writes > 50 && flips > 5,
        "{arrivals} {fences} {late_writes} {flips}"
    );
}
