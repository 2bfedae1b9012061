//! The router's commands: Open, Send, Close, SetRole.

use dopd_core::units::Micros;
use dopd_router::wire::worker::{
    self as wire, CloseReason, Endpoint, Grant, KvScrub, command, open,
};

use super::{
    Effect, Label, SLOTS_MAX, Seats,
    types::{Phase, Seat, count},
};
use crate::model::{self, PAGE_SIZE};

impl Seats {
    pub(super) fn command(&mut self, now: Micros, command: wire::Command) {
        match command.kind {
            Some(command::Kind::Open(open)) => self.open(now, open),
            Some(command::Kind::Send(send)) => self.send(send.slot, send.grant),
            Some(command::Kind::Close(close)) => {
                // Unknown: its `closed` is on the way; a second one would answer another Open.
                if self.seat(close.slot).is_some() {
                    self.close(now, close.slot, CloseReason::Asked, "");
                }
            }
            Some(command::Kind::SetRole(role)) => self.set_role(&role),
            None => self.broken("command without a kind".to_owned()),
        }
    }

    pub(super) fn broken(&mut self, why: String) {
        self.effects.push(Effect::Break(why));
    }

    fn open(&mut self, now: Micros, open: wire::Open) {
        let slot = open.slot;
        if slot >= SLOTS_MAX {
            return self.broken(format!("slot {slot} is above {SLOTS_MAX}"));
        }
        if self.seat(slot).is_some() {
            return self.broken(format!("slot {slot} is in use"));
        }
        if let Err(why) = self.acceptable(&open) {
            return self.say_closed(slot, CloseReason::Error, &why);
        }
        if self.label.drain {
            return self.say_closed(slot, CloseReason::Refused, "draining");
        }
        if self.live >= self.config.num_seqs_max {
            return self.say_closed(slot, CloseReason::Refused, "no sequence place");
        }
        let scrub = self.session.map_or(KvScrub::Never, |terms| terms.scrub);
        let Some(pages) = self.pool.allocate(open.pages, open.tenant, scrub) else {
            return self.say_closed(slot, CloseReason::Refused, "no pages");
        };
        self.seat_down(now, open, pages);
    }

    /// Whether an Open can be served at all; what fails here would fail at every worker.
    fn acceptable(&self, open: &wire::Open) -> Result<(), String> {
        let (pages, prompt) = (open.pages, open.prompt_tokens);
        if prompt == 0 || prompt >= self.config.model_len_max {
            let most = self.config.model_len_max;
            return Err(format!(
                "prompt of {prompt} tokens, must be 1 to {most} - 1"
            ));
        }
        let held = match &open.kind {
            Some(open::Kind::Compute(compute)) => count(compute.answer.len()),
            Some(open::Kind::Import(import)) => import.have.saturating_sub(1),
            None => 0,
        };
        let held = prompt.saturating_add(held);
        if u64::from(pages) * u64::from(PAGE_SIZE) < u64::from(held) {
            return Err(format!(
                "{pages} pages do not hold {held} tokens of prompt and answer"
            ));
        }
        let bias = open.adjustments.iter().flat_map(|a| a.bias_tokens.iter());
        if let Some(token) = bias.max().filter(|token| **token >= model::VOCAB_SIZE) {
            let vocab_size = model::VOCAB_SIZE;
            return Err(format!("token id {token}, the vocabulary has {vocab_size}"));
        }
        match &open.kind {
            None => Err("open without a kind".to_owned()),
            Some(open::Kind::Import(_)) => Ok(()),
            Some(open::Kind::Compute(compute)) => {
                let hash = model::prompt_hash(&compute.prompt);
                if compute.prompt.len() != prompt as usize || hash != open.prompt_hash {
                    return Err(format!(
                        "prompt of {} tokens, hash {hash:016x}; announced {prompt}, {:016x}",
                        compute.prompt.len(),
                        open.prompt_hash
                    ));
                }
                Ok(())
            }
        }
    }

    fn seat_down(&mut self, _now: Micros, open: wire::Open, pages: Vec<u32>) {
        let (slot, life) = (open.slot, self.lives);
        let mut seat = Box::new(Seat {
            life,
            priority: open.priority,
            tenant: open.tenant,
            tpot: Micros(u64::from(open.slo_tpot_us)),
            stay: None,
            prompt_tokens: open.prompt_tokens,
            prompt_hash: open.prompt_hash,
            have: 0,
            sampling: open.sampling.unwrap_or_default(),
            adjustments: open.adjustments,
            prompt_logprobs: open.prompt_logprobs,
            limits: open.limits.unwrap_or_default(),
            pages,
            todo: Vec::new(),
            answer: Vec::new(),
            is_slow: false,
            computed: 0,
            phase: Phase::Run,
        });
        match open.kind {
            Some(open::Kind::Import(import)) => {
                let nonce = self.mint_nonce();
                seat.have = import.have;
                seat.phase = Phase::Reserved { nonce };
                self.imports.insert(nonce, slot);
                self.columns.opened_slots.push(slot);
                self.columns.opened_grants.push(self.grant(nonce));
                self.is_dirty = true;
            }
            Some(open::Kind::Compute(compute)) => {
                seat.todo = compute.prompt;
                seat.todo.extend_from_slice(&compute.answer);
                seat.answer = compute.answer;
                self.active.push((slot, life));
            }
            None => {}
        }
        self.lives += 1;
        self.live += 1;
        let index = slot as usize;
        if self.by_slot.len() <= index {
            self.by_slot.resize_with(index + 1, || None);
        }
        self.by_slot[index] = Some(seat);
    }

    /// A ticket never given before by this process, nor, but for chance, by any other.
    fn mint_nonce(&mut self) -> u64 {
        self.nonces += 1;
        model::mix(self.config.nonce_seed ^ model::mix(self.nonces))
    }

    fn grant(&self, nonce: u64) -> Grant {
        Grant {
            worker: self.config.worker.clone(),
            incarnation: self.config.incarnation,
            endpoints: vec![Endpoint {
                transport: "tcp".to_owned(),
                address: self.config.data_address.clone(),
                host: String::new(),
            }],
            nonce,
        }
    }

    fn set_role(&mut self, role: &wire::SetRole) {
        if role.epoch <= self.label.epoch {
            return;
        }
        self.label = Label {
            role: role.role(),
            drain: role.drain,
            epoch: role.epoch,
        };
        self.is_dirty = true;
    }
}
