//! `accel model`: the models of a node and of its swarm.

use std::path::Path;
use std::str::FromStr;

use cid::Cid;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::local::{no_such_model, obtain, obtain_hub};
use super::{Output, block_on};
use crate::client::{Client, NodeAddress};
use crate::failure::Failure;
use crate::sources::known;
use crate::terminal::{self, human_bytes};

/// Add and show models
#[derive(Debug, Args)]
pub struct Model {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a model to the node's store; prints its CID
    Add(Add),
    /// List the models of the node and of its peers
    Ls(Ls),
    /// Show a model in detail
    Show(Show),
    /// Never evict a model from the node's store
    Pin(Change),
    /// Allow that a model is evicted from the node's store
    Unpin(Change),
    /// Remove a model from the node's store
    Rm(Change),
}

#[derive(Debug, Args)]
struct Add {
    /// A GGUF file, a CID, hf:OWNER/REPO/FILE, or a known name like smollm2-135m
    source: String,
    /// What the swarm calls it [default: the name of the file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Show {
    /// Name, CID or path of the model
    model: String,
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Change {
    /// Name or CID of the model
    model: String,
    #[command(flatten)]
    node: NodeAddress,
}

enum What {
    Pin,
    Unpin,
    Remove,
}

impl Model {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        block_on(async {
            match self.action {
                Action::Add(add) => add.run(output).await,
                Action::Ls(ls) => ls.run(output).await,
                Action::Show(show) => show.run(output).await,
                Action::Pin(change) => change.run(output, What::Pin).await,
                Action::Unpin(change) => change.run(output, What::Unpin).await,
                Action::Rm(change) => change.run(output, What::Remove).await,
            }
        })
    }
}

impl Add {
    async fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        // A node that is not there is told before anything is downloaded.
        client.get("/api/v1/node").await?;
        let model = self.add(&client).await?;
        let text = |key: &str| model.get(key).cloned().unwrap_or_default();
        if output.json {
            let told = json!({"cid": text("cid"), "name": text("name"), "bytes": text("bytes")});
            return terminal::json(&told);
        }
        terminal::line(text("cid").as_str().unwrap_or_default())
    }

    async fn add(&self, client: &Client) -> Result<Value, Failure> {
        let source = self.source.as_str();
        let path = Path::new(source);
        if source.starts_with("hf:") {
            let path = obtain_hub(source).await?;
            return add_file(client, &path, self.name.as_deref()).await;
        }
        if path.is_file() {
            return add_file(client, path, self.name.as_deref()).await;
        }
        if let Some(known) = known::find(source) {
            let path = obtain(known).await?;
            return add_file(client, &path, self.name.as_deref()).await;
        }
        if Cid::from_str(source).is_ok() {
            let request = json!({"cid": source, "name": self.name, "stream": true});
            return add(client, &request, "fetching").await;
        }
        Err(no_such_model(source))
    }
}

/// Has the node add a file of its machine, with a progress bar.
pub async fn add_file(client: &Client, path: &Path, name: Option<&str>) -> Result<Value, Failure> {
    let path = path.canonicalize()?;
    let request = json!({"path": path, "name": name, "stream": true});
    add(client, &request, "adding").await
}

async fn add(client: &Client, request: &Value, what: &str) -> Result<Value, Failure> {
    let mut events = client.stream("/api/v1/models", request).await?;
    let mut bar = None;
    while let Some(event) = events.next().await? {
        if let Some(model) = event.data.get("model") {
            return Ok(model.clone());
        }
        let count = |key: &str| event.data.get(key).and_then(Value::as_u64).unwrap_or(0);
        bar.get_or_insert_with(|| terminal::bytes_bar(count("total"), what))
            .set_position(count("done"));
    }
    let failure = Failure::new("the node did not say what became of the file");
    Err(failure.with_hint("look at the log of the node, and try again"))
}

impl Ls {
    async fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let models = client.list("/api/v1/models", "models").await?;
        if output.json {
            return terminal::json(&models);
        }
        let mut table = terminal::table(&["NAME", "SIZE", "HERE", "PEERS", "CID"]);
        for model in &models {
            table.add_row(row(model));
        }
        terminal::line(&table.to_string())
    }
}

fn row(model: &Value) -> Vec<String> {
    let text = |key: &str| {
        model
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let count = |key: &str| model.get(key).and_then(Value::as_u64).unwrap_or(0);
    let pinned = model.get("pinned").and_then(Value::as_bool) == Some(true);
    let here = human_bytes(count("present_bytes"));
    vec![
        text("name"),
        human_bytes(count("bytes")),
        if pinned {
            format!("{here}, pinned")
        } else {
            here
        },
        count("peers").to_string(),
        text("cid"),
    ]
}

impl Show {
    async fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let model = super::generation::model_argument(&self.model);
        let answer = client
            .get(&format!("/api/v1/models/{}", escape(&model)))
            .await?;
        if output.json {
            return terminal::json(&answer);
        }
        let Value::Object(fields) = &answer else {
            return terminal::json(&answer);
        };
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in fields {
            let shown = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) if key.ends_with("bytes") => {
                    let bytes = number.as_u64().unwrap_or(0);
                    format!("{number} ({})", human_bytes(bytes))
                }
                other => other.to_string(),
            };
            terminal::line(&format!("{key:width$}  {shown}"))?;
        }
        Ok(())
    }
}

impl Change {
    async fn run(self, output: Output, what: What) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let path = format!("/api/v1/models/{}", escape(&self.model));
        let pin = format!("{path}/pin");
        let (answer, done) = match what {
            What::Pin => (client.put(&pin).await?, "pinned"),
            What::Unpin => (client.delete(&pin).await?, "unpinned"),
            What::Remove => (client.delete(&path).await?, "removed"),
        };
        match output.json {
            true => terminal::json(&answer),
            false => terminal::line(&format!("{done} {}", self.model)),
        }
    }
}

/// A text as a part of an address.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte as char);
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_way_through_an_address() {
        assert_eq!(escape("SmolLM2-135M.Q4_1"), "SmolLM2-135M.Q4_1");
        assert_eq!(escape("/a b?c#é"), "%2Fa%20b%3Fc%23%C3%A9");
    }
}
