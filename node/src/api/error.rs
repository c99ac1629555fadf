//! Errors as OpenAI shapes them, with a hint: `{"error":{"message","type","param","code","hint"}}`.

use std::fmt;

use accel_actors::{ErrorKind, Failure, GenerateError, ModelsError, ReplicaView, ToleranceError};
use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Value, json};

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: String,
    message: String,
    param: Option<String>,
    hint: Option<String>,
    /// Other nodes that have the session.
    replicas: Box<[ReplicaView]>,
}

impl ApiError {
    /// An error with a status, a code for programs and a message for people.
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            hint: None,
            replicas: Box::default(),
        }
    }

    /// A parameter that is missing, of the wrong type or out of range.
    pub fn param(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message)
            .with_param(param)
            .with_hint(format!(
                "correct `{param}`, or leave it out if it is optional"
            ))
    }

    /// A parameter that OpenAI defines and this build does not support.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        let mut error = Self::param(param, message);
        error.code = "unsupported_parameter".into();
        error
    }

    /// An error of the node, which has its own code and hint.
    pub fn of(kind: ErrorKind, code: &str, message: String, hint: String) -> Self {
        let status = match kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::BadRequest => StatusCode::BAD_REQUEST,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, code, message).with_hint(hint)
    }

    /// Adds what to do next. An empty hint adds nothing.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// Names the parameter that is to blame.
    #[must_use]
    pub fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// Adds who else has the session, so that the client can come back there.
    #[must_use]
    pub fn with_replicas(mut self, replicas: Vec<ReplicaView>) -> Self {
        self.replicas = replicas.into();
        self
    }

    /// The body of the response, and the data of an error event within a stream.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
            "hint": self.hint,
        });
        if !self.replicas.is_empty() {
            error["replicas"] = json!(self.replicas);
        }
        json!({"error": error})
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let api_error = Self::of(error.kind(), error.code(), error.to_string(), error.hint());
        match error {
            GenerateError::BadField { field, .. } => api_error.with_param(field),
            GenerateError::Model(_) => api_error.with_param("model"),
            _ => api_error,
        }
    }
}

impl From<ModelsError> for ApiError {
    fn from(error: ModelsError) -> Self {
        Self::of(error.kind(), error.code(), error.to_string(), error.hint())
    }
}

impl From<ToleranceError> for ApiError {
    fn from(error: ToleranceError) -> Self {
        let refused = Self::new(StatusCode::BAD_REQUEST, error.code(), error.to_string());
        refused.with_hint(error.hint())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::of(failure.kind, &failure.code, failure.message, failure.hint)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        match self.status {
            StatusCode::UNAUTHORIZED => {
                response.insert_header((WWW_AUTHENTICATE, "Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                response.insert_header((RETRY_AFTER, "1"));
            }
            _ => {}
        }
        response.json(self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_every_key_of_the_contract() {
        let error = ApiError::param("top_p", "must be between 0 and 1").with_hint("leave it out");
        let expected = json!({"error": {
            "message": "must be between 0 and 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
            "hint": "leave it out",
        }});
        assert_eq!(error.body(), expected);
    }

    #[test]
    fn who_else_has_the_session_is_told_where_somebody_has() {
        let replica = ReplicaView {
            peer_id: "12D3".into(),
            api: Some("127.0.0.1:8421".into()),
        };
        let error = ApiError::param("n", "no").with_replicas(vec![replica]);
        let expected = json!([{"peer_id": "12D3", "api": "127.0.0.1:8421"}]);
        assert_eq!(error.body()["error"]["replicas"], expected);
    }

    #[test]
    fn the_type_follows_from_the_status() {
        let cases = [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (404, "invalid_request_error"),
            (413, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "server_error"),
            (503, "server_error"),
        ];
        for (status, kind) in cases {
            let status = StatusCode::from_u16(status).unwrap();
            let error = ApiError::new(status, "code", "message");
            assert_eq!(error.body()["error"]["type"], kind, "{status}");
        }
    }

    #[test]
    fn a_client_is_told_when_to_come_back() {
        let busy = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", "busy");
        assert!(busy.error_response().headers().contains_key(RETRY_AFTER));
        let wrong = ApiError::param("n", "no");
        assert!(!wrong.error_response().headers().contains_key(RETRY_AFTER));
    }
}
