//! `accel evidence`: peers that lied, and how anybody can see that they did.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Output, block_on};
use crate::client::{Client, NodeAddress};
use crate::failure::Failure;
use crate::terminal::{self, short_peer};

/// Show and check evidence that peers lied (fault tolerance `critical`)
#[derive(Debug, Args)]
pub struct Evidence {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show which peers lied, and whether they are left out
    Ls(Ls),
    /// Write one piece of evidence as JSON; it holds the prompt and the answer
    Show(Show),
    /// Compute again what a peer signed; if it lied, leave it out on this node, too
    Check(Check),
    /// Trust a peer again; the evidence stays
    Lift(Lift),
}

#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Show {
    /// Which one, as `accel evidence ls` names it
    id: String,
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Check {
    /// File that `accel evidence show` wrote
    file: PathBuf,
    #[command(flatten)]
    node: NodeAddress,
}

#[derive(Debug, Args)]
struct Lift {
    /// The whole id of the peer
    peer: String,
    #[command(flatten)]
    node: NodeAddress,
}

impl Evidence {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        match self.action {
            Action::Ls(ls) => ls.run(output),
            Action::Show(show) => show.run(),
            Action::Check(check) => check.run(output),
            Action::Lift(lift) => lift.run(output),
        }
    }
}

impl Ls {
    fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let all = block_on(async { Ok(client.list("/api/v1/evidence", "evidence").await?) })?;
        if output.json {
            return terminal::json(&all);
        }
        let columns = ["EVIDENCE", "PEER", "MODEL", "LAYERS", "TOKENS", "STATE"];
        let mut table = terminal::table(&columns);
        for evidence in &all {
            table.add_row(row(evidence));
        }
        terminal::line(&table.to_string())
    }
}

fn row(evidence: &Value) -> Vec<String> {
    let text = |key: &str| evidence.get(key).and_then(Value::as_str).unwrap_or("-");
    let number = |key: &str| evidence.get(key).and_then(Value::as_u64).unwrap_or(0);
    let is_out = evidence.get("quarantined").and_then(Value::as_bool) == Some(true);
    vec![
        text("id").to_owned(),
        short_peer(text("peer_id")),
        text("model").to_owned(),
        format!("{}-{}", number("first_layer"), number("last_layer")),
        number("tokens").to_string(),
        if is_out { "quarantined" } else { "lifted" }.to_owned(),
    ]
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let path = format!("/api/v1/evidence/{}", self.id);
        let evidence = block_on(async { Ok(client.get(&path).await?) })?;
        terminal::json(&evidence)
    }
}

impl Check {
    fn run(self, output: Output) -> Result<(), Failure> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| Failure::new(format!("{}: {error}", self.file.display())))?;
        let evidence: Value = serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("{} is no evidence: {error}", self.file.display()))
                .with_hint("give a file that `accel evidence show` wrote")
        })?;
        let client = Client::new(&self.node)?;
        let checked =
            block_on(async { Ok(client.post("/api/v1/evidence/check", &evidence).await?) })?;
        if output.json {
            return terminal::json(&checked);
        }
        let text = |key: &str| checked.get(key).and_then(Value::as_str).unwrap_or("-");
        let what = match text("verdict") {
            "confirmed" => "lied, and gets no more work from this node",
            "refuted" => "did not lie: what it signed is right",
            _ => "was given something else already; it is not proven who lied",
        };
        terminal::line(&format!("peer {} {what}", text("peer_id")))
    }
}

impl Lift {
    fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let path = format!("/api/v1/quarantine/{}", self.peer);
        let lifted = block_on(async { Ok(client.delete(&path).await?) })?;
        if output.json {
            return terminal::json(&lifted);
        }
        terminal::line(&format!("peer {} gets work again", self.peer))
    }
}
