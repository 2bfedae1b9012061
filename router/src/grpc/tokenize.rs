//! Tokenize and Detokenize.

use tonic::{Response, Status};

use super::{params, status};
use crate::{
    error::{Error, Reason},
    service::Service,
    tokens::Detokenizer,
    validate,
    wire::v1::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse},
};

/// Token ids of a text or of a chat.
pub(super) async fn tokenize(
    service: &Service,
    request: TokenizeRequest,
) -> Result<Response<TokenizeResponse>, Status> {
    let ids = ids(service, request).await;
    let token_ids = ids.map_err(|error| status::of(&params::in_tokenize(error), None))?;
    Ok(Response::new(TokenizeResponse {
        token_ids,
        max_model_len: service.model().max_model_len,
    }))
}

async fn ids(service: &Service, request: TokenizeRequest) -> Result<Vec<u32>, Error> {
    let params = params::of_tokenize(request, service.limits())?;
    let spec = validate::check(params, service.limits(), service.model())?;
    service.tokenize(&spec.prompt).await
}

/// Text of token ids, special ones included.
pub(super) fn detokenize(
    service: &Service,
    request: &DetokenizeRequest,
) -> Result<Response<DetokenizeResponse>, Status> {
    let text = text(service, request).map_err(|error| status::of(&error, None))?;
    Ok(Response::new(DetokenizeResponse { text }))
}

fn text(service: &Service, request: &DetokenizeRequest) -> Result<String, Error> {
    let model = service.model();
    validate::check_model(Some(&request.model), model)?;
    let refuse =
        |reason: Reason, what: String| Err(Error::new(reason, what).with_field("token_ids"));
    let (count, max) = (request.token_ids.len(), model.max_model_len);
    if count > max as usize {
        let what = format!("{count} token ids; the model's context is {max} tokens");
        return refuse(Reason::ContextLengthExceeded, what);
    }
    if let Some(id) = request.token_ids.iter().find(|id| **id >= model.vocab_size) {
        let size = model.vocab_size;
        let what = format!("token id {id} is not in the vocabulary of {size} tokens");
        return refuse(Reason::InvalidValue, what);
    }
    let vocabulary = model.tokenizer.vocabulary();
    let (mut out, mut detokenizer) = (String::new(), Detokenizer::default());
    for id in &request.token_ids {
        detokenizer.push(vocabulary.bytes(*id), &mut out);
    }
    detokenizer.finish(&mut out);
    Ok(out)
}
