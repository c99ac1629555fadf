//! The process: it says when it is ready, and stops when it is told to.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_accel-bootstrap"));
    command
        .arg("--data")
        .arg(data)
        .args(["--listen", "/ip4/127.0.0.1/tcp/0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn start(data: &Path, ready: &Path) -> (Running, String) {
    let child = command(data).arg("--ready-file").arg(ready).spawn();
    let running = Running(child.expect("it starts"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = fs::read_to_string(ready) {
            return (running, text);
        }
        assert!(Instant::now() < deadline, "it does not become ready");
        thread::sleep(Duration::from_millis(20));
    }
}

fn stop(running: &mut Running) {
    kill_process(Pid::from_child(&running.0), Signal::TERM).expect("it can be signalled");
    let status = running.0.wait().expect("it can be waited for");
    assert!(status.success(), "it ended with {status}");
}

#[test]
fn it_stops_well_and_comes_back_as_the_same_peer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, ready) = (dir.path().join("data"), dir.path().join("ready.json"));
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (mut running, told) = start(&data, &ready);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert!(told["addrs"][0].as_str().is_some(), "{told}");
        peers.push(told["peer_id"].clone());
        stop(&mut running);
        assert!(!ready.exists(), "the ready file outlived the process");
    }
    assert_eq!(peers[0], peers[1]);
}

#[test]
fn a_file_that_is_no_swarm_key_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("swarm.key");
    fs::write(&key, "not a key").expect("a file");
    let output = command(&dir.path().join("data"))
        .arg("--swarm-key")
        .arg(&key)
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("swarm key"), "{said}");
}
