//! Errors as gRPC statuses with `google.rpc` details.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::params::field_path;
use crate::error::{Error, Retry};

/// `ErrorInfo.domain` of all our errors.
const DOMAIN: &str = "dopd";

/// The status of `error`; `id` if the request got one.
pub(super) fn of(error: &Error, id: Option<&str>) -> Status {
    let row = error.reason.row();
    let mut details = ErrorDetails::with_error_info(row.code, DOMAIN, HashMap::new());
    if let Some(field) = &error.field {
        details.add_bad_request_violation(field_path(field), error.message.as_ref());
    }
    if row.retry == Retry::Later && error.retry_after.is_some() {
        details.set_retry_info(error.retry_after);
    }
    if let Some(id) = id {
        details.set_request_info(id, "");
    }
    Status::with_error_details(row.grpc, error.message.as_ref(), details)
}
