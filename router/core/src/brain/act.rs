//! Carries out the cells of `table`: moves a sequence from phase to phase, opens and closes its
//! seats.

use super::{
    Brain,
    admit::Refusal,
    breaker::Outcome,
    explain::Chosen,
    pace::Run,
    pairs::Pair,
    peak::Stay,
    sequences::{Phase, Seat},
    table::{Cell, Input, PhaseKind, cell},
    timers::Timer,
};
use crate::{
    action::{Action, OpenKind, Violation},
    units::{Micros, Tokens},
};

impl Brain {
    /// Looks the cell up and carries it out. Some: the worker that caused this broke the protocol.
    pub(super) fn apply(&mut self, key: usize, input: Input) -> Option<Violation> {
        let phase = self.sequences.get(key)?.phase;
        match cell(input, phase.kind()) {
            Cell::Ignore => None,
            Cell::Break(why) => Some(why),
            Cell::OpenCurrent(worker) => self.open_current(key, worker),
            Cell::OpenNextPlanCurrent { decode, prefill } => self.open_pair(key, decode, prefill),
            Cell::OpenNext(worker) => self.open_next(key, phase.cur()?, worker),
            Cell::OpenCurrentAndSend => self.open_and_send(key, phase.cur()?, phase.nxt()?),
            Cell::Send => {
                let (cur, nxt) = (phase.cur()?, phase.nxt()?);
                self.send(cur, Some(nxt));
                self.set_phase(
                    key,
                    Phase::Shipping {
                        cur,
                        nxt,
                        timer: None,
                    },
                );
                self.start_handoff_timer(key);
                None
            }
            Cell::Deliver(tokens) => self.deliver(key, phase.cur()?, tokens),
            Cell::Switch(pos) => self.switch(key, phase.cur()?, phase.nxt()?, pos),
            Cell::Finish => {
                self.note_plain(key, Chosen::Finish);
                self.learn_length(key);
                self.observe(key, true);
                self.end(key, None)
            }
            Cell::End(why) => {
                if why.is_none() {
                    self.note_plain(key, Chosen::Cancel);
                }
                self.observe(key, false);
                self.end(key, why.map(Refusal::of))
            }
            Cell::Replay(fault) => self.replay(key, fault),
            Cell::GiveUpPlace => {
                self.close_seats(key);
                self.wait(key);
                None
            }
            Cell::CloseNext => {
                self.close(phase.nxt()?);
                self.set_phase(key, Phase::Run { cur: phase.cur()? });
                self.looks_again(key);
                None
            }
            Cell::GiveUpNext => self.give_up_next(key, phase.cur()?, phase.nxt()?),
        }
    }

    fn open_current(&mut self, key: usize, worker: usize) -> Option<Violation> {
        let cur = self.plan(key, worker, Stay::Here)?;
        self.placed(key, worker);
        self.open(key, cur, OpenKind::Compute);
        self.set_phase(key, Phase::Run { cur });
        None
    }

    fn open_pair(&mut self, key: usize, decode: usize, prefill: usize) -> Option<Violation> {
        let cur = self.plan(key, prefill, Stay::Passing)?;
        let nxt = self.plan(key, decode, Stay::Import)?;
        self.judge_pair((prefill, decode), Outcome::Placed);
        self.placed(key, prefill);
        self.open(key, nxt, OpenKind::Import);
        self.set_phase(key, Phase::Placing { cur, nxt });
        None
    }

    fn open_next(&mut self, key: usize, cur: Seat, worker: usize) -> Option<Violation> {
        let nxt = self.plan(key, worker, Stay::Import)?;
        self.judge_pair((cur.worker, worker), Outcome::Placed);
        self.open(key, nxt, OpenKind::Import);
        self.sequences.get_mut(key)?.moves += 1;
        self.set_phase(key, Phase::Moving { cur, nxt });
        None
    }

    fn open_and_send(&mut self, key: usize, cur: Seat, nxt: Seat) -> Option<Violation> {
        self.open(key, cur, OpenKind::Compute);
        self.send(cur, Some(nxt));
        self.set_phase(
            key,
            Phase::Shipping {
                cur,
                nxt,
                timer: None,
            },
        );
        None
    }

    fn deliver(&mut self, key: usize, cur: Seat, tokens: Tokens) -> Option<Violation> {
        let sequence = self.sequences.get_mut(key)?;
        if tokens > sequence.max_tokens.minus(sequence.answer) {
            return Some(Violation::TooManyTokens);
        }
        if tokens == Tokens(0) {
            return None;
        }
        self.answers(key, tokens);
        let sequence = self.sequences.get_mut(key)?;
        sequence.answer = sequence.answer.plus(tokens);
        sequence.first.get_or_insert(self.now);
        if sequence.leaves.is_some_and(|at| sequence.answer >= at) {
            sequence.leaves = None;
            self.leaving.insert(key);
        }
        let is_shipping = sequence.phase.kind() == PhaseKind::Shipping;
        self.trial_over(key);
        self.grew(key, cur);
        let worker = self.workers.get(cur.worker)?;
        let is_probe = worker.probe == Some(cur.slot);
        let is_first = worker.slots.is_prefilling(cur.slot);
        self.workers.made(cur.worker, cur.slot, tokens, is_first);
        if is_probe {
            self.judge(cur.worker, Outcome::Succeeded);
        }
        if is_shipping {
            self.start_handoff_timer(key);
        }
        None
    }

    fn switch(&mut self, key: usize, cur: Seat, nxt: Seat, pos: Tokens) -> Option<Violation> {
        let sequence = self.sequences.get_mut(key)?;
        if pos < sequence.answer || pos > sequence.max_tokens {
            return Some(Violation::WrongPosition);
        }
        let tokens = pos.minus(sequence.answer);
        self.answers(key, tokens);
        let sequence = self.sequences.get_mut(key)?;
        sequence.answer = pos;
        sequence.first.get_or_insert(self.now);
        let id = sequence.id;
        self.grew(key, nxt);
        let worker = self.workers.get(nxt.worker)?.session;
        self.note_plain(key, Chosen::Switch { worker });
        self.trial_over(key);
        self.judge_handoff(key, Outcome::Succeeded);
        self.workers
            .work(nxt.worker, |worker| worker.residents.runs(nxt.slot));
        self.set_phase(key, Phase::Run { cur: nxt });
        self.handoffs_total += 1;
        self.actions.push(Action::Switch {
            sequence: id,
            seat: self.seat_id(nxt)?,
        });
        self.close(cur);
        None
    }

    /// A destination is given up: whether or not the source is done, it is told to go on.
    fn give_up_next(&mut self, key: usize, cur: Seat, nxt: Seat) -> Option<Violation> {
        if let Some(worker) = self.workers.get(cur.worker).map(|worker| worker.session) {
            self.note_plain(key, Chosen::Stay { worker });
        }
        self.close(nxt);
        self.workers
            .work(cur.worker, |worker| worker.residents.stays(cur.slot));
        self.send(cur, None);
        self.set_phase(key, Phase::Run { cur });
        self.looks_again(key);
        None
    }

    /// It stays, and looks for a place anew with its next token; so often, and no more.
    fn looks_again(&mut self, key: usize) {
        let moves_max = self.config.moves_max;
        if let Some(sequence) = self.sequences.get_mut(key)
            && sequence.moves < moves_max
        {
            sequence.leaves = Some(sequence.answer.plus(Tokens(1)));
        }
    }

    /// How long an answer took, if it ran.
    fn observe(&mut self, key: usize, is_finished: bool) {
        let Some(sequence) = self.sequences.get(key) else {
            return;
        };
        let is_running = sequence.phase.kind() != PhaseKind::Wait;
        if let Some(first) = sequence.first.filter(|_| is_running) {
            self.pace.ended(Run {
                placed: sequence.placed,
                first,
                ended: self.now,
                prefill: sequence.prompt.plus(sequence.placed_at),
                made: sequence.answer.minus(sequence.placed_at),
                is_finished,
            });
        }
    }

    /// END: closes what is open, says why, forgets the sequence.
    pub(super) fn end(&mut self, key: usize, refusal: Option<Refusal>) -> Option<Violation> {
        if self.sequences.get(key)?.phase.kind() == PhaseKind::Wait {
            self.leave_wait(key);
        } else {
            self.close_seats(key);
        }
        self.trial_over(key);
        let sequence = self.sequences.get(key)?.id;
        if let Some(refusal) = refusal {
            let why = refusal.why;
            self.note_plain(key, Chosen::Reject { why });
            self.is_refused(key, why);
            self.actions.push(refusal.of_sequence(sequence));
        }
        self.leaves(key);
        self.leaving.remove(&key);
        if let Some(deadline) = self.sequences.remove(key) {
            self.timers
                .clear(deadline, Timer::Deadline(sequence.request));
        }
        None
    }

    /// WAIT: into the queue. Every seat is closed.
    pub(super) fn wait(&mut self, key: usize) {
        self.trial_over(key);
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        let timer =
            (!self.workers.is_any_usable()).then(|| self.now.plus(self.config.no_worker_wait));
        sequence.phase = Phase::Wait { timer };
        sequence.leaves = None;
        self.leaving.remove(&key);
        self.enqueue(key);
        self.sequences.waits(key);
        if let Some(at) = timer {
            self.timers.set(at, Timer::Waited(key));
        }
    }

    fn leave_wait(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        if let Phase::Wait { timer: Some(at) } = sequence.phase {
            self.timers.clear(at, Timer::Waited(key));
            sequence.phase = Phase::Wait { timer: None };
        }
        self.dequeue(key);
        self.sequences.waits_no_longer(key);
    }

    /// WAIT ends with a place at that worker.
    fn placed(&mut self, key: usize, worker: usize) {
        self.leave_wait(key);
        self.was_placed(key);
        if let Some(sequence) = self.sequences.get_mut(key) {
            sequence.placed_at = sequence.answer;
            (sequence.placed, sequence.first) = (self.now, None);
        }
        self.begin_trial(key, worker);
    }

    /// Changes the phase; a hand-off timer ends with its phase.
    fn set_phase(&mut self, key: usize, phase: Phase) {
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        if let Phase::Shipping {
            timer: Some(at), ..
        } = sequence.phase
        {
            self.timers.clear(at, Timer::Handoff(key));
        }
        sequence.phase = phase;
    }

    /// Closes whatever seats it has; those that are gone already stay gone. The caller ends the
    /// phase.
    pub(super) fn close_seats(&mut self, key: usize) {
        let Some(phase) = self.sequences.get(key).map(|sequence| sequence.phase) else {
            return;
        };
        if let Phase::Shipping {
            cur,
            nxt,
            timer: Some(at),
        } = phase
        {
            self.timers.clear(at, Timer::Handoff(key));
            self.outlived(at, (cur.worker, nxt.worker));
        }
        for seat in [phase.cur(), phase.nxt()].into_iter().flatten() {
            self.close(seat);
        }
    }

    /// A sequence ended before its hand-off, whose timer is set. If that had as long as two workers
    /// have that know each other, these have had their time as well: else short answers would hide
    /// a way that is cut.
    fn outlived(&mut self, timer: Micros, pair: Pair) {
        let had_its_time = self.now.plus(self.config.handoff_meet) >= timer;
        let is_there = |worker| self.workers.get(worker).is_some();
        if had_its_time && is_there(pair.0) && is_there(pair.1) {
            self.pairs.note_tried(pair);
        }
    }

    /// The time that a hand-off may take, from now on, unless it runs already.
    fn start_handoff_timer(&mut self, key: usize) {
        let Some(sequence) = self.sequences.get_mut(key) else {
            return;
        };
        let to_ship = sequence.to_prefill();
        let Phase::Shipping {
            cur,
            nxt,
            timer: timer @ None,
        } = &mut sequence.phase
        else {
            return;
        };
        let Some(source) = self.workers.get(cur.worker) else {
            return;
        };
        let bytes = u64::from(source.pages_of(to_ship).0).saturating_mul(source.facts.page_bytes);
        // The source lets go at the end of a step, so its step is part of the way.
        let step = Micros(u64::from(source.load.step_us));
        let predicted = source.facts.timings.handoff_us(bytes).plus(step);
        let mut longest = predicted.plus(predicted).plus(self.config.handoff_slack);
        if !self.pairs.is_tried((cur.worker, nxt.worker)) {
            longest = longest.plus(self.config.handoff_meet);
        }
        let at = self.now.plus(longest.min(self.config.handoff_max));
        *timer = Some(at);
        self.timers.set(at, Timer::Handoff(key));
    }
}
