//! `GET /api/v1/plan?model=MODEL&context=N`: who would hold what, and why.

use accel_actors::NodeHandle;
use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::error::ApiError;
use super::resource;

#[derive(Deserialize)]
struct Query {
    model: Option<String>,
    context: Option<u32>,
}

/// The endpoint.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(resource("/api/v1/plan").route(web::get().to(plan)));
}

async fn plan(
    node: web::Data<NodeHandle>,
    query: web::Query<Query>,
) -> Result<HttpResponse, ApiError> {
    let Query { model, context } = query.into_inner();
    let Some(model) = model.filter(|model| !model.is_empty()) else {
        return Err(ApiError::param("model", "`model` is required"));
    };
    if context == Some(0) {
        return Err(ApiError::param("context", "`context` must be at least 1"));
    }
    Ok(HttpResponse::Ok().json(node.plan(&model, context).await?))
}
