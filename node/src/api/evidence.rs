//! `/api/v1/evidence`: that peers lied, and whether it is true; `/api/v1/quarantine`: whom to trust
//! again.

use accel_actors::{Evidence, Failure, NodeHandle};
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::error::ApiError;
use super::resource;

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/api/v1/evidence").route(web::get().to(list)))
        .service(resource("/api/v1/evidence/check").route(web::post().to(check)))
        .service(resource("/api/v1/evidence/{id}").route(web::get().to(show)))
        .service(resource("/api/v1/quarantine/{peer}").route(web::delete().to(lift)));
}

async fn list(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    let evidence = node.evidence().await?;
    Ok(HttpResponse::Ok().json(json!({"evidence": evidence})))
}

async fn show(
    node: web::Data<NodeHandle>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(node.evidence_show(&id).await?))
}

async fn check(node: web::Data<NodeHandle>, body: web::Bytes) -> Result<HttpResponse, ApiError> {
    let evidence = Evidence::read(&body).map_err(Failure::from)?;
    Ok(HttpResponse::Ok().json(node.evidence_check(evidence).await?))
}

async fn lift(
    node: web::Data<NodeHandle>,
    peer: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    if node.quarantine_lift(&peer).await? {
        return Ok(HttpResponse::Ok().json(json!({"lifted": peer.as_str()})));
    }
    let message = format!("peer {peer} is not in quarantine");
    let error = ApiError::new(StatusCode::NOT_FOUND, "not_in_quarantine", message);
    Err(error.with_hint("`accel evidence ls` shows who is"))
}
