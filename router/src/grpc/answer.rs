//! Generate and Chat: one way from a message to a stream of events.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Call,
    status,
    stream::{AnswerStream, Reply},
};
use crate::{
    config::records::LimitsConfig,
    error::{Error, Reason},
    service::{Arrival, Head, Refusal, Service, Wake, Wanted},
    validate::{self, Params},
};

/// Starts an answer to `request`, which `read` turns into the validator's terms.
pub(super) async fn start<Q, R: Reply>(
    service: &Arc<Service>,
    request: Request<Q>,
    read: impl FnOnce(Q, &LimitsConfig) -> Result<Params, Error> + Send,
) -> Result<Response<AnswerStream<R>>, Status> {
    let (_, extensions, message) = request.into_parts();
    let Some(call) = extensions.get::<Call>() else {
        let error = Error::new(Reason::Internal, "a call came past its front");
        return Err(status::of(&error, None));
    };
    let arrival = service.arrive(Head {
        caller: call.caller.clone(),
        traceparent: call.traceparent.clone(),
        client_id: None,
    });
    let mut arrival = arrival.map_err(|Refusal { id, error }| status::of(&error, id.as_deref()))?;
    arrival.at = call.began;
    let (id, params) = (arrival.id.clone(), read(message, service.limits()));
    // The service knows the deadline of the call, which is that of the request.
    let started = submit(service, arrival, params, call).await;
    started
        .map(Response::new)
        .map_err(|error| status::of(&error, Some(&id)))
}

async fn submit<R: Reply>(
    service: &Arc<Service>,
    arrival: Arrival,
    params: Result<Params, Error>,
    call: &Call,
) -> Result<AnswerStream<R>, Error> {
    let checked = params.and_then(|mut params| {
        params.slo_head = call.slo;
        validate::check(params, service.limits(), service.model())
    });
    let mut spec = checked.inspect_err(|error| service.refuse(&arrival, error))?;
    spec.timeout = call.timeout;
    let wanted = Wanted {
        wake: Wake::Each,
        token_ids: true,
    };
    let answer = service.submit(arrival, spec, wanted).await?;
    Ok(AnswerStream::new(
        answer,
        service.shared_model(),
        call.deadline(),
    ))
}
