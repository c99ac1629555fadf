//! The same kill, done to llama.cpp: a model is split over two of its RPC servers, and one of them is
//! killed in the middle of an answer. What its client does then is reported as it is.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tempfile::TempDir;

use crate::{binaries, models, process::Process};

const SERVER: &str = "ggml-rpc-server";
const CLIENT: &str = "llama-completion";
const PROMPT: &str = "Once upon a time there was a lighthouse keeper who";
const TOKENS: &str = "160";
/// The servers' own end is waited for no longer than this.
const UP: Duration = Duration::from_secs(30);
/// A client that is still there by then, without another byte, hangs.
const LIMIT: Duration = Duration::from_secs(90);
/// Bytes of the answer after which the server is killed.
const MARK: usize = 120;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Findings {
    model: String,
    command: String,
    undisturbed: Option<Client>,
    disturbed: Option<Client>,
    /// Why there is no more.
    error: Option<String>,
}

/// How a client ended.
#[derive(Debug, Serialize)]
struct Client {
    /// Its exit status in words; absent where it had to be killed.
    ended: Option<String>,
    /// Seconds that it ran.
    seconds: f64,
    /// Milliseconds from the kill to its end.
    after_kill_ms: Option<f64>,
    /// Bytes of the answer.
    bytes: usize,
    /// Whether what it wrote is the beginning of the undisturbed answer.
    beginning: Option<bool>,
    /// The end of what it said on standard error.
    said: String,
    #[serde(skip)]
    text: String,
}

/// Does both, and tells what happened.
pub async fn run(programs: Option<&Path>) -> Findings {
    let mut findings = Findings {
        model: models::QWEN.to_owned(),
        command: String::new(),
        undisturbed: None,
        disturbed: None,
        error: None,
    };
    if let Err(error) = compare(programs, &mut findings).await {
        findings.error = Some(format!("{error:#}"));
    }
    findings
}

async fn compare(programs: Option<&Path>, findings: &mut Findings) -> Result<()> {
    let programs = match programs {
        Some(dir) => dir.to_owned(),
        None => build()?,
    };
    let model = models::qwen()?;
    findings.command = format!(
        "{CLIENT} -m {} --rpc A,B -ngl 99 -n {TOKENS} --temp 0 -no-cnv",
        models::QWEN
    );
    let undisturbed = answer(&programs, &model, None).await?;
    let mut disturbed = answer(&programs, &model, Some(MARK)).await?;
    disturbed.beginning = Some(undisturbed.text.starts_with(disturbed.text.trim_end()));
    findings.undisturbed = Some(undisturbed);
    findings.disturbed = Some(disturbed);
    Ok(())
}

/// Where `build-llama-cpp` has them.
fn build() -> Result<PathBuf> {
    let script = binaries::workspace().join("tests/scripts/build-llama-cpp");
    let output = Command::new(script)
        .output()
        .context("cannot run build-llama-cpp")?;
    if !output.status.success() {
        bail!(
            "llama.cpp could not be built: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}

/// One answer over two servers; one is killed after so many bytes.
async fn answer(programs: &Path, model: &Path, kill_after: Option<usize>) -> Result<Client> {
    let dir = tempfile::Builder::new().prefix("accel-rpc-").tempdir()?;
    let (_kept, kept_at) = server(programs, "rpc-a", &dir).await?;
    let (mut victim, victim_at) = server(programs, "rpc-b", &dir).await?;
    let stdout = dir.path().join("answer");
    let mut command = Command::new(programs.join(CLIENT));
    command
        .arg("-m")
        .arg(model)
        .args(["--rpc", &format!("{kept_at},{victim_at}")]);
    command.args([
        "-ngl",
        "99",
        "-n",
        TOKENS,
        "--temp",
        "0",
        "-no-cnv",
        "--no-display-prompt",
    ]);
    command.args(["--simple-io", "-p", PROMPT]);
    // The trace would go where the answer goes.
    command.env("GGML_NO_BACKTRACE", "1");
    let started = Instant::now();
    let mut client = Process::spawn_apart("rpc-client", &mut command, dir.path(), &stdout)?;
    client.hush();
    let text = || fs::read_to_string(&stdout).unwrap_or_default();
    let mut killed: Option<Instant> = None;
    let status = loop {
        if let Some(status) = client.exited()? {
            break Some(status.to_string());
        }
        if kill_after.is_some_and(|mark| killed.is_none() && text().len() >= mark) {
            victim.kill();
            killed = Some(Instant::now());
        }
        if killed.unwrap_or(started).elapsed() > LIMIT {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    if kill_after.is_some() && killed.is_none() {
        bail!(
            "the answer was over before the kill; it says: {}",
            client.log_tail()
        );
    }
    client.kill();
    Ok(Client {
        ended: status,
        seconds: started.elapsed().as_secs_f64(),
        after_kill_ms: killed.map(|at| at.elapsed().as_secs_f64() * 1000.0),
        bytes: text().len(),
        beginning: None,
        said: last_lines(&client.output()),
        text: text(),
    })
}

async fn server(programs: &Path, name: &str, dir: &TempDir) -> Result<(Process, String)> {
    // It cannot be told to take any free port, so it gets one that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let at = format!("127.0.0.1:{port}");
    let mut command = Command::new(programs.join(SERVER));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let mut process = Process::spawn(name, &mut command, dir.path())?;
    process.hush();
    let deadline = Instant::now() + UP;
    while tokio::net::TcpStream::connect(&at).await.is_err() {
        if Instant::now() > deadline || process.exited()?.is_some() {
            bail!("{SERVER} does not listen: {}", process.output());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((process, at))
}

/// The end of what it said, with files by their names alone: where it was built is of no interest.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines.get(lines.len().saturating_sub(2)..);
    let last = last.unwrap_or_default().iter().map(|line| {
        let words = line.split(' ');
        let names = words.map(|word| word.rsplit('/').next().unwrap_or(word));
        names.collect::<Vec<_>>().join(" ")
    });
    last.collect::<Vec<_>>().join("\n")
}

impl Findings {
    /// A section of the report.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "## The same kill, done to llama.cpp over its RPC\n\n{}; `{}`; one of the two `{SERVER}` is killed \
             (SIGKILL) once {MARK} bytes of the answer are there. Measured.\n\n",
            self.model, self.command
        );
        if let Some(error) = &self.error {
            text.push_str(&format!("It could not be done: {error}\n"));
        }
        for (name, client) in [
            ("Undisturbed", &self.undisturbed),
            ("Disturbed", &self.disturbed),
        ] {
            if let Some(client) = client {
                text.push_str(&client.markdown(name));
            }
        }
        text
    }
}

impl Client {
    fn markdown(&self, name: &str) -> String {
        let end = match &self.ended {
            Some(status) => format!("the client ended with {status}"),
            None => "the client hung and was killed".to_owned(),
        };
        let mut text = format!(
            "- {name}: {end} after {:.1} s, {} bytes of answer",
            self.seconds, self.bytes
        );
        if let Some(after) = self.after_kill_ms {
            text.push_str(&format!(", {after:.0} ms after the kill"));
        }
        if let Some(beginning) = self.beginning {
            let what = if beginning { "the beginning of" } else { "not" };
            text.push_str(&format!(
                "; they are {what} the undisturbed answer. It said last:\n\n"
            ));
            text.push_str(&format!(
                "  ```text\n  {}\n  ```",
                self.said.replace('\n', "\n  ")
            ));
        }
        text.push('\n');
        text
    }
}
