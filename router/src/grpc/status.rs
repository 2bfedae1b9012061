//! Errors as gRPC statuses with `google.rpc` details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::params::field_path;
use crate::error::{Error, Reason, Retry};

/// `ErrorInfo.domain` of all our errors.
const DOMAIN: &str = "dopd";

/// What a quota belongs to; its key is named in the description.
const QUOTA_SUBJECT: &str = "api key";

/// The status of `error`; `id` if the request got one.
pub(super) fn of(error: &Error, id: Option<&str>) -> Status {
    with_code(error.reason.row().grpc, error, id)
}

fn with_code(code: Code, error: &Error, id: Option<&str>) -> Status {
    let row = error.reason.row();
    let mut details = ErrorDetails::with_error_info(row.code, DOMAIN, HashMap::new());
    if let Some(field) = &error.field {
        details.add_bad_request_violation(field_path(field), error.message.as_ref());
    }
    if row.retry == Retry::Later && error.retry_after.is_some() {
        details.set_retry_info(error.retry_after);
    }
    if error.reason == Reason::RateLimited {
        details.add_quota_failure_violation(QUOTA_SUBJECT, error.message.as_ref());
    }
    if let Some(id) = id {
        details.set_request_info(id, "");
    }
    Status::with_error_details(code, error.message.as_ref(), details)
}

/// tonic's own statuses, in our words; `None` where `status` is not one of them. Ours always have
/// details.
pub(super) fn of_stack(status: &Status, message_bytes_max: usize) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let said = status.message();
    Some(match status.code() {
        // A message over the limit; gRPC's own word for it is RESOURCE_EXHAUSTED.
        Code::OutOfRange => {
            let message = format!("the message is larger than {message_bytes_max} bytes");
            of(&Error::new(Reason::BodyTooLarge, message), None)
        }
        // Bytes that are no message, no message at all, a wrong frame: never a defect of ours.
        Code::Internal => {
            let message = format!("the message cannot be read: {}", said.to_lowercase());
            of(&Error::new(Reason::InvalidJson, message), None)
        }
        // gRPC demands this code where HTTP has 404.
        Code::Unimplemented => {
            let message = if said.is_empty() {
                "no such service or method; reflection lists them".to_owned()
            } else {
                said.to_lowercase()
            };
            with_code(
                Code::Unimplemented,
                &Error::new(Reason::NotFound, message),
                None,
            )
        }
        _ => return None,
    })
}
