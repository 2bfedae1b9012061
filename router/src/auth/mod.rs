//! Who calls, and how much of it: the one place that decides for both fronts.
//!
//! A front asks [`Gate::admit`] before it looks at anything else of a request, and gives the
//! [`Caller`] to `service`, which holds a [`Lease`] on the caller's quotas until the request ends.

mod gate;
mod quota;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::quota::Quota;
pub use self::{
    gate::{Door, Gate},
    quota::{Lease, Standing},
};
use crate::{error::Error, metrics::SloTargets};

/// Who a request is from, as far as keys tell. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name of the API key, from the configuration; never the key itself.
    pub key: Arc<str>,
    /// Who pays; one or more keys' label. Bounded by the configuration.
    pub tenant: Arc<str>,
    /// Share of the tenant where tenants compete, at least 1.
    pub weight: u32,
    /// Targets of its key.
    pub slo: SloTargets,
    /// The least that its key may ask for; `None`: as `limits` say.
    pub slo_least: SloTargets,
    quota: Option<Arc<Quota>>,
}

impl Default for Caller {
    /// Nobody in particular: what every request is from where no keys are configured.
    fn default() -> Self {
        Self {
            key: Arc::from("anonymous"),
            tenant: Arc::from("default"),
            weight: 1,
            slo: SloTargets::default(),
            slo_least: SloTargets::default(),
            quota: None,
        }
    }
}

impl Caller {
    /// Counts a request; refused where the key has no more of them.
    pub fn begin(&self, now: Instant) -> Result<Lease, Error> {
        Lease::new(self.quota.clone(), &self.key, now)
    }

    /// What is left of the quotas of requests and of tokens, where there are such.
    pub fn standing(&self, now: Instant) -> [Option<Standing>; 2] {
        let quota = self.quota.as_deref();
        quota.map_or([None, None], |quota| quota.standing(now))
    }
}

/// `seconds` as a wait, to the next millisecond.
fn wait(seconds: f64) -> Duration {
    // Bounded by the limits of settings: a minute's worth at one a minute is the longest.
    Duration::try_from_secs_f64((seconds * 1e3).ceil() / 1e3).unwrap_or(Duration::from_secs(60))
}
