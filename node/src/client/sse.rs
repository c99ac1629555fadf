//! Reads a stream of server-sent events.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::ClientError;
use crate::failure::chain;

/// The most bytes of one event.
const MAX_EVENT: usize = 1 << 20;
/// A node says every two seconds of a stream that it is still there. One that says nothing for so long
/// hangs, or is cut off.
const SILENCE: Duration = Duration::from_secs(6);
const DONE: &str = "[DONE]";
const SESSION: &str = "x-accel-session";
const REPLICAS: &str = "x-accel-replicas";

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub data: Value,
}

/// The events of one response, until `[DONE]` or its end.
pub struct Events {
    base: String,
    response: reqwest::Response,
    buffer: Buffer,
    session: Option<String>,
    /// Where else it can be gone on with.
    replicas: Vec<String>,
    /// Nothing more comes.
    done: bool,
    /// Because all of it came.
    complete: bool,
}

impl Events {
    /// The events of a response.
    pub fn new(base: String, response: reqwest::Response) -> Self {
        let header = |name| response.headers().get(name)?.to_str().ok();
        let session = header(SESSION).map(str::to_owned);
        let replicas = header(REPLICAS).map(apis).unwrap_or_default();
        Self {
            base,
            session,
            replicas,
            response,
            buffer: Buffer::default(),
            done: false,
            complete: false,
        }
    }

    /// The session that the response belongs to.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The APIs of the other nodes that keep the session's journal.
    pub fn replicas(&self) -> &[String] {
        &self.replicas
    }

    /// Whether the stream said that it was complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What is wrong with a stream that ended and is not complete.
    pub fn cut_short(&self) -> ClientError {
        self.broken("it ended too early".into())
    }

    /// The next event. An error event is an error.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        while !self.done {
            if let Some(lines) = self.buffer.take() {
                match parse(&lines) {
                    Parsed::Nothing => continue,
                    Parsed::Done => (self.done, self.complete) = (true, true),
                    Parsed::Event(event) => return self.check(event).map(Some),
                    Parsed::Malformed(problem) => return Err(self.broken(problem)),
                }
                continue;
            }
            let Ok(part) = timeout(SILENCE, self.response.chunk()).await else {
                return Err(ClientError::Silent {
                    base: self.base.clone(),
                    seconds: SILENCE.as_secs(),
                });
            };
            match part.map_err(|error| self.broken(chain(&error.without_url())))? {
                Some(bytes) if self.buffer.push(&bytes) => {}
                Some(_) => return Err(self.broken("an event has no end".into())),
                None => self.done = true,
            }
        }
        Ok(None)
    }

    fn check(&mut self, event: Event) -> Result<Event, ClientError> {
        match ClientError::refused(200, &event.data) {
            Some(error) => {
                self.replicas.extend(told(&event.data));
                Err(error)
            }
            None => Ok(event),
        }
    }

    fn broken(&self, problem: String) -> ClientError {
        ClientError::Broken {
            base: self.base.clone(),
            problem,
        }
    }
}

/// The addresses that an error event has of nodes where the session can be gone on with.
fn told(data: &Value) -> Vec<String> {
    let replicas = data.pointer("/error/replicas").and_then(Value::as_array);
    let apis = replicas
        .into_iter()
        .flatten()
        .filter_map(|row| row.get("api"));
    let apis = apis.filter_map(Value::as_str);
    apis.map(str::to_owned).collect()
}

/// The addresses in a list of `PEER=ADDRESS`; not every peer says where its API is.
fn apis(header: &str) -> Vec<String> {
    let peers = header.split(',').filter_map(|peer| peer.split_once('='));
    peers.map(|(_, api)| api.trim().to_owned()).collect()
}

/// Bytes that arrived and are not yet an event.
#[derive(Default)]
struct Buffer(Vec<u8>);

impl Buffer {
    /// Whether the bytes were taken.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.0.len() + bytes.len() <= MAX_EVENT;
        if fits {
            self.0.extend_from_slice(bytes);
        }
        fits
    }

    /// The text of the first complete event.
    fn take(&mut self) -> Option<String> {
        let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
        let rest = self.0.split_off(end + 2);
        let event = std::mem::replace(&mut self.0, rest);
        Some(String::from_utf8_lossy(&event).into_owned())
    }
}

enum Parsed {
    Nothing,
    Done,
    Event(Event),
    Malformed(String),
}

fn parse(text: &str) -> Parsed {
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().map(str::trim)
    };
    let Some(data) = field("data:") else {
        return Parsed::Nothing;
    };
    if data == DONE {
        return Parsed::Done;
    }
    match serde_json::from_str(data) {
        Ok(data) => Parsed::Event(Event {
            id: field("id:").map(str::to_owned),
            data,
        }),
        Err(error) => Parsed::Malformed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_complete_at_the_empty_line_however_it_was_cut() {
        let text = b"id: s:0\ndata: {\"a\":\"\xc3\xa9\"}\n\n: still\n\ndata: [DONE]\n\n";
        for size in 1..text.len() {
            let mut buffer = Buffer::default();
            let mut found = Vec::new();
            for part in text.chunks(size) {
                assert!(buffer.push(part));
                while let Some(event) = buffer.take() {
                    found.push(event);
                }
            }
            assert_eq!(found.len(), 3, "in parts of {size}");
            let Parsed::Event(event) = parse(&found[0]) else {
                panic!("in parts of {size}");
            };
            assert_eq!(event.id.as_deref(), Some("s:0"));
            assert_eq!(event.data, json!({"a": "é"}));
            assert!(matches!(parse(&found[1]), Parsed::Nothing));
            assert!(matches!(parse(&found[2]), Parsed::Done));
        }
    }

    #[test]
    fn replicas_that_say_where_their_api_is_are_known_by_it() {
        let header = "12D3a=127.0.0.1:8421,12D3b, 12D3c=[::1]:8422";
        assert_eq!(apis(header), ["127.0.0.1:8421", "[::1]:8422"]);
        assert_eq!(apis(""), [""; 0]);
    }

    #[test]
    fn an_error_event_tells_where_the_session_is_now() {
        let rows =
            json!([{"peer_id": "a", "api": "127.0.0.1:8421"}, {"peer_id": "b", "api": null}]);
        let data = json!({"error": {"message": "stopping", "replicas": rows}});
        assert_eq!(told(&data), ["127.0.0.1:8421"]);
        assert_eq!(told(&json!({"error": {"message": "no"}})), [""; 0]);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut buffer = Buffer::default();
        assert!(buffer.push(&vec![b'x'; MAX_EVENT]));
        assert!(!buffer.push(b"x"));
    }
}
