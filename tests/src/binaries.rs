//! Finds the binaries under test.
//!
//! Cargo tells a test only about binaries of its own package, so they are looked up beside the test
//! executable (`target/PROFILE/`). `cargo test --workspace` has built them by then. When one is missing,
//! or older than a source file of the workspace, cargo is asked to build it once per test process, so
//! that `cargo test -p accel-tests` never tests yesterday's binary. `ACCEL_BIN` names another `accel`.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};

/// The crates whose sources end up in a binary.
const CRATES: [&str; 7] = [
    "node",
    "actors",
    "p2p",
    "p2p/swarm",
    "storage",
    "inference",
    "bootstrap",
];

/// The path of `accel`, fresh.
pub fn accel() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ACCEL_BIN") {
        return Ok(PathBuf::from(path));
    }
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, "accel")
}

/// The path of `accel-bootstrap`, fresh.
pub fn accel_bootstrap() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    remembered(&FOUND, "accel-bootstrap")
}

fn remembered(found: &OnceLock<Result<PathBuf, String>>, package: &str) -> Result<PathBuf> {
    found
        .get_or_init(|| fresh(package).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests crate lies in the workspace")
}

fn fresh(package: &str) -> Result<PathBuf> {
    let profile_dir = profile_dir()?;
    let path = profile_dir.join(format!("{package}{}", env::consts::EXE_SUFFIX));
    if !is_stale(&path)? {
        return Ok(path);
    }
    build(&profile_dir)?;
    if !path.exists() {
        bail!(
            "cargo built {package}, but {} is not there; name the binary with ACCEL_BIN",
            path.display()
        );
    }
    Ok(path)
}

/// The directory that holds the profiles.
pub fn target_dir() -> Result<PathBuf> {
    let profile_dir = profile_dir()?;
    let dir = profile_dir.parent();
    dir.map(Path::to_path_buf)
        .context("a profile directory has a parent")
}

/// `target/PROFILE`, from `target/PROFILE/deps/this-test`, `target/PROFILE/examples/this-example` or
/// `target/PROFILE/this-program`.
fn profile_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot tell where this test lies")?;
    let beside = exe.parent();
    let dir = match beside.and_then(Path::file_name) {
        Some(name) if name == "deps" || name == "examples" => beside.and_then(Path::parent),
        _ => beside,
    };
    dir.map(Path::to_path_buf)
        .with_context(|| format!("{} is not inside a target directory", exe.display()))
}

fn build(profile_dir: &Path) -> Result<()> {
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} names no profile", profile_dir.display()),
    };
    let target_dir = target_dir()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Build scripts look at what cargo tells a test about its package: with that, `ring` and everything
    // above it would be compiled once more now, and again by the next cargo that runs outside a test.
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_a_package(name)) {
        command.env_remove(name);
    }
    let status = command
        // The whole workspace, because a package alone resolves other features of its dependencies,
        // and most of them would be compiled once more.
        .args(["build", "--workspace", "--bins", "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(workspace())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build --workspace --bins failed: {status}");
    }
    Ok(())
}

/// Whether cargo sets a variable for the programs of one package.
fn is_of_a_package(name: &OsStr) -> bool {
    const PREFIXES: [&str; 4] = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_CRATE_",
        "CARGO_BIN_",
    ];
    let name = name.to_string_lossy();
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name == "CARGO_PRIMARY_PACKAGE"
}

fn is_stale(binary: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(binary).and_then(|meta| meta.modified()) else {
        return Ok(true);
    };
    let root = workspace();
    let mut newest = modified(&root.join("Cargo.lock"))?;
    for name in CRATES {
        newest = newest.max(newest_below(&root.join(name).join("src"))?);
        newest = newest.max(modified(&root.join(name).join("Cargo.toml"))?);
    }
    Ok(newest > built)
}

fn newest_below(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let time = match path.is_dir() {
            true => newest_below(&path)?,
            false => modified(&path)?,
        };
        newest = newest.max(time);
    }
    Ok(newest)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|meta| meta.modified())
        .with_context(|| format!("cannot look at {}", path.display()))
}
