//! A stream of events that outlasts its connection: when that breaks, the client comes back to the
//! node with the id of its last event, and the stream goes on from there. When the node is gone, stops or
//! hangs, and others have the session's journal, the client comes back to one of these.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Client, ClientError, Event, Events};
use crate::terminal;

/// How long it is tried to come back, without an event in between.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Nodes that are asked, at most.
const MOST_NODES: usize = 8;

/// Refusals after which it makes sense to try again: what is in the way will be gone.
const MAY_PASS: [&str; 6] = [
    "shutting_down",
    "overloaded",
    "session_busy",
    "session_suspended",
    "session_moved",
    "too_few_replicas",
];

/// See the module.
pub struct Lasting {
    /// The node that was asked first, and those that keep the session.
    nodes: Vec<Client>,
    events: Events,
    session: Option<String>,
    last_id: Option<String>,
    /// Since when no event came.
    broken: Option<Instant>,
    pause: Duration,
}

impl Lasting {
    /// A stream that has begun.
    pub fn new(client: &Client, events: Events) -> Self {
        Self {
            nodes: vec![client.clone()],
            session: events.session().map(str::to_owned),
            events,
            last_id: None,
            broken: None,
            pause: FIRST_PAUSE,
        }
    }

    /// The next event; none behind the last. Nothing comes twice.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            match self.events.next().await {
                Ok(Some(event)) => {
                    self.came(&event);
                    return Ok(Some(event));
                }
                Ok(None) if self.events.is_complete() => return Ok(None),
                Ok(None) => self.come_back(self.events.cut_short()).await?,
                Err(error) if may_pass(&error) => self.come_back(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    fn came(&mut self, event: &Event) {
        if event.id.is_some() {
            self.last_id.clone_from(&event.id);
        }
        self.broken = None;
        self.pause = FIRST_PAUSE;
    }

    async fn come_back(&mut self, mut error: ClientError) -> Result<(), ClientError> {
        let Some(session) = self.session.clone() else {
            return Err(error);
        };
        self.learn_nodes();
        if let ClientError::Silent { .. } = error {
            // Whoever hangs would let it wait once more.
            self.nodes.rotate_left(1);
        }
        let since = *self.broken.get_or_insert_with(Instant::now);
        terminal::note(&format!("{error}; trying to go on"));
        while since.elapsed() + self.pause < PATIENCE {
            sleep(self.pause).await;
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
            match self.ask_all(&session).await {
                Ok(events) => {
                    terminal::note("the answer goes on");
                    self.events = events;
                    return Ok(());
                }
                Err(refusal) if may_pass(&refusal) => error = refusal,
                Err(refusal) => return Err(refusal),
            }
        }
        Err(error)
    }

    /// Those that the stream named come right behind the node that it came from.
    fn learn_nodes(&mut self) {
        let Some(asked) = self.nodes.first().cloned() else {
            return;
        };
        for api in self.events.replicas() {
            let node = asked.elsewhere(api);
            if !self.nodes.iter().any(|known| known.is_at(&node)) {
                self.nodes.insert(1, node);
            }
        }
        self.nodes.truncate(MOST_NODES);
    }

    /// Asks one node after the other. While there is hope at one of them, that counts.
    async fn ask_all(&mut self, session: &str) -> Result<Events, ClientError> {
        let last_id = self.last_id.as_deref();
        let mut refusal = None;
        for at in 0..self.nodes.len() {
            let Some(node) = self.nodes.get(at) else {
                break;
            };
            match node.resume(session, last_id).await {
                Ok(events) => {
                    // Whoever goes on with it knows who keeps it now.
                    let node = self.nodes.remove(at);
                    self.nodes.insert(0, node);
                    return Ok(events);
                }
                Err(error) if may_pass(&error) => refusal = Some(error),
                Err(error) => {
                    refusal.get_or_insert(error);
                }
            }
        }
        Err(refusal.unwrap_or_else(|| self.events.cut_short()))
    }
}

/// Whether it makes sense to try again.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::Broken { .. }
        | ClientError::Silent { .. } => true,
        ClientError::Refused { code, .. } => MAY_PASS.contains(&code.as_str()),
        ClientError::Strange { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::client::NodeAddress;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nx-accel-session: 5e55\r\ncontent-length: 1000\r\n\r\n";

    /// Takes a request and gives its head.
    async fn request(listener: &TcpListener) -> (TcpStream, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap().to_lowercase())
    }

    #[tokio::test]
    async fn a_stream_that_breaks_goes_on_behind_its_last_event() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = listener.local_addr().unwrap().to_string();
        let node = tokio::spawn(async move {
            let (mut stream, first) = request(&listener).await;
            let events = "id: 5e55:0\ndata: {\"n\":0}\n\nid: 5e55:1\ndata: {\"n\":1}\n\n: x";
            let answer = format!("{HEAD}{events}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            drop(stream);
            let (mut stream, second) = request(&listener).await;
            let answer = format!("{HEAD}id: 5e55:2\ndata: {{\"n\":2}}\n\ndata: [DONE]\n\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            (stream, first, second)
        });
        let address = NodeAddress { api, api_key: None };
        let client = Client::new(&address).unwrap();
        let body = serde_json::json!({});
        let events = client.stream("/v1/completions", &body).await.unwrap();
        let mut stream = Lasting::new(&client, events);
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await.unwrap() {
            seen.push(event.data["n"].as_u64().unwrap());
        }
        assert_eq!(seen, [0, 1, 2]);
        let (_stream, first, second) = node.await.unwrap();
        assert!(first.starts_with("post /v1/completions "), "{first}");
        assert!(!first.contains("last-event-id"), "{first}");
        let again = "get /api/v1/sessions/5e55/stream ";
        assert!(second.starts_with(again), "{second}");
        assert!(second.contains("last-event-id: 5e55:1\r\n"), "{second}");
    }

    #[tokio::test]
    async fn behind_a_node_that_hangs_another_one_is_asked_first() {
        let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = hangs.local_addr().unwrap().to_string();
        let elsewhere = other.local_addr().unwrap().to_string();
        let hanging = tokio::spawn(async move {
            let (mut stream, _) = request(&hangs).await;
            let replicas = format!("x-accel-replicas: 12D3={elsewhere}\r\n");
            let head = HEAD.replace("content-length", &format!("{replicas}content-length"));
            let answer = format!("{head}id: 5e55:0\ndata: {{\"n\":0}}\n\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            (stream, hangs)
        });
        let answering = tokio::spawn(async move {
            let (mut stream, asked) = request(&other).await;
            let answer = format!("{HEAD}id: 5e55:1\ndata: {{\"n\":1}}\n\ndata: [DONE]\n\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            (stream, asked)
        });
        let address = NodeAddress { api, api_key: None };
        let client = Client::new(&address).unwrap();
        let body = serde_json::json!({});
        let events = client.stream("/v1/completions", &body).await.unwrap();
        let mut stream = Lasting::new(&client, events);
        let _hanging = hanging.await.unwrap();
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await.unwrap() {
            seen.push(event.data["n"].as_u64().unwrap());
        }
        assert_eq!(seen, [0, 1]);
        let (_stream, asked) = answering.await.unwrap();
        assert!(asked.contains("last-event-id: 5e55:0\r\n"), "{asked}");
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        let refused = |code: &str| ClientError::Refused {
            status: 503,
            code: code.into(),
            message: "no".into(),
            hint: String::new(),
        };
        assert!(may_pass(&refused("overloaded")));
        assert!(!may_pass(&refused("session_not_found")));
        assert!(!may_pass(&refused("no_stand_in")));
    }
}
