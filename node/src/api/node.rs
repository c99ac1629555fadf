//! `GET /api/v1/node` and `GET /api/v1/peers`: this node, and whom it knows.

use accel_actors::NodeHandle;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::error::ApiError;
use super::resource;

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/api/v1/node").route(web::get().to(node)))
        .service(resource("/api/v1/peers").route(web::get().to(peers)));
}

async fn node(node: web::Data<NodeHandle>) -> HttpResponse {
    let (swarm, private) = node.swarm();
    HttpResponse::Ok().json(json!({
        "peer_id": node.peer_id(),
        "version": env!("CARGO_PKG_VERSION"),
        "addrs": node.addrs(),
        "swarm": swarm,
        "private": private,
        "ready": node.ready().is_ok(),
    }))
}

async fn peers(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(json!({"peers": node.peers().await?})))
}
