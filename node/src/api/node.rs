//! `GET /api/v1/node` and `GET /api/v1/peers`: this node, and whom it knows. `POST /api/v1/drain`: whether it
//! takes layers of sessions.

use accel_actors::NodeHandle;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::error::ApiError;
use super::openai::fields::Fields;
use super::resource;

/// The endpoints.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/api/v1/node").route(web::get().to(node)))
        .service(resource("/api/v1/drain").route(web::post().to(drain)))
        .service(resource("/api/v1/peers").route(web::get().to(peers)));
}

async fn node(node: web::Data<NodeHandle>) -> HttpResponse {
    let (swarm, private) = node.swarm();
    let (draining, stages) = node.draining();
    HttpResponse::Ok().json(json!({
        "peer_id": node.peer_id(),
        "version": env!("CARGO_PKG_VERSION"),
        "addrs": node.addrs(),
        "swarm": swarm,
        "private": private,
        "ready": node.ready().is_ok(),
        "draining": draining,
        "stages": stages,
    }))
}

async fn drain(
    node: web::Data<NodeHandle>,
    body: web::Json<Value>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = Fields::new(body.into_inner())?;
    let draining = fields.required_flag("draining")?;
    node.set_draining(draining);
    let (draining, stages) = node.draining();
    Ok(HttpResponse::Ok().json(json!({"draining": draining, "stages": stages})))
}

async fn peers(node: web::Data<NodeHandle>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(json!({"peers": node.peers().await?})))
}
