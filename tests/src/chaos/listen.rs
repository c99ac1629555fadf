//! The clients: each reads its answer as a stream, comes back when that breaks, and notes when every
//! token came.

mod lasting;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::swarm::Directory;
use crate::{ChatRequest, client::delta};
use lasting::Lasting;

/// What a client heard so far.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The session, once it is told.
    pub session: Option<String>,
    /// The node that the answer comes from.
    pub at: String,
    /// How often the client went on after its stream had broken.
    pub came_back: usize,
    /// Why it broke; the same reason several times in a row is told once.
    pub broke: Vec<String>,
    /// The text.
    pub text: String,
    /// The token ids.
    pub tokens: Vec<u64>,
    /// `stop` or `length`.
    pub finish: Option<String>,
    /// Why there is no more.
    pub error: Option<String>,
    /// When it was asked.
    pub asked: Instant,
    /// When each token came.
    pub times: Vec<Instant>,
    /// When the answer ended, in whatever way.
    pub ended: Option<Instant>,
}

impl Heard {
    fn begin(at: &str) -> Self {
        Self {
            session: None,
            at: at.to_owned(),
            came_back: 0,
            broke: Vec::new(),
            text: String::new(),
            tokens: Vec::new(),
            finish: None,
            error: None,
            asked: Instant::now(),
            times: Vec::new(),
            ended: None,
        }
    }

    /// Whether the answer ended.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The longest silence that ended after `from`: between two tokens, or before the first.
    pub fn longest_silence(&self, from: Instant) -> Option<Duration> {
        let starts = std::iter::once(&self.asked).chain(&self.times);
        let gaps = starts.zip(&self.times).filter(|(_, end)| **end >= from);
        gaps.map(|(start, end)| *end - *start).max()
    }

    /// The usual time between two tokens.
    pub fn usual_silence(&self) -> Option<Duration> {
        let pairs = self.times.iter().zip(self.times.iter().skip(1));
        let mut gaps: Vec<Duration> = pairs.map(|(start, end)| *end - *start).collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied()
    }
}

/// A client that listens in the background; it hangs up when dropped.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Asks the node with this PeerId, and listens from now on.
    pub fn start(nodes: &Directory, at: &str, request: ChatRequest) -> Self {
        let heard = Arc::new(Mutex::new(Heard::begin(at)));
        let ear = Arc::clone(&heard);
        let lasting = Lasting::new(nodes.clone(), at, request);
        let task = tokio::spawn(async move {
            let end = lasting.hear(&ear).await;
            let mut heard = lock(&ear);
            heard.error = end.err();
            heard.ended = Some(Instant::now());
        });
        Self { heard, task }
    }

    /// What was heard so far.
    pub fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }

    /// Whether its stream ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.heard).has_ended()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn take(heard: &mut Heard, event: &Value, now: Instant) {
    heard.text.push_str(delta(event));
    let choice = &event["choices"][0];
    let ids = choice["token_ids"].as_array();
    for id in ids.into_iter().flatten().filter_map(Value::as_u64) {
        heard.tokens.push(id);
        heard.times.push(now);
    }
    if let Some(finish) = choice["finish_reason"].as_str() {
        heard.finish = Some(finish.to_owned());
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silence_counts_from_the_request_and_ends_after_the_fault() {
        let asked = Instant::now();
        let at = |ms| asked + Duration::from_millis(ms);
        let heard = Heard {
            tokens: vec![1, 2, 3, 4],
            asked,
            times: vec![at(900), at(1000), at(1500), at(1510)],
            ..Heard::begin("somebody")
        };
        let ms = Duration::from_millis;
        assert_eq!(heard.longest_silence(at(100)), Some(ms(900)));
        assert_eq!(heard.longest_silence(at(1200)), Some(ms(500)));
        assert_eq!(heard.longest_silence(at(2000)), None);
        assert_eq!(heard.usual_silence(), Some(ms(100)));
    }
}
