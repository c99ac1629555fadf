//! The HTTP API of a node: OpenAI's endpoints under `/v1`, the node's own under `/api/v1`, health
//! and metrics. It is thin: each family of endpoints reads a request, asks the [`NodeHandle`] and
//! writes the answer.
//!
//! One file per family and one line in [`routes`]. `access` decides who may ask, `error` shapes
//! what goes wrong, `answer` and `sse` turn a generation into a whole answer or a stream,
//! `resume` and `form` let a
//! stream go on for a client that comes back, `openai` holds the shapes of requests and answers.

mod access;
mod answer;
mod chat;
mod completions;
mod error;
mod evidence;
mod form;
mod health;
mod key;
mod models;
mod node;
mod openai;
mod plan;
mod resume;
mod sessions;
mod sse;
mod store;
mod swarm;
mod tolerance;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use accel_actors::NodeHandle;
use actix_web::dev::ServerHandle;
use actix_web::error::JsonPayloadError;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpServer, Resource, web};

pub use access::Access;
pub use key::{ApiKey, KeyError};

use error::ApiError;

const MAX_BODY: usize = 8 << 20;
const WORKERS: usize = 2;
const MAX_CONNECTIONS: usize = 512;
/// Seconds that answers may take to reach their clients once the node has stopped.
const FLUSH: u64 = 2;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may idle. Longer than clients keep theirs (five seconds in Python's), or
/// they would send a request into one that is being closed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// All endpoints.
fn routes(config: &mut web::ServiceConfig) {
    config
        .configure(chat::routes)
        .configure(completions::routes)
        .configure(models::routes)
        .configure(node::routes)
        .configure(plan::routes)
        .configure(sessions::routes)
        .configure(store::routes)
        .configure(swarm::routes)
        .configure(evidence::routes)
        .configure(health::routes);
}

/// The HTTP server of a node.
pub struct Api {
    /// Where it listens.
    pub addr: SocketAddr,
    handle: ServerHandle,
}

impl Api {
    /// Serves on a socket that listens already.
    pub fn start(node: NodeHandle, listener: TcpListener, access: Access) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let node = web::Data::new(node);
        let access = web::Data::new(access);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(node.clone())
                .app_data(access.clone())
                .configure(settings)
                .wrap(from_fn(access::check))
        })
        .workers(WORKERS)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        // Each token is a small packet that should leave at once.
        .tcp_nodelay(true)
        .shutdown_timeout(FLUSH)
        // A client that closes its connection wants no answer any more: what computes it stops.
        .h1_allow_half_closed(false)
        .disable_signals()
        .listen(listener)?
        .run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(Self { addr, handle })
    }

    /// Takes no new requests and ends; the node has stopped before, and with it every answer.
    pub async fn stop(&self) {
        self.handle.stop(true).await;
    }
}

/// Everything of the application but its state.
fn settings(config: &mut web::ServiceConfig) {
    let json = web::JsonConfig::default()
        .limit(MAX_BODY)
        .error_handler(|error, _| json_error(&error).into());
    let query = web::QueryConfig::default().error_handler(|error, _| {
        let error = ApiError::param("query", error.to_string());
        error
            .with_hint("correct the part of the address after `?`")
            .into()
    });
    config
        .app_data(json)
        .app_data(web::PayloadConfig::new(MAX_BODY))
        .app_data(query)
        .configure(routes)
        .default_service(web::to(unknown_route));
}

/// A resource that answers other methods than its own with a JSON error.
fn resource(path: &str) -> Resource {
    web::resource(path.to_owned()).default_service(web::to(wrong_method))
}

async fn unknown_route(request: HttpRequest) -> Result<&'static str, ApiError> {
    let message = format!(
        "there is nothing at {} {}",
        request.method(),
        request.path()
    );
    let error = ApiError::new(StatusCode::NOT_FOUND, "unknown_route", message);
    Err(error.with_hint("endpoints are under /v1 (OpenAI's) and /api/v1 (the node's own)"))
}

async fn wrong_method(request: HttpRequest) -> Result<&'static str, ApiError> {
    let message = format!("{} does not take {}", request.path(), request.method());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let error = ApiError::new(status, "method_not_allowed", message);
    Err(error.with_hint("requests that compute or change something are POST, others GET"))
}

fn json_error(error: &JsonPayloadError) -> ApiError {
    match error {
        JsonPayloadError::Overflow { .. } | JsonPayloadError::OverflowKnownLength { .. } => {
            let message = format!("the body has more than {} MiB", MAX_BODY >> 20);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
                .with_hint("shorten the prompt; no model has room for that much text")
        }
        JsonPayloadError::ContentType => {
            let message = "the body must be JSON";
            ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message)
                .with_hint("send the header `content-type: application/json`")
        }
        JsonPayloadError::Deserialize(problem) => {
            let message = format!("the body is not valid JSON: {problem}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
                .with_hint("correct the body at the line and column that are named")
        }
        other => ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", other.to_string()),
    }
}

#[cfg(test)]
mod tests;
