//! One trial: a session in a swarm of its own, in the middle of which a node is lost.

use std::time::{Duration, Instant};

use accel_tests::client::{Client, Stream, delta};
use accel_tests::cluster::wait_for_warm_stages;
use accel_tests::models::Model;
use accel_tests::{ChatRequest, Cluster, Node, NodeOptions, PATIENCE};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{Options, alarms};

/// Nodes, of which three are needed.
pub const NODES: usize = 4;
/// Layers that a node takes, of 30.
pub const LAYERS: u32 = 10;
/// Tokens of the answer.
const ANSWER: u32 = 64;
/// Pieces of text before the loss.
const BEFORE: usize = 12;
/// How often the node is asked whether it has noticed.
const LOOK: Duration = Duration::from_millis(2);
const COUNT: &str = "one two three four five six seven eight nine ten eleven twelve thirteen ";

/// What one trial told; times in milliseconds.
#[derive(Debug, Clone)]
pub struct Told {
    /// From the loss until the coordinator had noticed.
    pub noticed: f64,
    /// From there until the stages were ready.
    pub place: Option<f64>,
    /// From there to the next token.
    pub rebuild: Option<f64>,
    /// From the last token before the loss to the first after it, as the node has it.
    pub stall: Option<f64>,
    /// The longest that the client saw nothing.
    pub silence: f64,
    /// Attempts to go on.
    pub recoveries: f64,
    /// How KV caches were rebuilt.
    pub way: String,
    /// What that was priced at.
    pub predicted: Option<f64>,
    /// What stages fetched after the loss.
    pub fetched_mib: f64,
}

/// Four nodes that know each other, with the model on the first.
pub async fn swarm(options: &Options, model: &Model) -> Result<Cluster> {
    let node = NodeOptions {
        max_layers: Some(LAYERS),
        args: match options.cold {
            true => vec!["--warm-stand-ins".into(), "false".into()],
            false => Vec::new(),
        },
        log: options.alarms.map(|_| alarms::LOG.to_owned()),
        ..NodeOptions::default()
    };
    let mut cluster = Cluster::empty()?;
    let first = cluster.add(node.clone()).await?;
    let others = NodeOptions {
        join: first.addrs.iter().take(1).cloned().collect(),
        swarm_key: Some(cluster.swarm_key.clone()),
        ..node
    };
    let mut starting = JoinSet::new();
    for _ in 1..NODES {
        let others = others.clone();
        starting.spawn(async move { Node::start(&others).await });
    }
    while let Some(started) = starting.join_next().await {
        cluster.nodes.push(started??);
    }
    cluster.wait_until_complete().await?;
    cluster
        .nodes
        .iter_mut()
        .for_each(|node| node.process.hush());
    let asked = cluster.nodes.first().context("the first node")?;
    asked.add_model(&model.path)?;
    Ok(cluster)
}

/// A prompt of about so many tokens; a number in words is about one.
pub fn prompt(tokens: usize) -> String {
    COUNT.repeat(tokens.div_ceil(COUNT.split_whitespace().count()))
}

/// One session, one loss.
pub async fn run(options: &Options, model: &Model, number: usize) -> Result<Told> {
    let mut cluster = swarm(options, model).await?;
    let asked = cluster.nodes.remove(0);
    let text = prompt(options.context);
    // The layers come to where they are needed, also to those who only may need them.
    asked
        .client
        .chat(&ChatRequest::greedy(&model.name, &text, ANSWER))
        .await?;
    if !options.cold && !options.as_it_is {
        // Each of two may be lost: the spare has their layers, or two spares have.
        wait_for_warm_stages(cluster.nodes.iter(), 2).await?;
    }

    let request = ChatRequest::greedy(&model.name, &text, ANSWER);
    let (listener, route) = begin(&asked, &request, BEFORE).await?;
    let (victims, spares): (Vec<Node>, Vec<Node>) = cluster
        .nodes
        .into_iter()
        .partition(|node| route.contains(&node.peer_id));
    let mut victims = victims;
    victims.sort_by_key(|node| route.iter().position(|peer| *peer == node.peer_id));
    let which = number % victims.len().max(1);
    let victim = victims
        .get_mut(which)
        .context("nobody else takes part in the session")?;
    let lost = Instant::now();
    match options.hang {
        true => victim.process.pause()?,
        false => victim.process.kill(),
    }
    let told = follow(&asked, listener, lost).await;
    drop((victims, spares));
    told
}

/// What became of a session that lost something just now.
pub async fn outlast(asked: &Node, listener: Listener) -> Result<Told> {
    follow(asked, listener, Instant::now()).await
}

async fn follow(asked: &Node, listener: Listener, lost: Instant) -> Result<Told> {
    let noticing = tokio::spawn(noticed(
        asked.client.clone(),
        listener.session.clone(),
        lost,
    ));
    let (silence, session) = listener.rest(lost).await?;
    let noticed = noticing.await??;
    told(&asked.client, &session, noticed, silence).await
}

/// A session of which so many pieces came, and its route.
pub async fn begin(
    asked: &Node,
    request: &ChatRequest,
    pieces: usize,
) -> Result<(Listener, Vec<String>)> {
    let mut listener = Listener::start(&asked.client, request).await?;
    listener.hear(pieces).await?;
    let route = route(&asked.client, &listener.session).await?;
    Ok((listener, route))
}

/// How long after the loss the coordinator had noticed it.
async fn noticed(client: Client, session: String, lost: Instant) -> Result<Duration> {
    loop {
        let view = client.session(&session).await?;
        if view["recoveries"].as_u64() >= Some(1) {
            return Ok(lost.elapsed());
        }
        if view["state"] == "done" || lost.elapsed() > PATIENCE {
            bail!("the loss changed nothing: {view}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn route(client: &Client, session: &str) -> Result<Vec<String>> {
    let view = client.session(session).await?;
    let hops = view["route"].as_array().context("a route")?;
    let peers = hops.iter().filter_map(|hop| hop["peer_id"].as_str());
    Ok(peers.map(str::to_owned).collect())
}

async fn told(
    client: &Client,
    session: &str,
    noticed: Duration,
    silence: Duration,
) -> Result<Told> {
    let view = client.session(session).await?;
    let log = view["recovery_log"].as_array().context("a log")?;
    let last = log.last().context("a recovery")?;
    let part = |name: &str| last[name]["value"].as_f64();
    let way = last["rebuild"].as_str().unwrap_or_default();
    Ok(Told {
        way: way.to_owned(),
        predicted: last["prices_ms"][way]["value"].as_f64(),
        noticed: millis(noticed),
        place: part("place_ms"),
        rebuild: part("rebuild_ms"),
        stall: part("stall_ms"),
        silence: millis(silence),
        recoveries: view["recoveries"].as_f64().unwrap_or_default(),
        fetched_mib: view["bytes_fetched"].as_f64().unwrap_or_default() / f64::from(1 << 20),
    })
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// An answer while it comes.
pub struct Listener {
    stream: Stream,
    session: String,
    /// When the last piece came, and the times between pieces.
    last: Option<Instant>,
    silences: Vec<Duration>,
}

impl Listener {
    async fn start(client: &Client, request: &ChatRequest) -> Result<Self> {
        Ok(Self {
            stream: client.stream(request).await?,
            session: String::new(),
            last: None,
            silences: Vec::new(),
        })
    }

    async fn hear(&mut self, pieces: usize) -> Result<()> {
        let mut heard = 0;
        while heard < pieces {
            let event = self.stream.next().await?.context("it ended early")?;
            heard += usize::from(self.take(&event)?);
        }
        Ok(())
    }

    /// Whether the event brought text.
    fn take(&mut self, event: &Value) -> Result<bool> {
        if let Some(error) = event.get("error") {
            bail!("the answer ended with {error}");
        }
        if let Some(id) = event.get("id").and_then(Value::as_str) {
            id.trim_start_matches("chatcmpl-")
                .clone_into(&mut self.session);
        }
        let is_piece = !delta(event).is_empty();
        if is_piece {
            let before = self.last.replace(Instant::now());
            self.silences.extend(before.map(|before| before.elapsed()));
        }
        Ok(is_piece)
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// The times between pieces since they were last taken.
    pub fn take_silences(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.silences)
    }

    /// Reads to the end; gives the times between the pieces.
    pub async fn rest_of_silences(&mut self) -> Result<Vec<Duration>> {
        while let Some(event) = self.stream.next().await? {
            self.take(&event)?;
        }
        Ok(self.take_silences())
    }

    /// Reads to the end; gives the longest silence since the loss.
    async fn rest(mut self, lost: Instant) -> Result<(Duration, String)> {
        self.take_silences();
        self.last = Some(lost);
        let silences = self.rest_of_silences().await?;
        let longest = silences.into_iter().max().unwrap_or_default();
        Ok((longest, self.session))
    }
}
