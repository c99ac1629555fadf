//! `accel plan`: who would hold what of a model, and why.

use clap::Args;
use serde_json::Value;

use super::generation::model_argument;
use super::{Output, block_on};
use crate::client::{Client, NodeAddress};
use crate::failure::Failure;
use crate::terminal::{self, human_bytes, short_peer};

/// Show which node would compute which layers of a model
#[derive(Debug, Args)]
pub struct Plan {
    /// Name, CID or path of the model
    model: String,
    /// How many tokens to plan for [default: what the node reserves for a request]
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    #[command(flatten)]
    node: NodeAddress,
}

impl Plan {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let mut query = vec![("model", model_argument(&self.model))];
        if let Some(context) = self.context {
            query.push(("context", context.to_string()));
        }
        let plan = block_on(async { Ok(client.query("/api/v1/plan", &query).await?) })?;
        match output.json {
            true => terminal::json(&plan),
            false => draw(&plan),
        }
    }
}

fn draw(plan: &Value) -> Result<(), Failure> {
    let text = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str);
        text.unwrap_or("-").to_owned()
    };
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    terminal::line(&format!(
        "{}: {} layers for {} tokens, {} per token",
        text(plan, "model"),
        number(plan, "layers"),
        number(plan, "context"),
        figure(plan, "token_ms", "ms"),
    ))?;
    terminal::line(&text(plan, "why"))?;
    let mut table = terminal::table(&[
        "PEER",
        "LAYERS",
        "WEIGHTS",
        "KV CACHE",
        "SPEED",
        "PER TOKEN",
        "WHY",
    ]);
    let stages = plan.get("stages").and_then(Value::as_array);
    for stage in stages.into_iter().flatten() {
        let me = stage.get("is_self").and_then(Value::as_bool) == Some(true);
        let peer = short_peer(&text(stage, "peer_id"));
        table.add_row(vec![
            if me { format!("{peer} (this)") } else { peer },
            format!(
                "{}-{}",
                number(stage, "first_layer"),
                number(stage, "last_layer")
            ),
            human_bytes(number(stage, "weights_bytes")),
            human_bytes(number(stage, "kv_bytes")),
            figure(stage, "gb_s", "GB/s"),
            figure(stage, "token_ms", "ms"),
            text(stage, "why"),
        ]);
    }
    terminal::line(&table.to_string())
}

/// A number with its unit and where it comes from.
fn figure(value: &Value, key: &str, unit: &str) -> String {
    let number = value
        .get(key)
        .and_then(|figure| figure.get("value")?.as_f64());
    let tag = value
        .get(key)
        .and_then(|figure| figure.get("tag")?.as_str());
    match (number, tag) {
        (Some(number), Some(tag)) => format!("{number:.2} {unit} {tag}"),
        _ => "-".to_owned(),
    }
}
