//! What the tests ask a node over HTTP.

use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::PATIENCE;

/// A machine that is there answers at once, and one behind a broken network never does.
const CONNECTING: Duration = Duration::from_secs(5);
const LAST_EVENT_ID: &str = "last-event-id";

/// An HTTP client for one node.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// A status and a JSON body.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body; null when it was not JSON.
    pub body: Value,
    /// The header `x-accel-session`.
    pub session: Option<String>,
}

impl Reply {
    /// `error.code`, as OpenAI shapes an error.
    pub fn code(&self) -> &str {
        self.error_field("code")
    }

    /// `error.hint`: what to do next.
    pub fn hint(&self) -> &str {
        self.error_field("hint")
    }

    /// `error.message`.
    pub fn message(&self) -> &str {
        self.error_field("message")
    }

    fn error_field(&self, key: &str) -> &str {
        let field = self.body.pointer(&format!("/error/{key}"));
        field.and_then(Value::as_str).unwrap_or_default()
    }
}

/// A chat with one user message.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// Name or CID.
    pub model: String,
    /// The user's message.
    pub prompt: String,
    /// The most tokens of the answer.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// The seed of the sampler.
    pub seed: u64,
    /// What it survives; the node's default when absent.
    pub fault_tolerance: Option<&'static str>,
}

impl ChatRequest {
    /// A greedy request.
    pub fn greedy(model: &str, prompt: &str, max_tokens: u32) -> Self {
        Self {
            model: model.to_owned(),
            prompt: prompt.to_owned(),
            max_tokens,
            temperature: 0.0,
            seed: 1,
            fault_tolerance: None,
        }
    }

    fn json(&self, stream: bool) -> Value {
        json!({
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "return_token_ids": true,
            "fault_tolerance": self.fault_tolerance,
            "stream": stream,
        })
    }
}

/// A finished chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its token ids.
    pub tokens: Vec<u64>,
    /// `stop` or `length`.
    pub finish: String,
    /// `usage.completion_tokens`.
    pub completion_tokens: u64,
    /// `usage.prompt_tokens`.
    pub prompt_tokens: u64,
    /// The session that computed it.
    pub session: String,
}

impl Client {
    /// A client of the API at `host:port`.
    pub fn new(api: &str) -> Result<Self> {
        Self::with_headers(api, HeaderMap::new())
    }

    /// A client of an API that asks for a key.
    pub fn with_key(api: &str, key: &str) -> Result<Self> {
        let value = HeaderValue::from_str(&format!("Bearer {key}"))?;
        Self::with_headers(api, HeaderMap::from_iter([(AUTHORIZATION, value)]))
    }

    fn with_headers(api: &str, headers: HeaderMap) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .connect_timeout(CONNECTING)
            .default_headers(headers)
            // Sooner than a node closes it, or a request may meet a connection that is being closed.
            .pool_idle_timeout(Duration::from_secs(5))
            .build()?;
        let base = match api.starts_with("http") {
            true => api.trim_end_matches('/').to_owned(),
            false => format!("http://{api}"),
        };
        Ok(Self { base, http })
    }

    /// `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        let url = format!("{}{path}", self.base);
        reply(self.http.get(&url).send().await?).await
    }

    /// GET of something that is not JSON.
    pub async fn get_text(&self, path: &str) -> Result<(u16, String)> {
        let response = self.http.get(format!("{}{path}", self.base)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.post_text(path, body.to_string()).await
    }

    /// POST of anything, said to be JSON.
    pub async fn post_text(&self, path: &str, body: String) -> Result<Reply> {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(body);
        reply(request.send().await?).await
    }

    /// A chat without streaming that must succeed.
    pub async fn chat(&self, request: &ChatRequest) -> Result<Answer> {
        let reply = self
            .post("/v1/chat/completions", &request.json(false))
            .await?;
        if reply.status != 200 {
            bail!("the chat failed with {}: {}", reply.status, reply.body);
        }
        answer(&reply)
    }

    /// The same request as a stream.
    pub async fn stream(&self, request: &ChatRequest) -> Result<Stream> {
        self.begin(request).await?.map_err(failed)
    }

    /// The same request as a stream, or how it was refused.
    pub async fn begin(&self, request: &ChatRequest) -> Result<Result<Stream, Reply>> {
        let request = self
            .http
            .post(format!("{}/v1/chat/completions", self.base))
            .header("content-type", "application/json")
            .body(request.json(true).to_string());
        stream(request).await
    }

    /// Comes back for a chat's stream, behind the event of this id.
    pub async fn resume(&self, last_id: &str) -> Result<Stream> {
        stream(self.resume_raw(last_id)).await?.map_err(failed)
    }

    /// Comes back for a session's stream, behind the event of this id or from the first, or how that
    /// was refused.
    pub async fn go_on(
        &self,
        session: &str,
        last_id: Option<&str>,
    ) -> Result<Result<Stream, Reply>> {
        let url = format!("{}/api/v1/sessions/{session}/stream", self.base);
        let mut request = self.http.get(url);
        if let Some(last_id) = last_id {
            request = request.header(LAST_EVENT_ID, last_id);
        }
        stream(request).await
    }

    /// Comes back for a chat's stream, and is refused.
    pub async fn resume_refused(&self, last_id: &str) -> Result<Reply> {
        reply(self.resume_raw(last_id).send().await?).await
    }

    fn resume_raw(&self, last_id: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/v1/chat/completions", self.base);
        self.http.post(url).header(LAST_EVENT_ID, last_id)
    }

    /// The node's own view of a session.
    pub async fn session(&self, id: &str) -> Result<Value> {
        let reply = self.get(&format!("/api/v1/sessions/{id}")).await?;
        if reply.status != 200 {
            bail!("no session {id}: {}", reply.body);
        }
        Ok(reply.body)
    }
}

/// A running stream of server-sent events.
pub struct Stream {
    response: reqwest::Response,
    buffer: Vec<u8>,
    session: Option<String>,
    replicas: Vec<String>,
    /// The id of an event whose data has not come yet.
    next_id: Option<String>,
    last_id: Option<String>,
    complete: bool,
    /// How long it may be silent, also of comments.
    patience: Option<Duration>,
}

impl Stream {
    fn new(response: reqwest::Response) -> Self {
        Self {
            session: header(&response, "x-accel-session"),
            replicas: peers(&header(&response, "x-accel-replicas").unwrap_or_default()),
            response,
            buffer: Vec::new(),
            next_id: None,
            last_id: None,
            complete: false,
            patience: None,
        }
    }

    /// A silence of so long counts as its end.
    pub fn hang_up_after(&mut self, silence: Duration) {
        self.patience = Some(silence);
    }

    /// The session.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The PeerIds of the other nodes that keep the session's journal.
    pub fn replicas(&self) -> &[String] {
        &self.replicas
    }

    /// Whether it said that all of it came.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The id of the newest event that has one.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// The next `data:` line: JSON, or None after `[DONE]` or at the end.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8(line).context("an event is not UTF-8")?;
                if let Some(id) = line.strip_prefix("id:") {
                    self.next_id = Some(id.trim().to_owned());
                }
                match line.trim_end().strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => {
                        self.complete = true;
                        return Ok(None);
                    }
                    Some(data) => {
                        self.last_id = self.next_id.take().or_else(|| self.last_id.take());
                        return Ok(Some(serde_json::from_str(data)?));
                    }
                    None => continue,
                }
            }
            let chunk = self.response.chunk();
            let chunk = match self.patience {
                Some(patience) => timeout(patience, chunk).await.context("it is silent")?,
                None => chunk.await,
            };
            match chunk? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Reads to the end: the whole text.
    pub async fn text(mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(event) = self.next().await? {
            if let Some(error) = event.get("error") {
                bail!("the stream ended with {error}");
            }
            text.push_str(delta(&event));
        }
        Ok(text)
    }
}

/// The text that one event of a chat stream adds.
pub fn delta(event: &Value) -> &str {
    let content = event.pointer("/choices/0/delta/content");
    content.and_then(Value::as_str).unwrap_or_default()
}

async fn stream(request: reqwest::RequestBuilder) -> Result<Result<Stream, Reply>> {
    let response = request.send().await?;
    match response.status().is_success() {
        true => Ok(Ok(Stream::new(response))),
        false => Ok(Err(reply(response).await?)),
    }
}

fn failed(refusal: Reply) -> Error {
    anyhow!(
        "the stream failed with {}: {}",
        refusal.status,
        refusal.body
    )
}

fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// The peers in a list of `PEER=ADDRESS`; not every peer says where its API is.
fn peers(list: &str) -> Vec<String> {
    let names = list.split(',').map(|peer| peer.split('=').next());
    let names = names.flatten().map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn reply(response: reqwest::Response) -> Result<Reply> {
    let status = response.status().as_u16();
    let session = header(&response, "x-accel-session");
    let text = response.text().await?;
    Ok(Reply {
        status,
        body: serde_json::from_str(&text).unwrap_or(Value::Null),
        session,
    })
}

fn answer(reply: &Reply) -> Result<Answer> {
    let body = &reply.body;
    let text = |pointer: &str| {
        let found = body.pointer(pointer).and_then(Value::as_str);
        found
            .map(str::to_owned)
            .with_context(|| format!("no {pointer} in {body}"))
    };
    let number = |pointer: &str| {
        let found = body.pointer(pointer).and_then(Value::as_u64);
        found.with_context(|| format!("no {pointer} in {body}"))
    };
    let tokens = body
        .pointer("/choices/0/token_ids")
        .and_then(Value::as_array)
        .with_context(|| format!("no token ids in {body}"))?;
    Ok(Answer {
        text: text("/choices/0/message/content")?,
        tokens: tokens.iter().filter_map(Value::as_u64).collect(),
        finish: text("/choices/0/finish_reason")?,
        completion_tokens: number("/usage/completion_tokens")?,
        prompt_tokens: number("/usage/prompt_tokens")?,
        session: reply
            .session
            .clone()
            .context("no x-accel-session in the reply")?,
    })
}
