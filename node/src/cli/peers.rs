//! `accel peers`: who is in the swarm, and what each of them has and can.

use clap::Args;
use serde_json::Value;

use super::{Output, block_on};
use crate::client::{Client, NodeAddress};
use crate::failure::Failure;
use crate::terminal::{self, human_bytes, short_peer};

/// Show the nodes of the swarm
#[derive(Debug, Args)]
pub struct Peers {
    #[command(flatten)]
    node: NodeAddress,
}

impl Peers {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let peers = block_on(async { Ok(client.list("/api/v1/peers", "peers").await?) })?;
        if output.json {
            return terminal::json(&peers);
        }
        let mut table = terminal::table(&[
            "PEER", "CORES", "ISA", "MEMORY", "SPEED", "LAYERS", "RUNNING", "MODELS", "API",
            "HEALTH", "SEEN",
        ]);
        for peer in &peers {
            table.add_row(row(peer));
        }
        terminal::line(&table.to_string())
    }
}

fn row(peer: &Value) -> Vec<String> {
    let drains = peer.get("draining").and_then(Value::as_bool) == Some(true);
    let text = |key: &str| {
        peer.get(key)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let number = |key: &str| peer.get(key).and_then(Value::as_u64).unwrap_or(0);
    let me = peer.get("is_self").and_then(Value::as_bool) == Some(true);
    let name = match me {
        true => format!("{} (this)", short_peer(&text("peer_id"))),
        false => short_peer(&text("peer_id")),
    };
    let speed = peer.get("measured_gb_s").and_then(Value::as_f64);
    let models = peer.get("models").and_then(Value::as_array);
    let limit = peer.get("max_layers").and_then(Value::as_u64);
    vec![
        name,
        number("cores").to_string(),
        text("isa"),
        human_bytes(number("memory_for_models")),
        format!("{:.1} GB/s measured", speed.unwrap_or(0.0)),
        match limit {
            _ if drains => "draining".into(),
            Some(limit) => format!("≤ {limit}"),
            None => "any".into(),
        },
        number("sessions").to_string(),
        models.map_or(String::new(), |models| offers(models)),
        text("api"),
        health(peer),
        format!("{:.1} s ago", number("seen_ms_ago") as f64 / 1000.0),
    ]
}

/// The score, and whether the peer is left alone.
fn health(peer: &Value) -> String {
    if peer.get("quarantined").and_then(Value::as_bool) == Some(true) {
        return "quarantined".to_owned();
    }
    let score = peer.get("health").and_then(Value::as_u64);
    let breaker = peer.get("breaker").and_then(Value::as_str);
    match (score, breaker) {
        (Some(score), Some("closed") | None) => score.to_string(),
        (Some(score), Some(breaker)) => format!("{score}, {}", breaker.replace('_', " ")),
        (None, _) => "-".to_owned(),
    }
}

fn offers(models: &[Value]) -> String {
    let mut names = Vec::new();
    for model in models {
        let name = model.get("name").and_then(Value::as_str).unwrap_or("-");
        let count = |key: &str| model.get(key).and_then(Value::as_u64).unwrap_or(0);
        let (present, all) = (count("present_bytes"), count("bytes").max(1));
        names.push(match present >= all {
            true => name.to_owned(),
            false => format!("{name} ({} %)", present.saturating_mul(100) / all),
        });
    }
    names.join(", ")
}
