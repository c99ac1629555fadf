//! `accel chat`: a conversation, line by line.

use std::io::IsTerminal;

use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

use super::generation::Sampling;
use super::{Output, block_on};
use crate::client::{Client, NodeAddress, answer};
use crate::failure::Failure;
use crate::terminal;

/// Talk with a model
#[derive(Debug, Args)]
pub struct Chat {
    /// Name, CID or path of the model
    model: String,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    node: NodeAddress,
}

impl Chat {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        block_on(self.talk(output))
    }

    async fn talk(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        // A node that is not there is told before the first line is typed.
        client.get("/api/v1/node").await?;
        let mut messages: Vec<Value> = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = ask(&mut lines).await? {
            if line.trim().is_empty() {
                continue;
            }
            messages.push(json!({"role": "user", "content": line}));
            let text = self.answer(&client, &messages, output).await?;
            messages.push(json!({"role": "assistant", "content": text}));
        }
        Ok(())
    }

    async fn answer(
        &self,
        client: &Client,
        messages: &[Value],
        output: Output,
    ) -> Result<String, Failure> {
        let mut request = self.sampling.request(&self.model);
        request["messages"] = json!(messages);
        let mut show = |text: &str| match output.json {
            true => Ok(()),
            false => terminal::print(text),
        };
        let heard = answer::listen(client, "/v1/chat/completions", request, &mut show).await?;
        match output.json {
            true => terminal::line(&heard.json().to_string())?,
            false => terminal::line("")?,
        }
        Ok(heard.text)
    }
}

/// The next line that a person types, or nothing at the end of the input or at `/quit`.
async fn ask(lines: &mut Lines<BufReader<Stdin>>) -> Result<Option<String>, Failure> {
    if std::io::stdin().is_terminal() {
        eprint!("> ");
    }
    let line = lines.next_line().await?;
    Ok(line.filter(|line| line.trim() != "/quit"))
}
