//! `InferenceService.Generate`.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status, async_trait};

use super::{params, status, stream::GenerateStream, timeout};
use crate::{
    auth::Caller,
    error::Error,
    service::{Arrival, Service, Wake, Wanted},
    validate,
    wire::v1::{self, GenerateRequest, inference_service_server::InferenceService},
};

/// The service behind `dopd.v1.InferenceService`.
#[derive(Debug)]
pub(super) struct Inference {
    service: Arc<Service>,
}

impl Inference {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    fn check(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<(validate::Spec, Option<Duration>), Error> {
        let timeout = timeout::of(request.metadata())?;
        let params = params::params(request.into_inner());
        let mut spec = validate::check(params, self.service.limits(), self.service.model())?;
        spec.timeout = timeout;
        Ok((spec, timeout))
    }

    async fn start(
        &self,
        arrival: Arrival,
        request: Request<GenerateRequest>,
    ) -> Result<GenerateStream, Error> {
        let checked = self.check(request);
        let (spec, timeout) = checked.inspect_err(|error| self.service.refuse(&arrival, error))?;
        let deadline = timeout.map(|timeout| arrival.at + timeout);
        let wanted = Wanted {
            wake: Wake::Each,
            token_ids: true,
        };
        let answer = self.service.submit(arrival, spec, wanted).await?;
        Ok(GenerateStream::new(
            answer,
            self.service.shared_model(),
            deadline,
        ))
    }
}

#[async_trait]
impl InferenceService for Inference {
    type GenerateStream = GenerateStream;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateStream>, Status> {
        let arrival = self.service.arrive(Caller::default(), String::new());
        let arrival = arrival.map_err(|error| status::of(&error, None))?;
        let id = arrival.id.clone();
        let started = self.start(arrival, request).await;
        started
            .map(Response::new)
            .map_err(|error| status::of(&error, Some(&id)))
    }

    type ChatStream = tokio_stream::Empty<Result<v1::ChatResponse, Status>>;
    async fn chat(
        &self,
        _: Request<v1::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        Err(Status::unimplemented("chat"))
    }
    async fn tokenize(
        &self,
        _: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        Err(Status::unimplemented("tokenize"))
    }
    async fn detokenize(
        &self,
        _: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        Err(Status::unimplemented("detokenize"))
    }
    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Err(Status::unimplemented("list_models"))
    }
    async fn get_model(
        &self,
        _: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        Err(Status::unimplemented("get_model"))
    }
}
