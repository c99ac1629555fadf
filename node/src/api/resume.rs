//! A client whose stream broke comes back: with `Last-Event-ID: SESSION:INDEX` to the address that
//! it had sent its request to, or to `GET /api/v1/sessions/ID/stream`, as a browser's EventSource
//! does. It gets the stream on from the token after INDEX. Everything else is in the journal: the
//! body of the request, if there is one, is not read again.

use accel_actors::NodeHandle;
use actix_web::guard::GuardContext;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::answer;
use super::error::ApiError;

const HEADER: &str = "last-event-id";

/// Whether a request is one to go on.
pub fn is_asked(request: &GuardContext<'_>) -> bool {
    request.head().headers().contains_key(HEADER)
}

/// `POST` to an endpoint for completions, with the header.
pub async fn again(
    node: web::Data<NodeHandle>,
    http: HttpRequest,
    _unread: web::Bytes,
) -> Result<HttpResponse, ApiError> {
    let last = last_event(&http)?.ok_or_else(malformed)?;
    answer::go_on(&node, &last.session, Some(last.index)).await
}

/// `GET /api/v1/sessions/ID/stream`: from the beginning, or from the header on.
pub async fn stream(
    node: web::Data<NodeHandle>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let last = last_event(&http)?;
    if last.as_ref().is_some_and(|last| last.session != *id) {
        return Err(malformed().with_hint("the header names another session than the address"));
    }
    answer::go_on(&node, &id, last.map(|last| last.index)).await
}

/// The last event that a client has.
#[derive(Debug, PartialEq, Eq)]
struct LastEvent {
    session: String,
    index: u64,
}

fn last_event(http: &HttpRequest) -> Result<Option<LastEvent>, ApiError> {
    let Some(value) = http.headers().get(HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| malformed())?;
    parse(text).map(Some).ok_or_else(malformed)
}

fn parse(text: &str) -> Option<LastEvent> {
    let (session, index) = text.trim().split_once(':')?;
    let is_id = session.len() == 32 && session.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    if !is_id || !is_number {
        return None;
    }
    Some(LastEvent {
        session: session.to_owned(),
        index: index.parse().ok()?,
    })
}

fn malformed() -> ApiError {
    let message = "`Last-Event-ID` is not of the form SESSION:INDEX";
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message)
        .with_param("Last-Event-ID")
        .with_hint("send the id of the last event of the stream, as it was, or leave it out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_is_read_and_everything_else_refused() {
        let session = "00112233445566778899aabbccddeeff";
        let expected = LastEvent {
            session: session.to_owned(),
            index: 17,
        };
        assert_eq!(parse(&format!("{session}:17")), Some(expected));
        let malformed = [
            String::new(),
            session.to_owned(),
            format!("{session}:"),
            format!("{session}:-1"),
            format!("{session}:+1"),
            format!("{session}:1:2"),
            format!("{session}:99999999999999999999"),
            format!("{}:1", &session[1..]),
            format!("x{}:1", &session[1..]),
            ":1".to_owned(),
        ];
        for text in malformed {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}
