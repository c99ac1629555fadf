//! `POST /v1/completions`.

use accel_actors::{Input, NodeHandle};
use actix_web::guard::fn_guard;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;

use super::answer;
use super::error::ApiError;
use super::openai::request::{CompletionRequest, Prompt};
use super::openai::response::Kind;
use super::{resource, resume, tolerance};

/// The endpoint.
pub fn routes(config: &mut web::ServiceConfig) {
    let again = web::post().guard(fn_guard(resume::is_asked));
    config.service(
        resource("/v1/completions")
            .route(again.to(resume::again))
            .route(web::post().to(create)),
    );
}

async fn create(
    node: web::Data<NodeHandle>,
    http: HttpRequest,
    body: web::Json<Value>,
) -> Result<HttpResponse, ApiError> {
    let mut request = CompletionRequest::parse(body.into_inner())?;
    tolerance::from_header(&http, &mut request.options)?;
    let input = match request.prompt {
        Prompt::Text(text) => Input::Text(text),
        Prompt::Tokens(tokens) => Input::Tokens(tokens),
    };
    answer::respond(&node, Kind::Text, input, request.options).await
}
