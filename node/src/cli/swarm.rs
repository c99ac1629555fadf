//! `accel swarm`: private swarms.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use accel_p2p::membership::SwarmKey;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Output, block_on};
use crate::client::{Client, NodeAddress};
use crate::failure::Failure;
use crate::terminal;

/// Make a private swarm, and invite others to it
#[derive(Debug, Args)]
pub struct Swarm {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the key of a new private swarm
    Init(Init),
    /// Make a string with which another machine joins the swarm of a running node
    Invite(Invite),
}

#[derive(Debug, Args)]
struct Init {
    /// File to write the key to; who has it rules the swarm
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name of the swarm, for people
    #[arg(long, value_name = "NAME", default_value = "home")]
    name: String,
}

#[derive(Debug, Args)]
struct Invite {
    /// How long the invite is good: 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
    ttl: u64,
    #[command(flatten)]
    node: NodeAddress,
}

impl Swarm {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        match self.action {
            Action::Init(init) => init.run(output),
            Action::Invite(invite) => invite.run(output),
        }
    }
}

impl Init {
    fn run(self, output: Output) -> Result<(), Failure> {
        let swarm_id = write_new_key(&self.name, &self.out)?;
        let told = json!({"swarm": self.name, "swarm_id": swarm_id, "file": self.out});
        if output.json {
            return terminal::json(&told);
        }
        terminal::line(&format!("wrote {}", self.out.display()))?;
        terminal::note("start nodes with `accel up --swarm-key FILE`; keep the file secret");
        Ok(())
    }
}

impl Invite {
    fn run(self, output: Output) -> Result<(), Failure> {
        let client = Client::new(&self.node)?;
        let request = json!({"ttl_seconds": self.ttl});
        let answer = block_on(async { Ok(client.post("/api/v1/swarm/invite", &request).await?) })?;
        if output.json {
            return terminal::json(&answer);
        }
        let invite = answer.get("invite").and_then(Value::as_str);
        terminal::line(invite.unwrap_or_default())?;
        terminal::note("on the other machine: accel up --join INVITE");
        Ok(())
    }
}

/// Writes the key of a new swarm to a new file that only its owner can read; tells the swarm's id.
pub fn write_new_key(name: &str, path: &Path) -> Result<String, Failure> {
    let key = SwarmKey::generate(name)
        .map_err(|error| Failure::new(error.to_string()).with_hint("choose another --name"))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let place = path.display();
    let mut file = options.open(path).map_err(|error| {
        let failure = Failure::new(format!("{place}: {error}"));
        match error.kind() {
            ErrorKind::AlreadyExists => failure
                .with_hint("a key is never overwritten; choose another file, or remove this one"),
            _ => failure.with_hint("choose another file with --out"),
        }
    })?;
    file.write_all(key.to_string().as_bytes())?;
    file.sync_all()?;
    Ok(key.swarm_id().to_string())
}

fn seconds(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number with s, m, h or d, like 24h".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number with s, m, h or d, like 24h".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, expected) in [("90", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "h", "-1h", "1w", "1.5h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_written_once_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.key");
        write_new_key("friends", &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.parse::<SwarmKey>().unwrap().name(), "friends");
        let failure = write_new_key("friends", &path).unwrap_err().to_string();
        assert!(failure.contains("never overwritten"), "{failure}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}
