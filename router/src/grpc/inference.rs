//! `dopd.v1.InferenceService`: from tonic's calls to what answers them.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use super::{answer, models, params, stream::AnswerStream, tokenize};
use crate::{
    service::Service,
    wire::v1::{
        ChatRequest, ChatResponse, DetokenizeRequest, DetokenizeResponse, GenerateRequest,
        GenerateResponse, GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse,
        TokenizeRequest, TokenizeResponse, inference_service_server::InferenceService,
    },
};

/// What a method gives back.
type Reply<T> = Result<Response<T>, Status>;

/// The service behind all methods.
#[derive(Debug)]
pub(super) struct Inference {
    service: Arc<Service>,
}

impl Inference {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

#[async_trait]
impl InferenceService for Inference {
    type GenerateStream = AnswerStream<GenerateResponse>;
    type ChatStream = AnswerStream<ChatResponse>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Reply<Self::GenerateStream> {
        answer::start(&self.service, request, params::of_generate).await
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Reply<Self::ChatStream> {
        answer::start(&self.service, request, params::of_chat).await
    }

    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Reply<TokenizeResponse> {
        let (_, extensions, message) = request.into_parts();
        tokenize::tokenize(&self.service, message, &extensions).await
    }

    async fn detokenize(&self, request: Request<DetokenizeRequest>) -> Reply<DetokenizeResponse> {
        let (_, extensions, message) = request.into_parts();
        tokenize::detokenize(&self.service, message, &extensions).await
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Reply<ListModelsResponse> {
        Ok(models::list(&self.service))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Reply<GetModelResponse> {
        models::get(&self.service, &request.into_inner().model)
    }
}
