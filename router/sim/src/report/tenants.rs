//! Tenant by tenant: who is crowded out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Judged, Spread, share};

/// So many tenants with the most requests are told.
pub const TENANTS_MAX: usize = 100;

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TenantFigures {
    /// As in the trace.
    pub tenant: u32,
    /// Its requests.
    pub requests: u64,
    /// Tokens of prompts and answers that it was served.
    pub tokens: u64,
    /// Share of its requests that met both targets.
    pub attainment: f64,
    /// Time to first token.
    pub ttft_ms: Spread,
}

/// The busiest first, then by number. None for a trace without tenants.
pub(super) fn of(judged: &[Judged<'_>]) -> Vec<TenantFigures> {
    let mut by_tenant: BTreeMap<u32, Vec<&Judged<'_>>> = BTreeMap::new();
    for one in judged {
        by_tenant.entry(one.request.tenant).or_default().push(one);
    }
    if by_tenant.keys().all(|tenant| *tenant == 0) {
        return Vec::new();
    }
    let mut found: Vec<_> = by_tenant.into_iter().collect();
    found.sort_by_key(|(_, of)| std::cmp::Reverse(of.len()));
    found.truncate(TENANTS_MAX);
    found
        .into_iter()
        .map(|(tenant, of)| TenantFigures {
            tenant,
            requests: of.len() as u64,
            tokens: of
                .iter()
                .filter(|one| one.request.ending == crate::outcome::Ending::Finished)
                .map(|one| {
                    u64::from(one.request.prompt_tokens) + u64::from(one.request.output_tokens)
                })
                .sum(),
            attainment: share(&of, |one| one.is_good()),
            ttft_ms: Spread::of(of.iter().filter_map(|one| one.ttft_ms).collect()),
        })
        .collect()
}
