//! How much a request survives, said in a header: for clients that cannot add to the body.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;

use super::error::ApiError;
use super::openai::request::{Options, level_of};

const HEADER: &str = "x-accel-fault-tolerance";

/// Takes the level from the header, unless the body has one.
pub fn from_header(http: &HttpRequest, options: &mut Options) -> Result<(), ApiError> {
    let Some(value) = http.headers().get(HEADER) else {
        return Ok(());
    };
    let text = value.to_str().map_err(|_| not_text())?;
    let level = level_of(text)?;
    options.fault_tolerance.get_or_insert(level);
    Ok(())
}

fn not_text() -> ApiError {
    let message = format!("the header `{HEADER}` is not plain text");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message)
        .with_hint("use `none`, `low`, `medium`, `high` or `critical`, or leave it out")
}
