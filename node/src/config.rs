//! The settings of a node: flags win over the environment (`ACCEL_*`), which wins over the TOML
//! file, which wins over the defaults.

pub mod size;

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use accel_actors::{DEFAULT_AUDIT_SHARE, FaultTolerance};
use accel_inference::{KvFormat, MAX_THREADS};
use clap::Args;
use directories::ProjectDirs;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Deserializer, Serialize, de};
use thiserror::Error;

use size::Size;

/// Where a node's HTTP API listens, and where commands look for it, unless told otherwise.
pub const DEFAULT_API: &str = "127.0.0.1:8420";
const DEFAULT_LISTEN: &str = "/ip4/0.0.0.0/tcp/0";

/// Every key of the settings, in the order in which `accel up --help` shows them.
const KEYS: [&str; 20] = [
    "data",
    "api",
    "listen",
    "join",
    "swarm",
    "swarm_key",
    "device",
    "threads",
    "kv",
    "memory",
    "max_layers",
    "fault_tolerance",
    "warm_stand_ins",
    "audit_share",
    "resume_window",
    "breaker_failures",
    "breaker_seconds",
    "breaker_trials",
    "breaker_successes",
    "ready_file",
];
/// The keys whose value in the environment is a number.
const NUMBERS: [&str; 8] = [
    "threads",
    "max_layers",
    "audit_share",
    "resume_window",
    "breaker_failures",
    "breaker_seconds",
    "breaker_trials",
    "breaker_successes",
];
/// The keys whose value in the environment is true or false.
const SWITCHES: [&str; 1] = ["warm_stand_ins"];
/// Failures, trials and successes, at most.
const MOST_TRIES: u32 = 1_000_000;
/// The longest time that sessions wait for their clients: a week.
const LONGEST_WINDOW: u32 = 7 * 24 * 3600;

/// What is wrong with the settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("unknown key `{key}` in {place}; the known keys are {}", KEYS.join(", "))]
    UnknownKey { key: String, place: String },
    #[error("{place}: {problem}")]
    Invalid { place: String, problem: String },
    #[error("`{key}`: {problem}")]
    Value { key: &'static str, problem: String },
    #[error("no directory for data is known on this system; give one with --data")]
    NoDataDir,
}

impl ConfigError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "give an existing TOML file with --config",
            Self::UnknownKey { .. } | Self::Invalid { .. } => "correct the key, or remove it",
            Self::Value { .. } => "see `accel up --help`",
            Self::NoDataDir => "",
        }
    }
}

/// The flags of `accel up`. A flag that is absent leaves the word to the other sources.
#[derive(Debug, Default, Args, Serialize)]
pub struct Flags {
    /// TOML file with the same keys as the flags
    #[arg(long, value_name = "FILE", env = "ACCEL_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of the node's identity, blocks and journal
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Address of the HTTP API [default: 127.0.0.1:8420]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// Address for peers to connect to, may be repeated [default: /ip4/0.0.0.0/tcp/0]
    #[arg(long, value_name = "MULTIADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// A node of the swarm, or an invite to it, may be repeated
    #[arg(long, value_name = "MULTIADDR|INVITE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<String>,
    /// Public swarm to belong to [default: public]
    #[arg(long, value_name = "NAME", conflicts_with = "swarm_key")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swarm: Option<String>,
    /// Key file of a private swarm (see `accel swarm init`)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swarm_key: Option<PathBuf>,
    /// What computes: cpu or auto; cuda, metal and wgpu are known names that this build lacks
    #[arg(long, value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How KV caches are kept: f16, or q8, which holds nearly twice as many tokens and is a little
    /// less precise; nodes that differ share no session [default: f16]
    #[arg(long, value_name = "f16|q8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<KvFormat>,
    /// Memory that models may take, like 2G or 512MiB [default: measured]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// The most layers of one model that this node takes
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_layers: Option<u32>,
    /// What requests survive that do not say so: none, low, medium, high or critical [default: medium]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault_tolerance: Option<String>,
    /// Have layers ready for when a peer is lost, here and on others: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_stand_ins: Option<bool>,
    /// Of a hundred answers, how many other peers compute again to see whether one lied [default: 1]
    #[arg(long, value_name = "PERCENT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_share: Option<u32>,
    /// Seconds that a session which was interrupted waits for its client [default: 600]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_window: Option<u32>,
    /// Failures in a row after which a peer is left alone [default: 5]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_failures: Option<u32>,
    /// Seconds for which it is left alone [default: 30]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_seconds: Option<u32>,
    /// Requests that it then gets, to see [default: 3]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_trials: Option<u32>,
    /// Successes after which it is trusted again [default: 3]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_successes: Option<u32>,
    /// File to write {"peer_id","api","addrs"} to once everything listens
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
}

/// The settings after all sources were heard.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    data: Option<PathBuf>,
    api: String,
    /// Addresses for peers.
    #[serde(deserialize_with = "strings")]
    pub listen: Vec<String>,
    /// Nodes and invites to join by.
    #[serde(default, deserialize_with = "strings")]
    pub join: Vec<String>,
    /// Public swarm; absent means the default one, or the one that the data directory remembers.
    #[serde(default)]
    pub swarm: Option<String>,
    /// Key file of a private swarm.
    #[serde(default)]
    pub swarm_key: Option<PathBuf>,
    device: String,
    /// Threads that compute.
    #[serde(default)]
    pub threads: Option<usize>,
    /// How KV caches are kept.
    #[serde(default)]
    pub kv: KvFormat,
    /// Memory that models may take.
    #[serde(default)]
    pub memory: Option<Size>,
    /// The most layers of one model.
    #[serde(default)]
    pub max_layers: Option<u32>,
    /// What requests survive that do not say so.
    #[serde(default)]
    pub fault_tolerance: FaultTolerance,
    /// Whether layers are made ready for when a peer is lost.
    pub warm_stand_ins: bool,
    /// Of a hundred answers, how many other peers compute again.
    pub audit_share: u32,
    /// Seconds that a session which was interrupted waits for its client.
    #[serde(default)]
    pub resume_window: Option<u32>,
    /// Failures in a row after which a peer is left alone.
    #[serde(default)]
    pub breaker_failures: Option<u32>,
    /// Seconds for which it is left alone.
    #[serde(default)]
    pub breaker_seconds: Option<u32>,
    /// Requests that it then gets, to see.
    #[serde(default)]
    pub breaker_trials: Option<u32>,
    /// Successes after which it is trusted again.
    #[serde(default)]
    pub breaker_successes: Option<u32>,
    /// Where to tell that everything listens.
    #[serde(default)]
    pub ready_file: Option<PathBuf>,
}

impl Settings {
    /// Hears all sources, in their order, and checks what they say.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::load_with(flags, |name| std::env::var(name).ok())
    }

    fn load_with(flags: &Flags, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::default("api", DEFAULT_API))
            .merge(Serialized::default("listen", [DEFAULT_LISTEN]))
            .merge(Serialized::default("device", "auto"))
            .merge(Serialized::default("warm_stand_ins", true))
            .merge(Serialized::default("audit_share", DEFAULT_AUDIT_SHARE));
        if let Some(path) = &flags.config {
            check_readable(path)?;
            figment = figment.merge(Toml::file_exact(path));
        }
        let settings: Self = figment
            .merge(Environment::read(env))
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(explain)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.api_addr()?;
        check_device(&self.device)?;
        check_range("threads", self.threads, MAX_THREADS)?;
        check_range("max_layers", self.max_layers, u32::MAX)?;
        check_range("resume_window", self.resume_window, LONGEST_WINDOW)?;
        check_range("breaker_failures", self.breaker_failures, MOST_TRIES)?;
        check_range("breaker_seconds", self.breaker_seconds, LONGEST_WINDOW)?;
        check_range("breaker_trials", self.breaker_trials, MOST_TRIES)?;
        check_range("breaker_successes", self.breaker_successes, MOST_TRIES)?;
        if self.audit_share > 100 {
            return Err(ConfigError::Value {
                key: "audit_share",
                problem: format!("{} of a hundred answers", self.audit_share),
            });
        }
        if self.swarm.is_some() && self.swarm_key.is_some() {
            return Err(ConfigError::Value {
                key: "swarm",
                problem: "a node is in a public swarm or in a private one (`swarm_key`), not both"
                    .into(),
            });
        }
        Ok(())
    }

    /// Where the HTTP API listens.
    pub fn api_addr(&self) -> Result<SocketAddr, ConfigError> {
        // The same variable tells commands where the node is, perhaps as an address of the web.
        let text = self.api.trim_start_matches("http://").trim_end_matches('/');
        let text = text.replace("localhost:", "127.0.0.1:");
        text.parse().map_err(|_| ConfigError::Value {
            key: "api",
            problem: format!("`{}` is not an address like {DEFAULT_API}", self.api),
        })
    }

    /// The data directory; the system's place for programs' data unless told otherwise.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        match &self.data {
            Some(dir) => Ok(dir.clone()),
            None => default_data_dir(),
        }
    }
}

/// The system's place for this program's data.
pub fn default_data_dir() -> Result<PathBuf, ConfigError> {
    ProjectDirs::from("", "", "accel")
        .map(|dirs| dirs.data_dir().to_owned())
        .ok_or(ConfigError::NoDataDir)
}

fn check_range<T: PartialOrd + From<u8> + Display>(
    key: &'static str,
    value: Option<T>,
    most: T,
) -> Result<(), ConfigError> {
    let least = T::from(1);
    match value {
        Some(value) if value < least || value > most => Err(ConfigError::Value {
            key,
            problem: format!("{value} is not in {least}..={most}"),
        }),
        _ => Ok(()),
    }
}

fn check_device(device: &str) -> Result<(), ConfigError> {
    let problem = match device {
        "cpu" | "auto" => return Ok(()),
        "wgpu" | "cuda" | "metal" => {
            format!("`{device}` is not in this build, which computes on the CPU for now; use cpu")
        }
        _ => format!("`{device}` is not one of cpu, wgpu, cuda, metal, auto"),
    };
    Err(ConfigError::Value {
        key: "device",
        problem,
    })
}

fn check_readable(path: &Path) -> Result<(), ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The settings that the environment gives: `ACCEL_MAX_LAYERS` is `max_layers`. Other variables
/// with the prefix belong to other parts of the program.
struct Environment(Dict);

impl Environment {
    fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut found = Dict::new();
        for key in KEYS {
            let Some(text) = lookup(&format!("ACCEL_{}", key.to_uppercase())) else {
                continue;
            };
            found.insert(key.to_owned(), typed(key, text));
        }
        Self(found)
    }
}

/// What is no number or switch stays text, also where one is wanted: the error shows it.
fn typed(key: &str, text: String) -> Value {
    match (text.parse::<u64>(), text.parse::<bool>()) {
        (Ok(number), _) if NUMBERS.contains(&key) => Value::from(number),
        (_, Ok(switch)) if SWITCHES.contains(&key) => Value::from(switch),
        _ => Value::from(text),
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment variables ACCEL_*")
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

fn explain(error: figment::Error) -> ConfigError {
    let place = match &error.metadata {
        Some(metadata) => match &metadata.source {
            Some(source) => format!("{} ({source})", metadata.name),
            None => metadata.name.to_string(),
        },
        None => "the settings".to_owned(),
    };
    if let Kind::UnknownField(key, _) = &error.kind {
        return ConfigError::UnknownKey {
            key: key.clone(),
            place,
        };
    }
    let problem = match error.path.is_empty() {
        true => error.kind.to_string(),
        false => format!("`{}`: {}", error.path.join("."), error.kind),
    };
    ConfigError::Invalid { place, problem }
}

/// One string with commas (as an environment variable has it) or a list of strings.
fn strings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let parts = text.split(',').map(str::trim);
            Ok(parts.filter(|p| !p.is_empty()).map(str::to_owned).collect())
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests;
