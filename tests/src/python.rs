//! A virtual environment with the official `openai` client.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};

use crate::{binaries, skip_loudly};

/// The version that the tests speak to.
const OPENAI: &str = "openai==3.54.0";

/// The interpreter of a virtual environment that has `openai`, or None after a loud notice. With
/// `ACCEL_REQUIRE_PYTHON=1` (continuous integration) there is no way around it.
pub fn with_openai() -> Result<Option<PathBuf>> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    match found {
        Ok(python) => Ok(Some(python.clone())),
        Err(why) if env::var_os("ACCEL_REQUIRE_PYTHON").is_some_and(|value| value == "1") => {
            bail!("the openai client could not be installed: {why}")
        }
        Err(why) => {
            skip_loudly("the official openai Python client", why);
            Ok(None)
        }
    }
}

fn prepare() -> Result<PathBuf> {
    let venv = binaries::target_dir()?.join("openai-venv");
    let python = venv.join("bin/python");
    if imports_openai(&python) {
        return Ok(python);
    }
    let system = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    // Without pip of its own: Debian keeps `ensurepip` in a package apart, and the system's pip can serve.
    let mut make = Command::new(&system);
    make.args(["-m", "venv", "--clear", "--without-pip"])
        .arg(&venv);
    succeed(&mut make)?;
    let mut install = Command::new(&system);
    install
        .args(["-m", "pip", "--disable-pip-version-check", "--python"])
        .arg(&python)
        .args(["install", "--quiet", OPENAI]);
    succeed(&mut install)?;
    if !imports_openai(&python) {
        bail!("{OPENAI} is installed but cannot be imported");
    }
    Ok(python)
}

fn imports_openai(python: &Path) -> bool {
    let mut probe = Command::new(python);
    probe.args(["-c", "import openai"]);
    succeed(&mut probe).is_ok()
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
