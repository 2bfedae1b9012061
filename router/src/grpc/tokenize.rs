//! Tokenize and Detokenize. They count as requests of their caller's quota, as on the other front.

use std::time::Instant;

use tonic::{Extensions, Response, Status};

use super::{call::Call, params, status};
use crate::{
    auth::Lease,
    error::{Error, Reason},
    service::{self, Service},
    validate,
    wire::v1::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse},
};

/// Token ids of a text or of a chat.
pub(super) async fn tokenize(
    service: &Service,
    request: TokenizeRequest,
    extensions: &Extensions,
) -> Result<Response<TokenizeResponse>, Status> {
    let ids = ids(service, request, extensions).await;
    let token_ids = ids.map_err(|error| status::of(&params::in_tokenize(error), None))?;
    Ok(Response::new(TokenizeResponse {
        token_ids,
        max_model_len: service.model().max_model_len,
    }))
}

async fn ids(
    service: &Service,
    request: TokenizeRequest,
    extensions: &Extensions,
) -> Result<Vec<u32>, Error> {
    let (_lease, deadline) = begin(service, extensions)?;
    let params = params::of_tokenize(request, service.limits())?;
    let spec = validate::check(params, service.limits(), service.model())?;
    let (bytes, model) = (spec.prompt.text_bytes(), service.shared_model());
    let work = move || service::tokenize(&spec.prompt, spec.special_tokens, &model);
    service.prepare(bytes, deadline, work).await
}

/// Text of token ids, special ones included.
pub(super) async fn detokenize(
    service: &Service,
    request: DetokenizeRequest,
    extensions: &Extensions,
) -> Result<Response<DetokenizeResponse>, Status> {
    let text = text(service, request, extensions).await;
    let text = text.map_err(|error| status::of(&error, None))?;
    Ok(Response::new(DetokenizeResponse { text }))
}

async fn text(
    service: &Service,
    request: DetokenizeRequest,
    extensions: &Extensions,
) -> Result<String, Error> {
    let (_lease, deadline) = begin(service, extensions)?;
    let model = service.shared_model();
    validate::check_model(Some(&request.model), &model)?;
    let ids = request.token_ids;
    let refuse = |what| Err(Error::new(Reason::InvalidValue, what).with_field("token_ids"));
    let (count, max) = (ids.len(), model.max_model_len);
    if count > max as usize {
        return refuse(format!("{count} token ids, at most {max}"));
    }
    if let Some(id) = ids.iter().find(|id| **id >= model.vocab_size) {
        let size = model.vocab_size;
        return refuse(format!(
            "token id {id} is not in the vocabulary of {size} tokens"
        ));
    }
    let work = move || Ok(service::text_of(&ids, &model));
    service
        .prepare(count * size_of::<u32>(), deadline, work)
        .await
}

/// Counts the call; what it gives is held until its end. Then the latest time for its work.
fn begin(service: &Service, extensions: &Extensions) -> Result<(Lease, Instant), Error> {
    let Some(call) = extensions.get::<Call>() else {
        return Err(Error::new(Reason::Internal, "a call came past its front"));
    };
    let deadline = service.deadline(call.began, call.timeout);
    Ok((call.caller.begin(call.began)?, deadline))
}
