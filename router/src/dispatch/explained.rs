//! Names of requests, as clients see them, for `explain`: a bounded map to the brain's ids. No
//! longer than the brain's ring of decisions, since each request has at least one there.

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
    ids: HashMap<Box<str>, RequestId>,
    order: VecDeque<Box<str>>,
    most: usize,
}

impl Labels {
    /// So many at most; 0: none.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, label: &str, id: RequestId) {
        if self.most == 0 || self.ids.insert(label.into(), id).is_some() {
            return;
        }
        self.order.push_back(label.into());
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    fn get(&self, label: &str) -> Option<RequestId> {
        self.ids.get(label).copied()
    }
}

/// The page of `/admin/explain`.
#[derive(Debug, Serialize)]
pub struct ExplainPage {
    /// Which request, as its client knows it; empty: the newest decisions about anybody.
    pub id: String,
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
        let request = self.shared.labels.lock().get(id);
        let (answer, found) = oneshot::channel();
        let count = if id.is_empty() { NEWEST } else { 0 };
        let question = BrainInput::Explain(request, count, answer);
        let found = match self.queues.brain.send(question).await {
            Ok(()) => found.await.unwrap_or_default(),
            Err(_) => Explanation::default(),
        };
        ExplainPage {
            id: id.to_owned(),
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
        let mut labels = Labels::new(2);
        for (id, label) in (1..).zip(["a", "b", "b", "c"]) {
            labels.add(label, RequestId(id));
        }
        let of = |label| labels.get(label).map(|id| id.0);
        assert_eq!([of("a"), of("b"), of("c")], [None, Some(3), Some(4)]);
        assert_eq!(labels.order.len(), labels.ids.len());
        let mut none = Labels::new(0);
        none.add("a", RequestId(1));
        assert_eq!(none.get("a"), None);
    }
}
