//! The commands' side of the HTTP API: how a command asks a running node.

pub mod answer;
mod lasting;
mod sse;

use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;

use crate::config::DEFAULT_API;
use crate::failure::chain;

pub use lasting::Lasting;
pub use sse::{Event, Events};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence: a busy node lets a request wait for its turn before it says anything.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a node may take that is asked to go on with a stream, before another is.
const RESUME_TIMEOUT: Duration = Duration::from_secs(12);
/// How soon a machine that is gone is noticed in that silence.
const KEEPALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "last-event-id";

/// Where the node is that a command asks.
#[derive(Debug, Clone, Args)]
pub struct NodeAddress {
    /// Address of the node's HTTP API
    #[arg(long, value_name = "ADDR", env = "ACCEL_API", default_value = DEFAULT_API)]
    pub api: String,
    /// Key of an API that is not on loopback (see `accel key`)
    #[arg(
        long,
        value_name = "KEY",
        env = "ACCEL_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
}

/// Why a node gave no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no node answers at {base}: {problem}")]
    Unreachable { base: String, problem: String },
    #[error("{message}")]
    Refused {
        status: u16,
        code: String,
        message: String,
        hint: String,
    },
    #[error("the answer of {base} broke off: {problem}")]
    Broken { base: String, problem: String },
    #[error("{base} has been silent for {seconds} s")]
    Silent { base: String, seconds: u64 },
    #[error("{base} answered something that is not of this program: {problem}")]
    Strange { base: String, problem: String },
}

impl ClientError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "start a node with `accel up`, or name another with --api or ACCEL_API".into()
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::Broken { .. } | Self::Silent { .. } => {
                "look at the log of the node, and try again".into()
            }
            Self::Strange { .. } => "check the address given by --api or ACCEL_API".into(),
        }
    }

    /// An error as the API writes it, in a response or within a stream.
    pub fn refused(status: u16, body: &Value) -> Option<Self> {
        let error = body.get("error")?;
        let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self::Refused {
            status,
            code: text("code").unwrap_or_default(),
            message: text("message")?,
            hint: text("hint").unwrap_or_default(),
        })
    }
}

/// A node that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// A node at an address like `127.0.0.1:8420` or `http://host:port`.
    pub fn new(address: &NodeAddress) -> Result<Self, ClientError> {
        let trimmed = address.api.trim_end_matches('/');
        let base = match trimmed.contains("://") {
            true => trimmed.to_owned(),
            false => format!("http://{trimmed}"),
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            // A connection that idles here would make a node that stops wait for it.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .build()
            .map_err(|error| ClientError::Strange {
                base: base.clone(),
                problem: chain(&error),
            })?;
        let key = address.api_key.clone();
        Ok(Self { http, base, key })
    }

    /// Another node, which is not told the key of this one.
    pub fn elsewhere(&self, api: &str) -> Self {
        Self {
            http: self.http.clone(),
            base: format!("http://{api}"),
            key: None,
        }
    }

    /// Whether both are one node.
    pub fn is_at(&self, other: &Self) -> bool {
        self.base == other.base
    }

    /// Gets a JSON document.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.request(Method::GET, path)).await?;
        self.document(response).await
    }

    /// Gets the list that a JSON document holds under a key.
    pub async fn list(&self, path: &str, key: &str) -> Result<Vec<Value>, ClientError> {
        let mut document = self.get(path).await?;
        match document.get_mut(key).map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(ClientError::Strange {
                base: self.base.clone(),
                problem: format!("there is no list of {key}"),
            }),
        }
    }

    /// Gets a JSON document about what the query names.
    pub async fn query(&self, path: &str, query: &[(&str, String)]) -> Result<Value, ClientError> {
        let request = self.request(Method::GET, path).query(query);
        let response = self.send(request).await?;
        self.document(response).await
    }

    /// Sends a JSON document and gets one.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.request(Method::POST, path).json(body);
        let response = self.send(request).await?;
        self.document(response).await
    }

    /// Puts something into place.
    pub async fn put(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.request(Method::PUT, path)).await?;
        self.document(response).await
    }

    /// Takes something away.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.request(Method::DELETE, path)).await?;
        self.document(response).await
    }

    /// Sends a JSON document and gets a stream of events.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, ClientError> {
        let request = self.request(Method::POST, path).json(body);
        let response = self.send(request).await?;
        Ok(Events::new(self.base.clone(), response))
    }

    /// Gets the rest of a session's stream, behind the event of this id; all of it without one.
    pub async fn resume(
        &self,
        session: &str,
        last_id: Option<&str>,
    ) -> Result<Events, ClientError> {
        let path = format!("/api/v1/sessions/{session}/stream");
        let mut request = self.request(Method::GET, &path);
        if let Some(id) = last_id {
            request = request.header(LAST_EVENT_ID, id);
        }
        let silent = |_| ClientError::Silent {
            base: self.base.clone(),
            seconds: RESUME_TIMEOUT.as_secs(),
        };
        let sending = timeout(RESUME_TIMEOUT, self.send(request)).await;
        let response = sending.map_err(silent)??;
        Ok(Events::new(self.base.clone(), response))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends, and turns an answer of an error status into the error that it tells.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request
            .send()
            .await
            .map_err(|error| ClientError::Unreachable {
                base: self.base.clone(),
                problem: chain(&error.without_url()),
            })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.document(response).await.unwrap_or_default();
        let told = ClientError::refused(status.as_u16(), &body);
        Err(told.unwrap_or_else(|| ClientError::Strange {
            base: self.base.clone(),
            problem: status.to_string(),
        }))
    }

    async fn document(&self, response: Response) -> Result<Value, ClientError> {
        response.json().await.map_err(|error| ClientError::Strange {
            base: self.base.clone(),
            problem: chain(&error.without_url()),
        })
    }
}
