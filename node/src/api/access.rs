//! Who may use the API. Bound to loopback it is open to this machine; bound to anything else it
//! asks for the key. An open API is still closed to web pages: a page can make a browser send
//! requests to this machine, but not with a `Host` that is an address of it.

use std::net::{IpAddr, SocketAddr};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HOST};
use actix_web::middleware::Next;
use actix_web::{Error, web};

use super::error::ApiError;
use super::key::ApiKey;

/// What a request must present.
#[derive(Clone)]
pub enum Access {
    /// Nothing, but it must be addressed to this machine by an address or as `localhost`.
    Open,
    /// The key.
    Key(ApiKey),
}

impl Access {
    /// Whether an API at this address needs a key.
    pub fn needs_key(addr: &SocketAddr) -> bool {
        !addr.ip().is_loopback()
    }

    fn admit(&self, request: &ServiceRequest) -> Result<(), ApiError> {
        match self {
            Self::Open => admit_host(host(request)),
            Self::Key(key) => admit_key(key, bearer(request)),
        }
    }
}

/// Lets a request pass, or answers it with 401 or 403. Health is for everybody: it tells nothing.
pub async fn check(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if !request.path().starts_with("/health/") {
        let access = request.app_data::<web::Data<Access>>();
        match access {
            Some(access) => access.admit(&request)?,
            None => return Err(closed().into()),
        }
    }
    next.call(request).await
}

fn closed() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "closed", "nobody may use this API")
}

/// What the client itself says; headers of proxies would be the word of whoever wrote them.
fn host(request: &ServiceRequest) -> &str {
    let value = request.headers().get(HOST);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn bearer(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn admit_key(key: &ApiKey, presented: Option<&str>) -> Result<(), ApiError> {
    let message = match presented {
        Some(presented) if key.matches(presented) => return Ok(()),
        Some(_) => "the API key is wrong",
        None => "this API needs a key",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
    Err(error.with_hint(
        "send the header `Authorization: Bearer KEY`; `accel key` on the node's machine shows it",
    ))
}

fn admit_host(host: &str) -> Result<(), ApiError> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let message = format!("this API is not `{host}`");
    let error = ApiError::new(StatusCode::FORBIDDEN, "foreign_host", message);
    Err(error.with_hint("address it as localhost or by its IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_needs_no_key() {
        for (addr, needed) in [
            ("127.0.0.1:8420", false),
            ("[::1]:8420", false),
            ("0.0.0.0:8420", true),
            ("192.168.1.2:8420", true),
            ("[::]:8420", true),
        ] {
            assert_eq!(Access::needs_key(&addr.parse().unwrap()), needed, "{addr}");
        }
    }

    #[test]
    fn a_name_that_a_web_page_may_point_here_is_refused() {
        for host in ["localhost", "localhost:8420", "127.0.0.1:1", "[::1]:8420"] {
            assert!(admit_host(host).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8420",
            "",
            "127.0.0.1.evil.example",
        ] {
            assert!(admit_host(host).is_err(), "{host}");
        }
    }

    #[test]
    fn a_wrong_key_and_no_key_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let key = ApiKey::load_or_create(dir.path()).unwrap();
        assert!(admit_key(&key, Some(key.reveal())).is_ok());
        let wrong = admit_key(&key, Some("x")).unwrap_err().to_string();
        let none = admit_key(&key, None).unwrap_err().to_string();
        assert!(wrong.contains("wrong") && none.contains("needs a key"));
    }
}
