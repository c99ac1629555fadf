//! The models that tests use: small generated ones, and the real SmolLM2 where this machine has it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use accel_inference::Gguf;
use accel_inference::synthetic::{self, SyntheticArch, SyntheticSpec};
use anyhow::{Context as _, Result, bail};

use crate::{binaries, skip_loudly};

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The GGUF of Qwen2.5-Coder 0.5B.
pub const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
const SMOLLM2_BYTES: u64 = 98_362_432;

/// A model file, and what a test needs to know of it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The GGUF.
    pub path: PathBuf,
    /// What a node calls it.
    pub name: String,
    /// Its layers.
    pub layers: u64,
    /// The size of the file.
    pub bytes: u64,
}

fn base() -> SyntheticSpec {
    SyntheticSpec {
        layers: 6,
        ..SyntheticSpec::small(SyntheticArch::Llama)
    }
}

/// Six layers that answer in milliseconds.
pub fn small() -> Result<Model> {
    generated("small", base())
}

/// Six layers of some ten blocks each, so that it shows who fetched which.
pub fn wide() -> Result<Model> {
    let spec = SyntheticSpec {
        hidden: 512,
        ..base()
    };
    generated("wide", spec)
}

/// Six layers with room for an answer of thousands of tokens.
pub fn talkative() -> Result<Model> {
    let spec = SyntheticSpec {
        context: 8_192,
        ..base()
    };
    generated("talkative", spec)
}

/// Six layers that need seconds for a prompt of thousands of tokens.
pub fn patient() -> Result<Model> {
    let spec = SyntheticSpec {
        hidden: 512,
        context: 16_384,
        ..base()
    };
    generated("patient", spec)
}

/// Six layers that can remember 128 tokens.
pub fn short_context() -> Result<Model> {
    let spec = SyntheticSpec {
        context: 128,
        ..base()
    };
    generated("short-context", spec)
}

fn generated(name: &str, spec: SyntheticSpec) -> Result<Model> {
    let dir = binaries::target_dir()?.join("test-models");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.gguf"));
    // Tests run at the same time: each writes its own file, and the last one to rename it wins.
    let own = tempfile::NamedTempFile::new_in(&dir)?;
    synthetic::generate(&spec, own.path())?;
    own.persist(&path)?;
    Ok(Model {
        bytes: fs::metadata(&path)?.len(),
        layers: spec.layers.into(),
        name: name.to_owned(),
        path,
    })
}

/// The real SmolLM2, or None after a loud notice. With `ACCEL_REQUIRE_MODEL=1` (continuous
/// integration) there is no way around it.
pub fn smollm2() -> Result<Option<Model>> {
    let dir = models_dir()?;
    let path = dir.join(SMOLLM2);
    if path.exists() {
        return real(path).map(Some);
    }
    let why = format!(
        "{SMOLLM2} is not in {}; run tests/scripts/get-models",
        dir.display()
    );
    if env::var_os("ACCEL_REQUIRE_MODEL").is_some_and(|value| value == "1") {
        bail!(why);
    }
    skip_loudly("SmolLM2", &why);
    Ok(None)
}

/// Any GGUF.
pub fn from_file(path: &Path) -> Result<Model> {
    let header = Gguf::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = format!("{}.block_count", header.architecture().unwrap_or_default());
    let name = path.file_stem().context("a file has a name")?;
    Ok(Model {
        name: name.to_string_lossy().into_owned(),
        layers: header
            .metadata
            .u64(&key)
            .with_context(|| format!("no {key}"))?,
        bytes: fs::metadata(path)?.len(),
        path: path.to_owned(),
    })
}

/// The file of Qwen2.5-Coder 0.5B, where this machine has it.
pub fn qwen() -> Result<PathBuf> {
    let path = models_dir()?.join(QWEN);
    if !path.exists() {
        bail!(
            "{} is not there; run tests/scripts/get-models all",
            path.display()
        );
    }
    Ok(path)
}

fn real(path: PathBuf) -> Result<Model> {
    let bytes = fs::metadata(&path)?.len();
    if bytes != SMOLLM2_BYTES {
        bail!("{} has {bytes} bytes, not {SMOLLM2_BYTES}", path.display());
    }
    let name = Path::new(SMOLLM2).file_stem().unwrap_or_default();
    Ok(Model {
        name: name.to_string_lossy().into_owned(),
        layers: 30,
        path,
        bytes,
    })
}

fn models_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("ACCEL_MODELS") {
        return Ok(PathBuf::from(dir));
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = env::var_os("HOME").context("neither ACCEL_MODELS nor HOME is set")?;
            Path::new(&home).join(".cache")
        }
    };
    Ok(cache.join("accel/models"))
}
