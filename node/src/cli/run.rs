//! `accel run`: continues a text.

use clap::Args;
use serde_json::json;

use super::generation::Sampling;
use super::{Output, block_on};
use crate::client::{Client, NodeAddress, answer};
use crate::failure::Failure;
use crate::terminal;

/// Continue a text with a model
#[derive(Debug, Args)]
pub struct Run {
    /// Name, CID or path of the model
    model: String,
    /// The text to continue
    prompt: String,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    node: NodeAddress,
}

impl Run {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let mut request = self.sampling.request(&self.model);
        request["prompt"] = json!(self.prompt);
        let mut show = |text: &str| match output.json {
            true => Ok(()),
            false => terminal::print(text),
        };
        let answer = answer::listen(&client, "/v1/completions", request, &mut show);
        let heard = block_on(answer)?;
        match output.json {
            true => terminal::json(&heard.json()),
            false => terminal::line(""),
        }
    }
}
