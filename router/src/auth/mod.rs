//! Who calls. Both fronts turn what a request shows into a [`Caller`] before they read its body.

use std::sync::Arc;

/// Who a request is from, as far as keys tell. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the API key, from the configuration; never the key itself.
    pub key: Arc<str>,
    /// Who pays; one or more keys' label. Bounded by the configuration.
    pub tenant: Arc<str>,
}

impl Default for Caller {
    /// Nobody in particular: what every request is from where no keys are configured.
    fn default() -> Self {
        Self {
            key: Arc::from("anonymous"),
            tenant: Arc::from("default"),
        }
    }
}
