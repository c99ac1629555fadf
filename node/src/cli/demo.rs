//! `accel demo`: three nodes answer one chat, and the answer is checked.

use clap::Args;

use super::{Output, block_on};
use crate::demo::{self, Question};
use crate::failure::Failure;
use crate::terminal;

/// Three nodes on this machine answer one chat together
#[derive(Debug, Args)]
pub struct Demo {
    /// What to ask
    #[arg(long, value_name = "TEXT", default_value = "Why is the sky blue?")]
    prompt: String,
    /// The most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: u32,
}

impl Demo {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let question = Question {
            prompt: self.prompt,
            max_tokens: self.max_tokens,
        };
        let mut show = |text: &str| match output.json {
            true => Ok(()),
            false => terminal::print(text),
        };
        let report = block_on(demo::run(&question, &mut show))?;
        match output.json {
            true => terminal::json(&report.json())?,
            false => terminal::print(&format!("\n{}", report.text()))?,
        }
        if report.equal() {
            return Ok(());
        }
        let failure = Failure::new("the answer of three nodes is not the answer of one");
        Err(failure.with_hint("this is a fault of the program; please report it with the output"))
    }
}
