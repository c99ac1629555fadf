//! The program as a person meets it: what it prints, and how it ends.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate};
use serde_json::Value;
use tempfile::TempDir;

fn accel(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_accel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ACCEL_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).current_dir(home);
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    accel(home).args(args).output().unwrap()
}

/// Fails with an exit code, an `error:` that names `about` and a `hint:`; gives what it said.
#[track_caller]
fn assert_refused(output: &Output, about: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: ") && said.contains("\nhint: "),
        "{said}"
    );
    assert!(said.contains(about), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_setting_that_cannot_be_met_is_refused_before_anything_is_made() {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("bad.toml"), "thread = 4\n").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--device", "cuda"], "CPU for now"),
        (&["--device", "abacus"], "not one of"),
        (&["--threads", "0"], "threads"),
        (&["--api", "nowhere"], "nowhere"),
        (
            &["--config", "bad.toml"],
            "the known keys are data, api, listen",
        ),
    ];
    for (flags, about) in cases {
        let mut args = vec!["up", "--data", "data"];
        args.extend(flags);
        assert_refused(&run(home.path(), &args), about);
        assert!(!home.path().join("data").exists(), "{flags:?}");
    }
}

#[test]
fn commands_that_miss_something_say_what_to_do() {
    let home = TempDir::new().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["peers", "--api", "127.0.0.1:9"], "127.0.0.1:9"),
        (
            &["run", "m", "p", "--api", "127.0.0.1:9"],
            "no node answers",
        ),
        (&["model", "add", "x", "--api", "127.0.0.1:9"], "accel up"),
        (&["key", "--data", "nowhere"], "no API key"),
        (&["bench", "no-such.gguf"], "no-such.gguf"),
        (
            &["eval", "no-such.gguf", "--reference", "r"],
            "no-such.gguf",
        ),
    ];
    for (args, about) in cases {
        assert_refused(&run(home.path(), args), about);
    }
}

#[test]
fn a_swarm_key_is_made_once() {
    let home = TempDir::new().unwrap();
    let made = run(home.path(), &["swarm", "init", "--out", "key", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let told: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(told["swarm"], "home", "{told}");
    let key = std::fs::read(home.path().join("key")).unwrap();
    assert_refused(
        &run(home.path(), &["swarm", "init", "--out", "key"]),
        "exists",
    );
    assert_eq!(std::fs::read(home.path().join("key")).unwrap(), key);
}

#[test]
fn a_text_is_scored_or_refused_with_the_reason() {
    let home = TempDir::new().unwrap();
    let spec = SyntheticSpec::small(SyntheticArch::Llama);
    generate(&spec, &home.path().join("model.gguf")).unwrap();
    let score = |text: &[u8], more: &[&str]| {
        std::fs::write(home.path().join("text"), text).unwrap();
        let args = ["eval", "model.gguf", "--text", "text", "--json"];
        run(home.path(), &[&args[..], more].concat())
    };
    let words = "what a node can do is measured ".repeat(40);

    let scored = score(words.as_bytes(), &["--chunk", "100", "--threads", "2"]);
    assert!(scored.status.success(), "{scored:?}");
    let report: Value = serde_json::from_slice(&scored.stdout).unwrap();
    let keys: Vec<_> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["tokens", "chunks", "nll", "perplexity"]);
    let chunks = report["chunks"].as_u64().unwrap();
    assert!(chunks >= 2, "{report}");
    assert_eq!(report["tokens"], chunks * 49, "{report}");
    let nll = report["nll"].as_f64().unwrap();
    let perplexity = report["perplexity"].as_f64().unwrap();
    assert!((nll.exp() / perplexity - 1.0).abs() < 1e-9, "{report}");

    let cases: [(&[u8], &[&str], &str); 5] = [
        (b"short", &[], "one chunk needs 512"),
        (b"", &[], "text is empty"),
        (b"\xff\xfe", &[], "not UTF-8"),
        (words.as_bytes(), &["--chunk", "2"], "choose another size"),
        (words.as_bytes(), &["--threads", "0"], "threads"),
    ];
    for (text, more, about) in cases {
        let refused = score(text, more);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && refused.stdout.is_empty());
        assert!(
            said.starts_with("error: ") && said.contains(about),
            "{said}"
        );
    }
    let missing = run(home.path(), &["eval", "model.gguf", "--text", "gone"]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("cannot read gone"), "{said}");
}

/// A running node; killed when a test fails.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn up(home: &Path) -> Node {
    let args = [
        "up",
        "--until-stdin-closes",
        "--data",
        "data",
        "--api",
        "127.0.0.1:0",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--ready-file",
        "ready",
    ];
    let mut command = accel(home);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    Node(command.spawn().unwrap())
}

/// Waits for something with patience for a busy machine.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "nothing came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_says_when_it_listens_and_ends_well_when_its_parent_is_gone() {
    let home = TempDir::new().unwrap();
    let ready = home.path().join("ready");
    let mut node = up(home.path());
    let text = wait_for(|| std::fs::read_to_string(&ready).ok());
    let told: Value = serde_json::from_str(&text).unwrap();
    assert!(
        told["peer_id"].as_str().unwrap().starts_with("12D3"),
        "{told}"
    );
    let addr = told["addrs"][0].as_str().unwrap();
    assert!(addr.contains("/p2p/12D3"), "{told}");
    let api = told["api"].as_str().unwrap();

    let peers = run(home.path(), &["peers", "--json", "--api", api]);
    let peers: Value = serde_json::from_slice(&peers.stdout).unwrap();
    assert_eq!(peers[0]["peer_id"], told["peer_id"], "{peers}");
    assert_refused(
        &run(home.path(), &["model", "show", "none", "--api", api]),
        "none",
    );

    drop(node.0.stdin.take());
    let status = wait_for(|| node.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(!ready.exists(), "the ready file is left behind");
}

#[test]
fn a_second_node_on_the_same_data_directory_is_refused() {
    let home = TempDir::new().unwrap();
    let _first = up(home.path());
    wait_for(|| home.path().join("ready").exists().then_some(()));
    let second = run(
        home.path(),
        &[
            "up",
            "--data",
            "data",
            "--api",
            "127.0.0.1:0",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
        ],
    );
    assert_refused(&second, "in use");
}
