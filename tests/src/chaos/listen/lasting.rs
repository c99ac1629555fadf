//! A client that comes back as `accel run` does: with the id of its last event, to the node that it had
//! asked and to those that were named to it. It knows the other nodes of the swarm, too, and asks them last. A
//! request of which no session is known yet is sent again, to another node.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result};
use serde_json::Value;
use tokio::time::{error::Elapsed, sleep, timeout};

use super::{Heard, lock, take};
use crate::{
    ChatRequest, Client,
    chaos::swarm::Directory,
    client::{Reply, Stream},
};

/// How long it is tried to come back, without an event in between.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stream is silent, also of comments, when its node hangs; and how long a node may take that is
/// asked to go on.
const SILENCE: Duration = Duration::from_secs(6);
const RESUME_TIMEOUT: Duration = Duration::from_secs(12);
const UNAVAILABLE: u16 = 503;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Refusals after which it makes sense to try again: what is in the way will be gone.
const MAY_PASS: [&str; 6] = [
    "shutting_down",
    "overloaded",
    "session_busy",
    "session_suspended",
    "session_moved",
    "too_few_replicas",
];

/// Why there is no more for now, or for good.
struct Trouble {
    may_pass: bool,
    /// Whether the node hangs, for all that is known.
    is_silence: bool,
    why: String,
}

/// See the module.
pub(super) struct Lasting {
    nodes: Directory,
    request: ChatRequest,
    /// Whom to ask, the first one first.
    order: Vec<String>,
    session: Option<String>,
    last_id: Option<String>,
    /// Since when nothing came.
    broken: Option<Instant>,
    pause: Duration,
}

impl Lasting {
    pub(super) fn new(nodes: Directory, at: &str, request: ChatRequest) -> Self {
        Self {
            nodes,
            request,
            order: vec![at.to_owned()],
            session: None,
            last_id: None,
            broken: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Hears all of it, or why there is no more.
    pub(super) async fn hear(mut self, heard: &Mutex<Heard>) -> Result<(), String> {
        let mut asked = match self.order.first().cloned() {
            Some(first) => self.ask(&first, heard).await,
            None => return Err("there is nobody to ask".to_owned()),
        };
        loop {
            let trouble = match asked {
                Ok(mut stream) => match self.read(&mut stream, heard).await {
                    Ok(()) => return Ok(()),
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            if !trouble.may_pass || self.is_late() {
                return Err(trouble.why);
            }
            if lock(heard).broke.last() != Some(&trouble.why) {
                lock(heard).broke.push(trouble.why.clone());
            }
            if trouble.is_silence {
                // Whoever hangs would let it wait once more.
                self.order.rotate_left(1);
            }
            sleep(self.pause).await;
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
            asked = self.ask_all(heard).await;
        }
    }

    fn is_late(&mut self) -> bool {
        let since = *self.broken.get_or_insert_with(Instant::now);
        since.elapsed() + self.pause > PATIENCE
    }

    async fn read(&mut self, stream: &mut Stream, heard: &Mutex<Heard>) -> Result<(), Trouble> {
        loop {
            let event = stream.next().await;
            self.last_id = stream.last_id().map(str::to_owned).or(self.last_id.take());
            match event.map_err(broken)? {
                Some(event) => match event.get("error") {
                    Some(error) => return Err(self.told(error)),
                    None => self.came(&event, heard),
                },
                None if stream.is_complete() => return Ok(()),
                None => return Err(broken(anyhow::anyhow!("the stream ended too early"))),
            }
        }
    }

    fn came(&mut self, event: &Value, heard: &Mutex<Heard>) {
        self.broken = None;
        self.pause = FIRST_PAUSE;
        take(&mut lock(heard), event, Instant::now());
    }

    /// Asks one node after the other. While there is hope at one of them, that counts.
    async fn ask_all(&mut self, heard: &Mutex<Heard>) -> Result<Stream, Trouble> {
        for peer in self.nodes.peer_ids() {
            if !self.order.contains(&peer) {
                self.order.push(peer);
            }
        }
        let mut refusal: Option<Trouble> = None;
        for peer in self.order.clone() {
            match self.ask(&peer, heard).await {
                Ok(stream) => {
                    lock(heard).came_back += 1;
                    return Ok(stream);
                }
                Err(trouble) if trouble.may_pass => refusal = Some(trouble),
                Err(trouble) => {
                    refusal.get_or_insert(trouble);
                }
            }
        }
        Err(refusal.unwrap_or_else(|| broken(anyhow::anyhow!("no node is known"))))
    }

    async fn ask(&mut self, peer: &str, heard: &Mutex<Heard>) -> Result<Stream, Trouble> {
        let node = self.nodes.client(peer);
        let node = node.ok_or_else(|| broken(anyhow::anyhow!("{peer} is gone")))?;
        let stream = match self.open(&node).await.map_err(broken)? {
            Ok(stream) => stream,
            Err(reply) => return Err(self.refused(&reply)),
        };
        let mut stream = stream;
        stream.hang_up_after(SILENCE);
        self.session = stream.session().map(str::to_owned);
        self.order.retain(|known| known != peer);
        self.order.insert(0, peer.to_owned());
        self.prefer(stream.replicas());
        let mut heard = lock(heard);
        heard.session.clone_from(&self.session);
        peer.clone_into(&mut heard.at);
        Ok(stream)
    }

    async fn open(&self, node: &Client) -> Result<Result<Stream, Reply>> {
        match &self.session {
            Some(session) => {
                let asking = node.go_on(session, self.last_id.as_deref());
                let asked = timeout(RESUME_TIMEOUT, asking).await;
                asked.context("it does not answer")?
            }
            None => node.begin(&self.request).await,
        }
    }

    /// Those that are named come right behind the node that was asked.
    fn prefer(&mut self, named: &[String]) {
        for peer in named.iter().rev() {
            if self.order.first() != Some(peer) {
                self.order.retain(|known| known != peer);
                let at = self.order.len().min(1);
                self.order.insert(at, peer.clone());
            }
        }
    }

    fn refused(&mut self, reply: &Reply) -> Trouble {
        let why = format!("refused with {}", reply.status);
        match reply.body.get("error") {
            Some(error) => {
                let trouble = self.told(error);
                // Of a request that has no session yet, 503 says: not now.
                let is_new = self.session.is_none() && reply.status == UNAVAILABLE;
                Trouble {
                    why: format!("{why}: {}", trouble.why),
                    may_pass: trouble.may_pass || is_new,
                    ..trouble
                }
            }
            None => Trouble {
                may_pass: false,
                is_silence: false,
                why,
            },
        }
    }

    /// An error of a node, which may name those that have the session.
    fn told(&mut self, error: &Value) -> Trouble {
        let rows = error["replicas"].as_array().into_iter().flatten();
        let named = rows.filter_map(|row| row["peer_id"].as_str());
        let named: Vec<String> = named.map(str::to_owned).collect();
        self.prefer(&named);
        Trouble {
            may_pass: MAY_PASS.contains(&error["code"].as_str().unwrap_or_default()),
            is_silence: false,
            why: error.to_string(),
        }
    }
}

fn broken(error: Error) -> Trouble {
    Trouble {
        may_pass: true,
        is_silence: error.is::<Elapsed>(),
        why: format!("{error:#}"),
    }
}
