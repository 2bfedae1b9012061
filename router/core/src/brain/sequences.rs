//! What the brain knows of a sequence and of its request while they live.

use std::{collections::BTreeMap, sync::Arc};

use slab::Slab;

use super::{
    peak::Shape,
    queue::{Lane, QueueKey},
    table::PhaseKind,
};
use crate::{
    ids::{RequestId, SequenceId, SlotId},
    request::PrefixMark,
    units::{Micros, Tokens},
};

/// A slot of an attached worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// Key of the worker.
    pub(super) worker: usize,
    pub(super) slot: SlotId,
}

/// Where a sequence stands; the columns of `table`, with what each holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Wait {
        timer: Option<Micros>,
    },
    Placing {
        cur: Seat,
        nxt: Seat,
    },
    Run {
        cur: Seat,
    },
    Moving {
        cur: Seat,
        nxt: Seat,
    },
    Shipping {
        cur: Seat,
        nxt: Seat,
        timer: Option<Micros>,
    },
}

impl Phase {
    pub(super) const fn kind(self) -> PhaseKind {
        match self {
            Self::Wait { .. } => PhaseKind::Wait,
            Self::Placing { .. } => PhaseKind::Placing,
            Self::Run { .. } => PhaseKind::Run,
            Self::Moving { .. } => PhaseKind::Moving,
            Self::Shipping { .. } => PhaseKind::Shipping,
        }
    }

    pub(super) const fn cur(self) -> Option<Seat> {
        match self {
            Self::Wait { .. } => None,
            Self::Placing { cur, .. }
            | Self::Run { cur }
            | Self::Moving { cur, .. }
            | Self::Shipping { cur, .. } => Some(cur),
        }
    }

    pub(super) const fn nxt(self) -> Option<Seat> {
        match self {
            Self::Wait { .. } | Self::Run { .. } => None,
            Self::Placing { nxt, .. } | Self::Moving { nxt, .. } | Self::Shipping { nxt, .. } => {
                Some(nxt)
            }
        }
    }
}

/// A sequence that was placed again and has made no token since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// Key of the worker that computes it.
    pub(super) worker: usize,
    /// It takes a part of the budget.
    pub(super) is_retry: bool,
    pub(super) risk: Risk,
}

/// How likely it is that a sequence brings down the worker that computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Risk {
    /// Nothing is known against it.
    None,
    /// A worker died under it, after it had made tokens there.
    Bystander,
    /// A worker died under it before it had made a token there. Its choices may meet.
    Suspect(RequestId),
}

/// One choice of a request.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is known of a sequence by itself"
)]
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Key of its request.
    pub(super) request: usize,
    pub(super) prompt: Tokens,
    pub(super) max_tokens: Tokens,
    /// Its request has other choices, or had.
    pub(super) is_of_many: bool,
    /// Answer tokens made, as far as the client has them or gets them.
    pub(super) answer: Tokens,
    pub(super) queue_key: QueueKey,
    pub(super) phase: Phase,
    /// Times it was computed again because something failed.
    pub(super) replays: u32,
    /// The range of lengths that its answer is in.
    pub(super) range: u8,
    /// Times that it lost its pages to others.
    pub(super) preemptions: u32,
    /// Tokens that these times computed, prompt and answer.
    pub(super) replay_tokens: u64,
    /// `answer` when it was last placed.
    pub(super) placed_at: Tokens,
    /// What it is watched for since it was placed again, until its next token. Few are.
    pub(super) trial: Option<Box<Trial>>,
    pub(super) moves: u32,
    pub(super) deadline: Micros,
    pub(super) arrived: Micros,
    /// Predicted prefill of its prompt when it arrived.
    pub(super) prefill: Micros,
    /// When its first token is due, by its own target or the policy's.
    pub(super) ttft_due: Micros,
    /// Somebody asked for that target.
    pub(super) is_asked: bool,
    /// Its target per token, its own or the policy's.
    pub(super) tpot: Micros,
    /// Takes the place of its rank.
    pub(super) order_key: Option<i64>,
    /// One of the longest prompts.
    pub(super) is_long: bool,
    /// Whether it met its target for the first token is known.
    pub(super) is_judged: bool,
    /// Its tenant was charged for its prompt.
    pub(super) is_paid: bool,
    /// Marks of its prompt that a worker may have cached.
    pub(super) prefix: Arc<[PrefixMark]>,
    /// It moves on to a decode worker once it has so many answer tokens.
    pub(super) leaves: Option<Tokens>,
    /// When it was last placed.
    pub(super) placed: Micros,
    /// Its first token since then.
    pub(super) first: Option<Micros>,
}

impl Sequence {
    /// What decides how many pages it needs.
    pub(super) const fn shape(&self) -> Shape {
        Shape {
            prompt: self.prompt,
            made: self.answer,
            max: self.max_tokens,
        }
    }

    /// Prompt and longest answer.
    pub(super) const fn len(&self) -> Tokens {
        self.prompt.plus(self.max_tokens)
    }

    /// Tokens that it adds to the work of the queue: the choices of a request share its prompt, so
    /// that only the first one counts it. An estimate: replays go where they find room.
    pub(super) const fn queued(&self) -> Tokens {
        if self.id.choice == 0 || self.answer.0 > 0 {
            self.to_prefill()
        } else {
            Tokens(1)
        }
    }

    /// Tokens to compute before the next answer token.
    pub(super) const fn to_prefill(&self) -> Tokens {
        self.prompt.plus(self.answer)
    }
}

#[derive(Debug)]
struct Request {
    deadline: Micros,
    /// Keys of its sequences that are not ended, by choice.
    alive: Vec<usize>,
    /// Sequences that wait.
    waiting: u32,
    /// One of them has made a token.
    has_begun: bool,
    /// Workers that died under it, or got stuck.
    deaths: u32,
    /// Number of the last of these incidents.
    last_death: u64,
}

/// All sequences that are not ended, by key and by id.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    /// Boxed, so that room for more costs two words each.
    by_key: Slab<Box<Sequence>>,
    requests: Slab<Request>,
    by_id: BTreeMap<RequestId, usize>,
    requests_waiting: usize,
}

impl Sequences {
    /// A request of so many choices, which are added then. Returns its key.
    pub(super) fn add_request(&mut self, id: RequestId, deadline: Micros, choices: u8) -> usize {
        let key = self.requests.insert(Request {
            deadline,
            alive: Vec::with_capacity(usize::from(choices)),
            waiting: 0,
            has_begun: false,
            deaths: 0,
            last_death: 0,
        });
        self.by_id.insert(id, key);
        key
    }

    fn request(&self, id: RequestId) -> Option<&Request> {
        self.requests.get(*self.by_id.get(&id)?)
    }

    fn request_of(&mut self, key: usize) -> Option<&mut Request> {
        self.requests.get_mut(self.by_key.get(key)?.request)
    }

    /// A worker died under a sequence of the request; `incident` numbers such workers from 1.
    /// Returns how many did: one worker counts once, however many choices it held, and only the
    /// first one counts if the sequence `has_progress`.
    pub(super) fn died_under(&mut self, id: RequestId, incident: u64, has_progress: bool) -> u32 {
        let key = self.by_id.get(&id).copied();
        let Some(request) = key.and_then(|key| self.requests.get_mut(key)) else {
            return 0;
        };
        let is_counted = request.last_death == incident || (has_progress && request.deaths > 0);
        if !is_counted {
            request.last_death = incident;
            request.deaths += 1;
        }
        request.deaths
    }

    pub(super) fn has_request(&self, id: RequestId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// A choice of the request of this sequence has made a token.
    pub(super) fn has_begun(&self, sequence: &Sequence) -> bool {
        let request = self.requests.get(sequence.request);
        request.is_some_and(|request| request.has_begun)
    }

    /// A sequence makes its first token.
    pub(super) fn begins(&mut self, key: usize) {
        if let Some(request) = self.request_of(key) {
            request.has_begun = true;
        }
    }

    /// How likely it is that the sequence brings down who computes it.
    pub(super) fn risk(&self, sequence: &Sequence) -> Risk {
        let is_dead = |request: &Request| request.deaths > 0;
        match sequence.queue_key.lane {
            Lane::Fresh => Risk::None,
            _ if !self.requests.get(sequence.request).is_some_and(is_dead) => Risk::None,
            Lane::Replay => Risk::Bystander,
            Lane::Retry => Risk::Suspect(sequence.id.request),
        }
    }

    /// That was no death. O(requests); a worker whose stream broke is back.
    pub(super) fn forgive(&mut self, incident: u64) {
        for (_, request) in &mut self.requests {
            if request.last_death == incident {
                request.last_death = 0;
                request.deaths = request.deaths.saturating_sub(1);
            }
        }
    }

    /// Adds the next choice of a request that was added.
    pub(super) fn add(&mut self, sequence: Sequence) -> usize {
        let request = sequence.request;
        let key = self.by_key.insert(Box::new(sequence));
        if let Some(request) = self.requests.get_mut(request) {
            request.alive.push(key);
        }
        key
    }

    /// Forgets a sequence. Returns the deadline of its request if it was the last.
    pub(super) fn remove(&mut self, key: usize) -> Option<Micros> {
        let sequence = self.by_key.try_remove(key)?;
        let request = self.requests.get_mut(sequence.request)?;
        request.alive.retain(|&other| other != key);
        if !request.alive.is_empty() {
            return None;
        }
        self.by_id.remove(&sequence.id.request);
        let request = self.requests.try_remove(sequence.request);
        request.map(|request| request.deadline)
    }

    /// A sequence begins to wait.
    pub(super) fn waits(&mut self, key: usize) {
        if let Some(request) = self.request_of(key) {
            request.waiting += 1;
            let is_first = request.waiting == 1;
            self.requests_waiting += usize::from(is_first);
        }
    }

    /// A sequence waits no longer.
    pub(super) fn waits_no_longer(&mut self, key: usize) {
        if let Some(request) = self.request_of(key) {
            request.waiting -= 1;
            let was_last = request.waiting == 0;
            self.requests_waiting -= usize::from(was_last);
        }
    }

    pub(super) fn get(&self, key: usize) -> Option<&Sequence> {
        self.by_key.get(key).map(|sequence| &**sequence)
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Sequence> {
        self.by_key.get_mut(key).map(|sequence| &mut **sequence)
    }

    pub(super) fn key_of(&self, id: SequenceId) -> Option<usize> {
        let mut keys = self.request(id.request)?.alive.iter().copied();
        keys.find(|&key| self.get(key).is_some_and(|sequence| sequence.id == id))
    }

    /// Keys of the other living sequences of the same request, by choice.
    pub(super) fn siblings(&self, key: usize) -> impl Iterator<Item = usize> {
        let many = self.get(key).filter(|sequence| sequence.is_of_many);
        let request = many.and_then(|sequence| self.requests.get(sequence.request));
        let alive = request.map_or(&[][..], |request| &request.alive);
        alive.iter().copied().filter(move |&other| other != key)
    }

    /// Keys of the living sequences of a request, by choice.
    pub(super) fn of_request(&self, request: RequestId) -> Vec<usize> {
        let request = self.request(request);
        request.map_or(Vec::new(), |request| request.alive.clone())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.by_key.iter().map(|(_, sequence)| &**sequence)
    }

    /// Requests of which at least one sequence waits.
    pub(super) const fn requests_waiting(&self) -> usize {
        self.requests_waiting
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}
