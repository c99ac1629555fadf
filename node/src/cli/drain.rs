//! `accel drain`: has a node give its layers away, so that it can be stopped without anybody noticing.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Output, block_on};
use crate::client::{Client, ClientError, NodeAddress};
use crate::failure::Failure;
use crate::terminal;

/// How often the node is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// Have the node take no more layers and move those that it has to others
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    node: NodeAddress,
    /// Wait until no session has layers there
    #[arg(long, conflicts_with = "off")]
    wait: bool,
    /// Take layers again
    #[arg(long)]
    off: bool,
}

impl Drain {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let answer = block_on(async { Ok(self.ask(&client).await?) })?;
        if output.json {
            return terminal::json(&answer);
        }
        terminal::line(&told(&answer))
    }

    async fn ask(&self, client: &Client) -> Result<Value, ClientError> {
        let request = json!({"draining": !self.off});
        let mut answer = client.post("/api/v1/drain", &request).await?;
        while self.wait && stages(&answer) > 0 {
            tokio::time::sleep(EVERY).await;
            let node = client.get("/api/v1/node").await?;
            answer = json!({"draining": node["draining"], "stages": node["stages"]});
        }
        Ok(answer)
    }
}

fn stages(answer: &Value) -> u64 {
    answer.get("stages").and_then(Value::as_u64).unwrap_or(0)
}

fn told(answer: &Value) -> String {
    let drains = answer.get("draining").and_then(Value::as_bool) == Some(true);
    match (drains, stages(answer)) {
        (false, _) => "the node takes layers".to_owned(),
        (true, 0) => "the node takes no layers, and has none".to_owned(),
        (true, 1) => "the node takes no more layers; 1 session has some there".to_owned(),
        (true, count) => format!("the node takes no more layers; {count} sessions have some there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_far_the_node_is() {
        let cases = [
            (false, 3, "the node takes layers"),
            (true, 0, "the node takes no layers, and has none"),
            (
                true,
                1,
                "the node takes no more layers; 1 session has some there",
            ),
            (
                true,
                2,
                "the node takes no more layers; 2 sessions have some there",
            ),
        ];
        for (draining, stages, expected) in cases {
            assert_eq!(
                told(&json!({"draining": draining, "stages": stages})),
                expected
            );
        }
    }
}
