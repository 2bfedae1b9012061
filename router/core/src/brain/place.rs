//! Where the next sequence goes. Pure in the workers: one look, one answer; `act` carries it out.
//!
//! A place for all of its pages is found before anything starts, so no finished prompt ever holds
//! pages for a place that is not there. A prompt goes to the least loaded worker labelled prefill
//! or mixed. Mixed ones keep it; a prefill worker hands it to the decode worker with most free
//! pages, and keeps it if there is none, or none to which the way is open. Roles are labels: where
//! none labelled for prompts could hold the sequence, a decode worker takes it whole.

use super::{
    explain::{Considered, Task, Verdict},
    pairs::Pairs,
    sequences::Risk,
    workers::{Group, Worker, Workers},
};
use crate::{fleet::Role, units::Tokens};

/// Keys of the workers chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Computes and keeps it.
    Keep(usize),
    /// Computes it; the other takes it over.
    Pair { prefill: usize, decode: usize },
}

/// What is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Prompt and longest answer.
    pub(super) len: Tokens,
    /// Answer tokens that may still be made.
    pub(super) answer_left: Tokens,
    pub(super) risk: Risk,
}

/// Chooses. `None`: nobody has room for it now.
///
/// `sibling`: where another choice of the request computes the same prompt. It goes there if there
/// is room, however much that worker has before it: only what follows the shared pages is added.
pub(super) fn choose(
    workers: &Workers,
    pairs: &Pairs,
    need: Need,
    sibling: Option<usize>,
    keep_pool_percent: u32,
    considered: &mut Considered,
) -> Option<Place> {
    let can_hold = |group| workers.totals(group).len_max >= need.len;
    let group = if can_hold(Group::Prompts) {
        Group::Prompts
    } else {
        Group::Decode
    };
    // With one token left there is nothing to hand off: it comes out of the prefill itself.
    let wants_pair = can_hold(Group::Decode) && need.answer_left > Tokens(1);
    let (mut decode, mut cut_off) = (None, None);
    let sibling = sibling
        .and_then(|key| Some((key, workers.get(key)?)))
        .filter(|(_, worker)| worker.can_take(need.len));
    let candidates = sibling.into_iter().chain(workers.ready_for_prompts(group));
    for (key, worker) in candidates {
        let mut looked = |verdict| {
            let before = i64::try_from(worker.prefill_pending()).unwrap_or(i64::MAX);
            considered.add(worker.session, Task::Prefill, before, verdict);
        };
        if !worker.has_room(need.len) {
            looked(Verdict::Kv);
            continue;
        }
        if !may_meet(worker, need.risk) {
            looked(Verdict::Quarantine);
            continue;
        }
        looked(Verdict::Gate);
        if worker.role != Role::Prefill || !wants_pair {
            return Some(Place::Keep(key));
        }
        let shut = pairs.shut(key);
        let decode = if shut > 0 {
            most_room(workers, need.len, |to| !pairs.is_shut((key, to)))
        } else {
            *decode.get_or_insert_with(|| most_room(workers, need.len, |_| true))
        };
        if let Some(decode) = decode {
            return Some(Place::Pair {
                prefill: key,
                decode,
            });
        }
        let is_cut_off = shut > 0 && shut >= workers.totals(Group::Decode).workers;
        if is_cut_off || may_keep(worker, need.len, keep_pool_percent) {
            if shut == 0 {
                return Some(Place::Keep(key));
            }
            // The way to who has room is cut from here. From another it may be open.
            cut_off = cut_off.or(Some(key));
        }
    }
    cut_off.map(Place::Keep)
}

/// The decode worker with most free pages, if the sequence fits, of those that can be reached.
fn most_room(workers: &Workers, len: Tokens, is_reached: impl Fn(usize) -> bool) -> Option<usize> {
    workers
        .ready_for_imports()
        .take_while(|(_, worker)| u64::from(worker.pages_of(len).0) <= worker.pages_room())
        .find(|&(key, worker)| worker.has_room(len) && is_reached(key))
        .map(|(key, _)| key)
}

/// Who may bring a worker down is computed alone among those under whom one died already, so that
/// it takes none of them with it.
fn may_meet(worker: &Worker, risk: Risk) -> bool {
    match risk {
        Risk::None => true,
        Risk::Bystander => worker.suspects.is_none(),
        Risk::Suspect(request) => {
            worker.bystanders == 0 && worker.suspects.is_none_or(|(of, _)| of == request)
        }
    }
}

/// All decode workers are full: a prefill worker may keep a sequence while enough of its pool stays
/// for prompts that leave again.
fn may_keep(worker: &Worker, len: Tokens, keep_pool_percent: u32) -> bool {
    let pages = worker.slots.pages_used() + u64::from(worker.pages_of(len).0);
    let pool = u64::from(worker.facts.pages_total.0);
    pages * 100 <= pool * u64::from(keep_pool_percent)
}
