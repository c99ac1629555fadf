//! The demo: three nodes on this machine, in a private swarm of their own, answer one chat
//! together; then one node answers the same alone, and the answers are compared token for token.
//!
//! The nodes are real processes of this program (`node`) that speak real HTTP and libp2p on the
//! loopback interface. Each takes at most a third of the model's layers, so the model must be
//! split. `report` is what came out.

mod node;
pub mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::cli::{add_file, obtain, write_new_key};
use crate::client::answer::{self, Heard};
use crate::failure::Failure;
use crate::sources::known;
use crate::terminal;
use node::{Node, Start};
use report::{Comparison, Report, Share};

const NODES: usize = 3;
/// So that no two nodes can hold the model.
const LAYERS_EACH: u32 = known::DEMO.layers.div_ceil(NODES as u32);
const DISCOVERY: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The second question is asked with drawn tokens, to show that these are repeatable, too.
const SEEDED: (f32, u64, u32) = (0.8, 42, 24);

/// What the demo asks.
#[derive(Debug, Clone)]
pub struct Question {
    pub prompt: String,
    pub max_tokens: u32,
}

/// Where text of the demo goes.
pub type Show<'a> = &'a mut dyn FnMut(&str) -> Result<(), Failure>;

/// Runs the demo. When it goes wrong, the ends of the nodes' logs are shown.
pub async fn run(question: &Question, show: Show<'_>) -> Result<Report, Failure> {
    let model = obtain(known::DEMO).await?;
    let mut scene = Scene::create(model)?;
    let result = act(&mut scene, question, show).await;
    if result.is_err() {
        scene.tell_logs();
    }
    scene.close().await;
    result
}

/// Everything that must be gone in the end. The nodes end before their directories do.
struct Scene {
    nodes: Vec<Node>,
    model: PathBuf,
    temp: TempDir,
}

impl Scene {
    fn create(model: PathBuf) -> Result<Self, Failure> {
        let temp = tempfile::Builder::new().prefix("accel-demo-").tempdir()?;
        Ok(Self {
            nodes: Vec::new(),
            model,
            temp,
        })
    }

    fn dir(&self) -> &Path {
        self.temp.path()
    }

    async fn close(&mut self) {
        for node in &mut self.nodes {
            node.ask_to_stop();
        }
        for node in &mut self.nodes {
            node.wait_for_end().await;
        }
        self.nodes.clear();
    }

    fn tell_logs(&self) {
        for node in &self.nodes {
            terminal::note(&node.log_tail());
        }
    }
}

async fn act(scene: &mut Scene, question: &Question, show: Show<'_>) -> Result<Report, Failure> {
    let key = scene.dir().join("swarm.key");
    write_new_key("demo", &key)?;
    let model = start_three(scene, &key).await?;
    let text = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or("");
    let (name, cid) = (text("name").to_owned(), text("cid").to_owned());
    let file_bytes = std::fs::metadata(&scene.model)?.len();
    show(&format!("{name} is {cid}\n"))?;
    show("three nodes, each with room for a third of its layers; asking the third\n\n")?;
    let [greedy, seeded] = ask_both(last(scene)?, question, &cid, show).await?;
    let shares = shares(scene, &greedy, &cid, file_bytes).await?;

    show("\n\nasking one node alone …\n")?;
    scene.close().await;
    start_alone(scene, &key).await?;
    let [greedy_alone, seeded_alone] =
        ask_both(last(scene)?, question, &cid, &mut |_| Ok(())).await?;
    Ok(Report {
        model: name,
        cid,
        file_bytes,
        shares,
        runs: vec![
            Comparison::new("greedy", greedy, greedy_alone),
            Comparison::new("seeded", seeded, seeded_alone),
        ],
    })
}

/// Starts the nodes and gives the first one the model; returns what that node says of it.
async fn start_three(scene: &mut Scene, key: &Path) -> Result<Value, Failure> {
    let spinner = terminal::spinner("starting three nodes");
    let first = Start {
        name: "node 1",
        dir: "node-1",
        join: None,
        max_layers: Some(LAYERS_EACH),
    };
    let node = Node::start(scene.dir(), key, &first).await?;
    let join = node.addr.clone();
    scene.nodes.push(node);
    let model = add_file(&last(scene)?.client, &scene.model, None).await?;
    let [second, third] = [("node 2", "node-2"), ("node 3", "node-3")].map(|(name, dir)| Start {
        name,
        dir,
        join: Some(join.clone()),
        max_layers: Some(LAYERS_EACH),
    });
    let (second, third) = tokio::join!(
        Node::start(scene.temp.path(), key, &second),
        Node::start(scene.temp.path(), key, &third)
    );
    // Both are kept before either's failure is told: their logs are wanted.
    let started = [second, third].map(|node| node.map(|node| scene.nodes.push(node)));
    for result in started {
        result?;
    }
    spinner.set_message("waiting until every node knows every other and the model");
    let cid = model.get("cid").and_then(Value::as_str).unwrap_or_default();
    for node in &scene.nodes {
        wait_until_known(node, cid).await?;
    }
    spinner.finish_and_clear();
    Ok(model)
}

/// Starts the first node again, without the others and without a limit.
async fn start_alone(scene: &mut Scene, key: &Path) -> Result<(), Failure> {
    let start = Start {
        name: "node 1, alone",
        dir: "node-1",
        join: None,
        max_layers: None,
    };
    let node = Node::start(scene.dir(), key, &start).await?;
    scene.nodes.push(node);
    Ok(())
}

fn last(scene: &Scene) -> Result<&Node, Failure> {
    let node = scene.nodes.last();
    node.ok_or_else(|| Failure::new("no node of the demo runs"))
}

/// Waits until a node has heard of all nodes and of the model.
async fn wait_until_known(node: &Node, cid: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + DISCOVERY;
    loop {
        let peers = node.client.list("/api/v1/peers", "peers").await?.len();
        let model = model_at(node, cid).await?;
        if peers >= NODES && model.is_some() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let knows = if model.is_some() {
                "knows"
            } else {
                "does not know"
            };
            let (name, seconds) = (node.name, DISCOVERY.as_secs());
            return Err(Failure::new(format!(
                "after {seconds} s {name} sees {peers} of {NODES} nodes, and {knows} the model"
            ))
            .with_hint("a firewall may keep processes of this machine apart"));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// What a node says of a model, if it knows it.
async fn model_at(node: &Node, cid: &str) -> Result<Option<Value>, Failure> {
    let models = node.client.list("/api/v1/models", "models").await?;
    let is_wanted = |model: &Value| model.get("cid").and_then(Value::as_str) == Some(cid);
    Ok(models.into_iter().find(is_wanted))
}

fn greedy_request(question: &Question, cid: &str) -> Value {
    json!({
        "model": cid,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.max_tokens,
        "temperature": 0,
    })
}

fn seeded_request(question: &Question, cid: &str) -> Value {
    let (temperature, seed, max_tokens) = SEEDED;
    json!({
        "model": cid,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    })
}

/// Asks with the likeliest tokens, shown as they come, and then with drawn ones.
async fn ask_both(
    node: &Node,
    question: &Question,
    cid: &str,
    show: Show<'_>,
) -> Result<[Heard; 2], Failure> {
    let greedy = ask(node, greedy_request(question, cid), show).await?;
    let seeded = ask(node, seeded_request(question, cid), &mut |_| Ok(())).await?;
    Ok([greedy, seeded])
}

async fn ask(node: &Node, request: Value, show: Show<'_>) -> Result<Heard, Failure> {
    let heard = answer::listen(&node.client, "/v1/chat/completions", request, show).await;
    let mut heard = heard.map_err(|failure| failure.while_doing(node.name))?;
    heard.ask_for_speed(&node.client).await?;
    Ok(heard)
}

/// Who computed which layers, and how much of the file each node has.
async fn shares(
    scene: &Scene,
    heard: &Heard,
    cid: &str,
    file_bytes: u64,
) -> Result<Vec<Share>, Failure> {
    let path = format!("/api/v1/sessions/{}", heard.session);
    let session = last(scene)?.client.get(&path).await?;
    let mut shares = Vec::new();
    for (index, node) in scene.nodes.iter().enumerate() {
        let model = model_at(node, cid).await?;
        let present = model.and_then(|model| model.get("present_bytes")?.as_u64());
        // The first node was given the file; the others have what they fetched.
        let added = index == 0;
        let bytes_fetched = if added { 0 } else { present.unwrap_or(0) };
        let share = Share::new(node.name, &node.peer_id, &session);
        shares.push(share.with_bytes(bytes_fetched, file_bytes, added));
    }
    shares.sort_by_key(|share| share.layers);
    if shares.iter().any(|share| share.layers.is_none()) {
        let route = session.get("route").cloned().unwrap_or_default();
        return Err(Failure::new(format!(
            "not every node took part; the route was {route}"
        )));
    }
    Ok(shares)
}
