//! `accel key`: shows the key of an API that is not on loopback.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Output;
use crate::api::ApiKey;
use crate::config::default_data_dir;
use crate::failure::Failure;
use crate::terminal;

/// Show the key of this machine's API
#[derive(Debug, Args)]
pub struct Key {
    /// Data directory of the node
    #[arg(long, value_name = "DIR", env = "ACCEL_DATA")]
    data: Option<PathBuf>,
}

impl Key {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let data = match self.data {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        let key = ApiKey::load(&data)?;
        match output.json {
            true => terminal::json(&json!({"key": key.reveal()})),
            false => terminal::line(key.reveal()),
        }
    }
}
