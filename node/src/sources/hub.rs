//! The Hugging Face hub. A HEAD request tells the SHA-256 and the length that the hub has for a
//! large file (`x-linked-etag`, `x-linked-size`) before any byte of it is fetched.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response};

use super::SourceError;
use super::known::HubName;
use super::sink::Sink;

const ENDPOINT: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HEAD_TIMEOUT: Duration = Duration::from_secs(8);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that a file may have whose length the hub does not tell by its own header.
const MAX_BYTES: u64 = 1 << 42;

/// A file of a repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    owner: String,
    repo: String,
    path: Vec<String>,
}

impl HubFile {
    /// A file of the table of known models.
    pub fn new((owner, repo, file): &HubName) -> Self {
        Self {
            owner: (*owner).into(),
            repo: (*repo).into(),
            path: vec![(*file).into()],
        }
    }

    /// Reads `hf:OWNER/REPO/FILE`; the file may lie in directories of the repository.
    pub fn parse(reference: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError::Reference {
            reference: reference.into(),
        };
        let text = reference.strip_prefix("hf:").unwrap_or(reference);
        let mut parts = text.split('/').map(str::to_owned);
        let (Some(owner), Some(repo)) = (parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let path: Vec<String> = parts.collect();
        let all_safe = [&owner, &repo].into_iter().chain(&path).all(|p| is_safe(p));
        if path.is_empty() || !all_safe {
            return Err(wrong());
        }
        Ok(Self { owner, repo, path })
    }

    /// A directory for files of this repository.
    pub fn owner_and_repo(&self) -> String {
        format!("{}--{}", self.owner, self.repo)
    }

    /// The file's name without its directories.
    pub fn file_name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.owner, self.repo, self.path.join("/"))
    }
}

/// A name that is no way out of a directory and needs no escaping in an address.
fn is_safe(part: &str) -> bool {
    let plain = part
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'));
    plain && !part.is_empty() && !part.starts_with('.') && part.len() <= 200
}

/// What the hub says about a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub bytes: u64,
    pub sha256: Option<String>,
}

/// The hub, or a mirror of it.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    /// Set once no connection could be made: further candidates are not worth the wait.
    away: Arc<AtomicBool>,
}

impl Hub {
    /// The hub as `HF_ENDPOINT` and `HF_TOKEN` name it.
    pub fn from_env() -> Self {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty());
        let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
        Self::new(endpoint.as_deref().unwrap_or(ENDPOINT), token)
    }

    /// A hub at an address.
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            away: Arc::default(),
        }
    }

    /// Whether the hub did not even answer the last time.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Asks for length and hash of a file.
    pub async fn find(&self, file: &HubFile) -> Result<Found, SourceError> {
        // The hub's own headers are on its redirect, not on what the redirect leads to.
        let request = self.request(Method::HEAD, file, Policy::none())?;
        let response = self.send(file, request.timeout(HEAD_TIMEOUT)).await?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.http(file, format!("the hub answered {status}")));
        }
        Ok(found(response.headers()))
    }

    /// Fetches a file into the sink.
    pub async fn fetch(&self, file: &HubFile, sink: &mut Sink) -> Result<(), SourceError> {
        let request = self.request(Method::GET, file, Policy::limited(5))?;
        let response = self.send(file, request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.http(file, format!("the hub answered {status}")));
        }
        let mut body = response.bytes_stream();
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| self.http(file, crate::failure::chain(&error)))?;
            sink.write(&part)?;
        }
        Ok(())
    }

    fn request(
        &self,
        method: Method,
        file: &HubFile,
        redirects: Policy,
    ) -> Result<RequestBuilder, SourceError> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirects)
            .user_agent(concat!("accel/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| self.http(file, crate::failure::chain(&error)))?;
        let request = client.request(method, self.url(file));
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    async fn send(&self, file: &HubFile, request: RequestBuilder) -> Result<Response, SourceError> {
        request.send().await.map_err(|error| {
            if error.is_connect() || error.is_timeout() {
                self.away.store(true, Ordering::Relaxed);
            }
            self.http(file, crate::failure::chain(&error.without_url()))
        })
    }

    fn url(&self, file: &HubFile) -> String {
        let (owner, repo) = (&file.owner, &file.repo);
        format!(
            "{}/{owner}/{repo}/resolve/main/{}",
            self.endpoint,
            file.path.join("/")
        )
    }

    fn http(&self, file: &HubFile, problem: String) -> SourceError {
        SourceError::Http {
            url: self.url(file),
            problem,
        }
    }
}

fn found(headers: &HeaderMap) -> Found {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let sha256 = text("x-linked-etag")
        .map(|etag| etag.trim_matches('"').to_ascii_lowercase())
        .filter(|etag| etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit()));
    let bytes = text("x-linked-size")
        .or_else(|| text(CONTENT_LENGTH.as_str()))
        .and_then(|length| length.parse().ok());
    Found {
        bytes: bytes.unwrap_or(MAX_BYTES).min(MAX_BYTES),
        sha256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_owner_repository_and_file() {
        let file = HubFile::parse("hf:Qwen/Qwen2.5-GGUF/sub/q4.gguf").unwrap();
        assert_eq!(file.to_string(), "Qwen/Qwen2.5-GGUF/sub/q4.gguf");
        assert_eq!(file.owner_and_repo(), "Qwen--Qwen2.5-GGUF");
        assert_eq!(file.file_name(), "q4.gguf");
    }

    #[test]
    fn a_reference_that_is_none_or_leads_astray_is_refused() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/b",
            "hf:a/b/",
            "hf:a//c",
            "hf:a/b/..",
            "hf:../b/c",
            "hf:a/b/../c",
            "hf:a/b/c?d",
            "hf:a/b/c d",
            "hf:a/b/.hidden",
            "hf:a/b/c\\d",
        ] {
            assert!(HubFile::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_hub_s_own_headers_win() {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", "7".parse().unwrap());
        headers.insert("etag", "\"abc\"".parse().unwrap());
        let small = found(&headers);
        assert_eq!((small.bytes, small.sha256), (7, None));
        headers.insert("x-linked-size", "98362432".parse().unwrap());
        let etag = format!("\"{}\"", "AB".repeat(32));
        headers.insert("x-linked-etag", etag.parse().unwrap());
        let large = found(&headers);
        assert_eq!(large.bytes, 98_362_432);
        assert_eq!(large.sha256, Some("ab".repeat(32)));
    }
}
