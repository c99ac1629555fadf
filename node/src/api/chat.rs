//! `POST /v1/chat/completions`.

use accel_actors::{Input, NodeHandle};
use accel_inference::ChatMessage;
use actix_web::guard::fn_guard;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;

use super::answer;
use super::error::ApiError;
use super::openai::request::ChatRequest;
use super::openai::response::Kind;
use super::{resource, resume, tolerance};

/// The endpoint.
pub fn routes(config: &mut web::ServiceConfig) {
    let again = web::post().guard(fn_guard(resume::is_asked));
    config.service(
        resource("/v1/chat/completions")
            .route(again.to(resume::again))
            .route(web::post().to(create)),
    );
}

async fn create(
    node: web::Data<NodeHandle>,
    http: HttpRequest,
    body: web::Json<Value>,
) -> Result<HttpResponse, ApiError> {
    let mut request = ChatRequest::parse(body.into_inner())?;
    tolerance::from_header(&http, &mut request.options)?;
    let messages = request.messages.into_iter().map(|message| ChatMessage {
        role: message.role,
        content: message.content,
    });
    let input = Input::Chat(messages.collect());
    answer::respond(&node, Kind::Chat, input, request.options).await
}
