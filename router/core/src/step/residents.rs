//! How much time those that decode can spare: their slack.
//!
//! A sequence is *due*: the token it has would have come at `first + pace*(tokens - 1)`, with
//! `pace = pace_ratio * its target`; its slack is `due - now`, and below 0 it is behind. Every step
//! that decodes gives each of them one token, so all that have the same target move by one pace
//! together and their order never changes: they are kept sorted by `due - pace*steps`, which is
//! constant. Joining and leaving cost a binary search, a step an addition, and the quantile an
//! index (a merge of a few lists if there are several targets). Exact, integers only.

use crate::units::Micros;

use super::{StepPolicy, floor_us};

/// The sequences of a worker that decode. One that is frozen or gone is none.
#[derive(Clone, Debug, Default)]
pub struct Residents {
    /// By target, the tightest first. Empty ones leave.
    groups: Vec<Group>,
    /// When they got their last token; of those alone, when the first of them joined.
    last: Micros,
}

/// Those with one target.
#[derive(Clone, Debug)]
struct Group {
    tpot: Micros,
    pace_us: i64,
    /// Steps that gave each of them a token.
    steps: i64,
    /// `due - pace*steps` of each, sorted.
    keys: Vec<i64>,
}

/// What a resident needs to leave again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    tpot: Micros,
    key: i64,
}

impl Residents {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.keys.len()).sum()
    }

    /// Nobody decodes.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// One more decodes from the next step on. `first`: when it had its first token here, made or
    /// arrived; `tokens`: how many it has since, that one included. `tpot` 0: the policy's. Called
    /// between steps.
    pub fn join(
        &mut self,
        policy: &StepPolicy,
        now: Micros,
        tpot: Micros,
        first: Micros,
        tokens: u32,
    ) -> Stay {
        if self.is_empty() {
            self.last = now;
        }
        let tpot = if tpot.0 == 0 { policy.tpot } else { tpot };
        let found = self.groups.binary_search_by_key(&tpot, |group| group.tpot);
        let place = found.unwrap_or_else(|place| {
            let group = Group {
                tpot,
                pace_us: signed(policy.pace_us(tpot)),
                steps: 0,
                keys: Vec::new(),
            };
            self.groups.insert(place, group);
            place
        });
        let group = &mut self.groups[place];
        let made = i64::from(tokens.saturating_sub(1));
        let due = group
            .pace_us
            .saturating_mul(made)
            .saturating_add(signed(first.0));
        let key = due.saturating_sub(group.pace_us.saturating_mul(group.steps));
        let place = group.keys.partition_point(|&other| other < key);
        group.keys.insert(place, key);
        Stay { tpot, key }
    }

    /// It decodes no more.
    pub fn leave(&mut self, stay: Stay) {
        let found = self
            .groups
            .binary_search_by_key(&stay.tpot, |group| group.tpot);
        let Ok(place) = found else {
            return;
        };
        let group = &mut self.groups[place];
        if let Ok(found) = group.keys.binary_search(&stay.key) {
            group.keys.remove(found);
        }
        if group.keys.is_empty() {
            self.groups.remove(place);
        }
    }

    /// Each of them got a token.
    pub fn stepped(&mut self, now: Micros) {
        self.last = now;
        for group in &mut self.groups {
            group.steps += 1;
        }
    }

    /// How long they have waited for a token.
    pub const fn gap(&self, now: Micros) -> Micros {
        now.since(self.last)
    }

    /// Those whose target a decode step of so long meets; all, where it meets none.
    fn met(&self, decode_us: u64) -> &[Group] {
        let first = self
            .groups
            .partition_point(|group| group.tpot.0 < decode_us);
        match &self.groups[first..] {
            [] => &self.groups,
            met => met,
        }
    }

    /// The tightest target among them that a decode step of `decode_us` meets; where it meets none,
    /// the tightest.
    pub fn tpot_min(&self, decode_us: u64) -> Option<Micros> {
        self.met(decode_us).first().map(|group| group.tpot)
    }

    /// The quantile of the slack in microseconds, what the next decode step of `decode_us` gains
    /// each of them included, of those whose target that step meets, or of all if it meets none: of
    /// `n` the value at place `floor(quantile * n)` in ascending order. `None`: nobody.
    pub fn slack_us(&self, now: Micros, decode_us: u64, quantile: f64) -> Option<i64> {
        let groups = self.met(decode_us);
        let len: usize = groups.iter().map(|group| group.keys.len()).sum();
        let last = len.checked_sub(1)?;
        let rank = usize::try_from(floor_us(quantile * len as f64))
            .unwrap_or(last)
            .min(last);
        let (now, step) = (signed(now.0), signed(decode_us));
        let slack = |group: &Group, key: i64| {
            let due = key.saturating_add(group.pace_us.saturating_mul(group.steps));
            let gain = group.pace_us.saturating_sub(step).max(0);
            due.saturating_sub(now).saturating_add(gain)
        };
        if let [group] = groups {
            return group.keys.get(rank).map(|&key| slack(group, key));
        }
        // The next of each list, in ascending order, until the one asked for.
        let mut heads = vec![0_usize; groups.len()];
        let mut found = None;
        for _ in 0..=rank {
            let next = groups.iter().zip(&heads).enumerate();
            let next = next.filter_map(|(place, (group, &head))| {
                group.keys.get(head).map(|&key| (slack(group, key), place))
            });
            let (value, place) = next.min()?;
            heads[place] += 1;
            found = Some(value);
        }
        found
    }
}

/// As a signed number.
fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}
