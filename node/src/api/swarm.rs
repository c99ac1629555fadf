//! `POST /api/v1/swarm/invite`: a string with which another machine joins this node's swarm.

use std::time::Duration;

use accel_actors::NodeHandle;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::error::ApiError;
use super::openai::fields::Fields;
use super::resource;

const DAY: i64 = 24 * 60 * 60;
const LONGEST: i64 = 365 * DAY;

/// The endpoint.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(resource("/api/v1/swarm/invite").route(web::post().to(invite)));
}

async fn invite(
    node: web::Data<NodeHandle>,
    body: web::Json<Value>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = Fields::new(body.into_inner())?;
    let seconds = fields.integer("ttl_seconds", 1..=LONGEST)?.unwrap_or(DAY);
    let invite = node.invite(Duration::from_secs(seconds as u64)).await?;
    Ok(HttpResponse::Ok().json(json!({"invite": invite, "ttl_seconds": seconds})))
}
