//! False alarms: sessions run one after the other while every core is busy, and nobody is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use accel_tests::ChatRequest;
use accel_tests::models::Model;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{Options, trial};

/// What the log of a node says when it takes another for lost.
const ALARM: &str = "the tensor plane lost a peer";

/// What the nodes have to log for that.
pub const LOG: &str = "warn,accel_actors::events=info,connexa=off";

/// Threads that compute for nothing until this is dropped.
pub struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub fn start(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..threads).map(|_| spin(Arc::clone(&stop))).collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It ends by itself, whatever became of it.
            let _ = thread.join();
        }
    }
}

/// Counts for so many minutes.
pub async fn count(options: &Options, model: &Model, minutes: u64) -> Result<Value> {
    let cluster = trial::swarm(options, model).await?;
    let asked = cluster.nodes.first().context("the first node")?;
    let text = trial::prompt(options.context);
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut sessions, mut recoveries) = (0, 0);
    while Instant::now() < until {
        let request = ChatRequest::greedy(&model.name, &text, 64);
        let answer = asked.client.chat(&request).await?;
        let view = asked.client.session(&answer.session).await?;
        recoveries += view["recoveries"].as_u64().unwrap_or_default();
        sessions += 1;
    }
    let alarms: usize = cluster
        .nodes
        .iter()
        .map(|node| node.process.output().matches(ALARM).count())
        .sum();
    drop(cluster);
    println!("\n| minutes | busy threads | sessions | peers taken for lost | recoveries |");
    println!("|---|---|---|---|---|");
    let busy = options.busy;
    println!("| {minutes} | {busy} | {sessions} | {alarms} | {recoveries} |");
    Ok(json!({
        "minutes": minutes,
        "busy": busy,
        "sessions": sessions,
        "alarms": alarms,
        "recoveries": recoveries,
    }))
}
