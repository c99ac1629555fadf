//! `GET /v1/models` and `GET /v1/models/MODEL`, as OpenAI defines them.

use accel_actors::{ModelView, NodeHandle};
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::error::ApiError;
use super::resource;

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/models").route(web::get().to(list)))
        .service(resource("/v1/models/{model:.+}").route(web::get().to(one)));
}

async fn list(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    let models = node.models().await?;
    let data: Vec<Value> = models.iter().map(entry).collect();
    Ok(HttpResponse::Ok().json(json!({"object": "list", "data": data})))
}

async fn one(
    node: web::Data<NodeHandle>,
    model: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let models = node.models().await?;
    let wanted = model.as_str();
    match models.iter().find(|m| m.name == wanted || m.cid == wanted) {
        Some(model) => Ok(HttpResponse::Ok().json(entry(model))),
        None => Err(unknown(wanted)),
    }
}

fn unknown(model: &str) -> ApiError {
    let message = format!("the model `{model}` is not known in this swarm");
    ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message)
        .with_param("model")
        .with_hint("`accel model ls` lists the models; `accel model add` adds one")
}

fn entry(model: &ModelView) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.added_unix.unwrap_or(0),
        "owned_by": "accel",
        "cid": model.cid,
        "bytes": model.bytes,
    })
}
