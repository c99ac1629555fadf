//! What `run` and `chat` have in common: how tokens are drawn, and which model is meant.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value, json};

/// How an answer is drawn.
#[derive(Debug, Clone, Args)]
pub struct Sampling {
    /// The most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token always
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Take from the likeliest tokens whose probabilities add up to P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Take from the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Take from tokens that are at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// End the answer before this text, may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// What the answer survives: none, low (broken connections), medium (lost peers, and a restart
    /// of the node), high (the loss of the node, with its disk) or critical (a peer that computes
    /// something else)
    /// [default: the node's]
    #[arg(long, value_name = "LEVEL")]
    fault_tolerance: Option<String>,
}

impl Sampling {
    /// A request with these parameters. The node checks them.
    pub fn request(&self, model: &str) -> Value {
        let mut fields = Map::new();
        fields.insert("model".into(), json!(model_argument(model)));
        let given = [
            ("max_tokens", json!(self.max_tokens)),
            ("temperature", json!(self.temperature)),
            ("seed", json!(self.seed)),
            ("top_p", json!(self.top_p)),
            ("top_k", json!(self.top_k)),
            ("min_p", json!(self.min_p)),
            ("fault_tolerance", json!(self.fault_tolerance)),
        ];
        for (name, value) in given {
            if !value.is_null() {
                fields.insert(name.into(), value);
            }
        }
        if !self.stop.is_empty() {
            fields.insert("stop".into(), json!(self.stop));
        }
        Value::Object(fields)
    }
}

/// A model as the node understands it: a path of this directory means nothing to it.
pub fn model_argument(model: &str) -> String {
    let path = Path::new(model);
    if !path.is_file() {
        return model.to_owned();
    }
    match path.canonicalize() {
        Ok(absolute) => absolute.display().to_string(),
        Err(_) => model.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        let sampling = Sampling {
            max_tokens: Some(3),
            temperature: Some(0.5),
            seed: None,
            top_p: None,
            top_k: None,
            min_p: None,
            stop: vec!["END".into()],
            fault_tolerance: Some("low".into()),
        };
        let expected = json!({
            "model": "m", "max_tokens": 3, "temperature": 0.5, "fault_tolerance": "low",
            "stop": ["END"],
        });
        assert_eq!(sampling.request("m"), expected);
    }

    #[test]
    fn a_file_is_named_by_its_absolute_path_and_a_name_stays_a_name() {
        assert_eq!(model_argument("no-such-file"), "no-such-file");
        assert!(Path::new(&model_argument("Cargo.toml")).is_absolute());
    }
}
