//! ListModels and GetModel: the one model that a router serves.

use tonic::{Response, Status};

use super::status;
use crate::{
    service::Service,
    validate,
    wire::v1::{GetModelResponse, ListModelsResponse, Model},
};

/// Who made the model available; as in `/v1/models`.
const OWNED_BY: &str = "dopd";

/// All models.
pub(super) fn list(service: &Service) -> Response<ListModelsResponse> {
    Response::new(ListModelsResponse {
        models: vec![card(service)],
    })
}

/// The model `name`; none named means the only one.
pub(super) fn get(service: &Service, name: &str) -> Result<Response<GetModelResponse>, Status> {
    validate::check_model(Some(name), service.model()).map_err(|error| status::of(&error, None))?;
    Ok(Response::new(GetModelResponse {
        model: Some(card(service)),
    }))
}

fn card(service: &Service) -> Model {
    let model = service.model();
    Model {
        name: model.name.clone(),
        created_s: i64::try_from(model.created).unwrap_or(i64::MAX),
        owned_by: OWNED_BY.to_owned(),
        max_model_len: model.max_model_len,
        ready: service.is_ready(),
    }
}
