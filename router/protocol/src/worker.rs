//! What the processes of workers do: the loop of `dopd_mock::worker`, one event at a time.

use dopd_core::{cost::StepShape, units::Micros};
use dopd_mock::{
    model,
    seats::{Batch, Event, Row, Terms},
};
use dopd_router::wire::worker::{Welcome, attach_request};

use crate::{
    clock::Ev,
    process::{INTERVAL, LEASE, REPORTS_MAX, Step},
    world::World,
};

/// A process that ended for good order starts again after this time.
const RESTART_US: u64 = 100_000;

/// What a welcome is to the seat table.
pub(crate) fn session_up(welcome: &Welcome) -> Event {
    Event::SessionUp(Terms::of(welcome))
}

impl World {
    /// After each event of a worker: what the table asks for, a step, a report; then the checks.
    pub(crate) fn settle_worker(&mut self, worker: usize) {
        let process = &mut self.processes[worker];
        let time = process.time(self.clock.now());
        for (link, bytes) in std::mem::take(&mut process.drained) {
            process.seats.handle(time, Event::Drained(link, bytes));
        }
        self.perform(worker);
        if self.has_room(worker) {
            if self.processes[worker].step.is_none() {
                self.begin_step(worker);
                self.perform(worker);
            }
            self.report(worker);
        }
        if let Err(why) = self.processes[worker].seats.check() {
            self.clock.broken(format!("w{worker}: {why}"));
        }
        self.watch_fences(worker);
        let process = &self.processes[worker];
        let is_told = process.stream.is_none() || !process.seats.is_dirty();
        if process.seats.label().drain && process.seats.live() == 0 && is_told {
            self.clock
                .say(|| format!("w{worker}      is drained and ends"));
            self.end_process(worker, false);
            let life = self.processes[worker].life;
            self.clock.after(RESTART_US, Ev::Restart(worker, life));
        }
    }

    fn has_room(&self, worker: usize) -> bool {
        let stream = self.processes[worker].stream;
        stream.is_none_or(|stream| self.streams[stream].up.len() < REPORTS_MAX)
    }

    fn begin_step(&mut self, worker: usize) {
        let pages_left_max = if self.clock.random.percent(50) { 1 } else { 3 };
        let process = &mut self.processes[worker];
        let time = process.time(self.clock.now());
        let Some(batch) = process.seats.begin_step(time, pages_left_max) else {
            return;
        };
        let us = self.plan.timings().step_us(StepShape {
            prefill: &batch.prefill,
            decode_seqs: batch.decode_seqs,
            decode_context_sum: batch.decode_context,
        });
        let us = us * self.clock.random.between(80, 120) / 100;
        let number = process.next_step();
        self.clock.say(|| {
            let Batch {
                decode_seqs,
                prefill,
                ..
            } = &batch;
            format!("w{worker}      step {number}: {decode_seqs} decode, prefill {prefill:?}")
        });
        let slots: Vec<u32> = batch.rows.iter().map(Row::slot).collect();
        let checked = self.clock.random.index(slots.len());
        process.step = Some(Step {
            number,
            batch,
            us: u32::try_from(us).unwrap_or(u32::MAX),
        });
        let event = Ev::StepEnd(worker, process.life, number);
        self.clock.after(us, event);
        self.check_kv(worker, slots[checked]);
    }

    pub(crate) fn step_end(&mut self, worker: usize, life: u32, number: u64) {
        let now = self.clock.now();
        if !self.is_alive(worker, life) {
            return;
        }
        let process = &mut self.processes[worker];
        if process.stuck > now {
            let at = process.stuck;
            return self.clock.at(at, Ev::StepEnd(worker, life, number));
        }
        let Some(step) = process.step.take_if(|step| step.number == number) else {
            return;
        };
        let time = process.time(now);
        process.seats.finish_step(time, &step.batch, step.us);
        self.settle_worker(worker);
    }

    /// Sends a report if something changed or the heartbeat is due.
    fn report(&mut self, worker: usize) {
        let now = self.clock.now();
        let process = &mut self.processes[worker];
        let Some(index) = process.stream else { return };
        let is_due = process.time(now.since(process.reported)).0 * 10 >= INTERVAL.0 * 9;
        if !process.seats.is_dirty() && !is_due {
            return;
        }
        let expected = |step: &Step| step.batch.expected_us();
        let next_step_us = process.step.as_ref().map_or(0, expected);
        let Some(mut report) = process.seats.take_report(next_step_us) else {
            return;
        };
        let silent_ms = process.time(now.since(process.last_cmd)).0 / 1_000;
        report.heard_ms = u32::try_from(silent_ms).unwrap_or(u32::MAX);
        process.reported = now;
        let arrived = report.arrived_slots.clone();
        if report.role_epoch < process.role_epoch {
            self.clock.broken(format!(
                "role_epoch_never_falls: w{worker} says {} after {}",
                report.role_epoch, process.role_epoch
            ));
        }
        process.role_epoch = report.role_epoch;
        let told = [report.preempted, report.steps_mixed, report.steps_paused];
        let before = std::mem::replace(&mut process.told, told);
        self.counts.preempted += told[0].saturating_sub(before[0]);
        self.counts.mixed += told[1].saturating_sub(before[1]);
        self.counts.pauses += told[2].saturating_sub(before[2]);
        let pages =
            report.pages_free + report.pages_owned + report.pages_cached + report.pages_fenced;
        if pages != self.plan.pages {
            self.clock.broken(format!(
                "accounting_closes: w{worker} reports {pages} pages of {}",
                self.plan.pages
            ));
        }
        if self.plan.has_old_messages && !report.closed_slots.is_empty() {
            process.said = Some(report.clone());
        }
        self.send_report(index, attach_request::Kind::Report(report));
        for slot in arrived {
            self.check_kv(worker, slot);
        }
    }

    /// `attend_only_complete_current_own_pages`: every entry of a seat's pages is the one that its
    /// own tokens give, computed here or brought from elsewhere.
    fn check_kv(&mut self, worker: usize, slot: u32) {
        let seats = &self.processes[worker].seats;
        let Some(seat) = seats.seat(slot) else { return };
        let Some(prompt) = self.prompts.get(&seat.prompt_hash) else {
            return;
        };
        let tokens = prompt.iter().chain(&seat.answer);
        let mut entry = model::CHAIN_START;
        for (position, &token) in (0..seat.computed).zip(tokens) {
            entry = model::next_entry(entry, token);
            if seats.pool().entry(&seat.pages, position) != entry {
                return self.clock.broken(format!(
                    "attend_only_complete_current_own_pages: w{worker} slot {slot} position \
                     {position} of {}",
                    seat.computed
                ));
            }
        }
    }

    /// Puts a message on its way to the router.
    pub(crate) fn send_report(&mut self, index: usize, kind: attach_request::Kind) {
        let stream = &mut self.streams[index];
        if stream.is_broken {
            return;
        }
        let delay = self.clock.random.delay_us(self.plan.delay_us);
        let at = stream.up.push(self.clock.now(), delay, kind);
        self.clock.at(at, Ev::Up(index));
    }

    /// The worker looks at its clock.
    pub(crate) fn poll(&mut self, worker: usize, life: u32) {
        if !self.is_alive(worker, life) {
            return;
        }
        let now = self.clock.now();
        let process = &self.processes[worker];
        let period = process.lasts(INTERVAL);
        let silence = process.time(now.since(process.last_cmd));
        let stream = process.stream;
        self.clock.after(period.0, Ev::Poll(worker, life));
        if let Some(index) = stream.filter(|_| silence >= LEASE) {
            self.counts.leases_over += 1;
            self.clock
                .say(|| format!("w{worker}      nothing heard for {silence:?}"));
            return self.worker_sees(index);
        }
        self.settle_worker(worker);
    }

    /// Plans a look at the fences when the oldest is due.
    fn watch_fences(&mut self, worker: usize) {
        let process = &mut self.processes[worker];
        let Some(wake) = process.seats.next_wake() else {
            process.fence_poll = None;
            return;
        };
        let at = process.when(wake);
        if process.fence_poll.is_none_or(|planned| planned > at) {
            process.fence_poll = Some(at);
            let late = self.clock.random.delay_us(2_000);
            let life = process.life;
            self.clock
                .at(at.plus(Micros(late)), Ev::Fence(worker, life));
        }
        self.counts.fences += 1;
    }

    pub(crate) fn fence_poll(&mut self, worker: usize, life: u32) {
        if self.is_alive(worker, life) {
            let process = &mut self.processes[worker];
            process.fence_poll = None;
            let time = process.time(self.clock.now());
            process.seats.handle(time, Event::Tick);
            self.settle_worker(worker);
        }
    }

    /// The process is gone; quiet: nobody is told.
    pub(crate) fn end_process(&mut self, worker: usize, is_quiet: bool) {
        let life = self.processes[worker].life;
        if let Some(index) = self.processes[worker].stream {
            if is_quiet {
                self.streams[index].is_open = false;
                self.streams[index].is_broken = true;
            } else {
                self.hang_up(index);
            }
        }
        self.processes[worker].reset(&self.plan, worker);
        self.end_links(worker, life, is_quiet);
    }

    pub(crate) fn restart(&mut self, worker: usize, life: u32) {
        let process = &mut self.processes[worker];
        if process.life != life || process.is_up {
            return;
        }
        process.is_up = true;
        self.clock.say(|| format!("w{worker}      starts"));
        let delay = self.clock.random.between(0, 50_000);
        self.clock.after(delay, Ev::Dial(worker, life));
        self.clock.after(delay, Ev::Poll(worker, life));
    }
}
