//! Health and metrics.

use accel_actors::NodeHandle;
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::error::ApiError;
use super::resource;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/health/live").route(web::get().to(live)))
        .service(resource("/health/ready").route(web::get().to(ready)))
        .service(resource("/metrics").route(web::get().to(metrics)));
}

async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "live"}))
}

async fn ready(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    match node.ready() {
        Ok(()) => Ok(HttpResponse::Ok().json(json!({"status": "ready"}))),
        Err(why) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(ApiError::new(status, "not_ready", why))
        }
    }
}

async fn metrics(node: web::Data<NodeHandle>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(PROMETHEUS)
        .body(node.metrics())
}
