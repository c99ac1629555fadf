//! `GET /api/v1/sessions` and `GET /api/v1/sessions/ID`: what is computed, where, and how far it is;
//! `GET /api/v1/sessions/ID/stream`: its answer, for a client that comes back.

use accel_actors::NodeHandle;
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::error::ApiError;
use super::{resource, resume};

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/api/v1/sessions").route(web::get().to(list)))
        .service(resource("/api/v1/sessions/{id}").route(web::get().to(one)))
        .service(resource("/api/v1/sessions/{id}/stream").route(web::get().to(resume::stream)));
}

async fn list(node: web::Data<NodeHandle>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"sessions": node.sessions()}))
}

async fn one(node: web::Data<NodeHandle>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    match node.session(&id) {
        Some(session) => Ok(HttpResponse::Ok().json(session)),
        None => {
            let message = format!("this node has no session `{id}`");
            let error = ApiError::new(StatusCode::NOT_FOUND, "session_not_found", message);
            Err(error.with_hint("ask the node that took the request; old sessions are forgotten"))
        }
    }
}
