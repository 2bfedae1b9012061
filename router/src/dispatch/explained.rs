//! Names of requests, as clients see them, for `explain`: a bounded map to the brain's ids, one for
//! each prompt. No longer than the brain's ring of decisions, since each has at least one there.

use std::collections::{HashMap, VecDeque};

use dopd_core::{brain::Explanation, ids::RequestId};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::{dispatch::Dispatch, streams::messages::BrainInput};

/// What clients put before an id in the body of an answer.
const PREFIXES: [&str; 2] = ["chatcmpl-", "cmpl-"];

/// Decisions of the page about nobody in particular.
const NEWEST: usize = 64;

/// The latest names.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// The prompts of a request in order: they are submitted in order.
    ids: HashMap<Box<str>, Vec<RequestId>>,
    order: VecDeque<Box<str>>,
    /// Ids of all names.
    count: usize,
    most: usize,
}

impl Labels {
    /// So many prompts at most, or one request; 0: none.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, label: &str, id: RequestId) {
        if self.most == 0 {
            return;
        }
        self.count += 1;
        if let Some(ids) = self.ids.get_mut(label) {
            ids.push(id);
        } else {
            self.ids.insert(label.into(), vec![id]);
            self.order.push_back(label.into());
        }
        while self.count > self.most && self.order.len() > 1 {
            let oldest = self.order.pop_front();
            let ids = oldest.and_then(|oldest| self.ids.remove(&oldest));
            self.count -= ids.map_or(0, |ids| ids.len());
        }
    }

    fn get(&self, label: &str) -> Vec<RequestId> {
        self.ids.get(label).cloned().unwrap_or_default()
    }
}

/// The page of `/admin/explain`.
#[derive(Debug, Serialize)]
pub struct ExplainPage {
    /// Which request, as its client knows it; empty: the newest decisions about anybody.
    pub id: String,
    /// How its prompts are called in the decisions (`sequence.request`), in their order.
    pub prompts: Vec<RequestId>,
    /// Found, or why not.
    pub status: String,
    /// What is known.
    #[serde(flatten)]
    pub found: Explanation,
}

impl ExplainPage {
    /// Something is known.
    pub fn is_found(&self) -> bool {
        !self.found.decisions.is_empty()
    }
}

impl Dispatch {
    /// What was decided about a request that its client knows by `label`, with or without the
    /// prefix of a body's id; an empty label: the newest decisions.
    pub async fn explain(&self, label: &str) -> ExplainPage {
        let bare = PREFIXES
            .iter()
            .find_map(|prefix| label.strip_prefix(prefix));
        let id = bare.unwrap_or(label);
        let prompts = self.shared.labels.lock().get(id);
        let (answer, found) = oneshot::channel();
        let count = if id.is_empty() { NEWEST } else { 0 };
        let question = BrainInput::Explain(prompts.clone(), count, answer);
        let found = match self.queues.brain.send(question).await {
            Ok(()) => found.await.unwrap_or_default(),
            Err(_) => Explanation::default(),
        };
        ExplainPage {
            id: id.to_owned(),
            prompts,
            status: status(id, &found),
            found,
        }
    }
}

/// Found, or how far back anything is known.
fn status(id: &str, found: &Explanation) -> String {
    let ring = found.ring;
    if !found.decisions.is_empty() {
        return "found".to_owned();
    }
    if ring.decisions_max == 0 {
        return "no decision is remembered: policy.explain_decisions_max is 0".to_owned();
    }
    let Some(oldest) = ring.oldest else {
        return "nothing was decided yet".to_owned();
    };
    let seconds = found.now.since(oldest).0 / 1_000_000;
    format!(
        "nothing is known of request {id:?}; the last {} decisions are remembered \
         (policy.explain_decisions_max {}), the oldest is {seconds} s old",
        ring.decisions, ring.decisions_max
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_the_oldest_goes() {
        let mut labels = Labels::new(3);
        for (id, label) in (1..).zip(["a", "b", "b", "c"]) {
            labels.add(label, RequestId(id));
        }
        let of = |labels: &Labels| {
            let ids = |label| labels.get(label).iter().map(|id| id.0).collect::<Vec<_>>();
            ["a", "b", "c", "d"].map(ids)
        };
        assert_eq!(of(&labels), [vec![], vec![2, 3], vec![4], vec![]]);
        let counts = (labels.order.len(), labels.ids.len(), labels.count);
        assert_eq!(counts, (2, 2, 3));
        // One name is kept whole, however many prompts it has.
        (5..9).for_each(|id| labels.add("d", RequestId(id)));
        assert_eq!(of(&labels), [vec![], vec![], vec![], vec![5, 6, 7, 8]]);
        let mut none = Labels::new(0);
        none.add("a", RequestId(1));
        assert_eq!(none.get("a"), []);
    }
}
