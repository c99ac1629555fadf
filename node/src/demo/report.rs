//! What came out of the demo, for people and for programs.

use serde_json::{Value, json};

use crate::client::answer::Heard;
use crate::terminal::{human_bytes, short_peer, table};

/// The outcome of the demo.
pub struct Report {
    pub model: String,
    pub cid: String,
    pub file_bytes: u64,
    pub shares: Vec<Share>,
    pub runs: Vec<Comparison>,
}

/// One node's share of the work.
pub struct Share {
    name: &'static str,
    peer_id: String,
    /// First and last layer.
    pub layers: Option<(u64, u64)>,
    bytes_fetched: u64,
    file_bytes: u64,
    added: bool,
}

impl Share {
    /// What the route of a session says of a peer.
    pub fn new(name: &'static str, peer_id: &str, session: &Value) -> Self {
        let route = session.get("route").and_then(Value::as_array);
        let mut hops = route.into_iter().flatten();
        let own = hops.find(|hop| hop.get("peer_id").and_then(Value::as_str) == Some(peer_id));
        let layer = |key: &str| own.and_then(|hop| hop.get(key)?.as_u64());
        Self {
            name,
            peer_id: peer_id.to_owned(),
            layers: layer("first_layer").zip(layer("last_layer")),
            bytes_fetched: 0,
            file_bytes: 0,
            added: false,
        }
    }

    /// Adds how much of the file the node fetched, or that it was given the file.
    #[must_use]
    pub fn with_bytes(mut self, fetched: u64, file: u64, added: bool) -> Self {
        self.bytes_fetched = fetched;
        self.file_bytes = file;
        self.added = added;
        self
    }

    fn fetched(&self) -> String {
        if self.added {
            return "nothing: it was given the file".into();
        }
        let (fetched, file) = (
            human_bytes(self.bytes_fetched),
            human_bytes(self.file_bytes),
        );
        format!("{fetched} of {file}")
    }
}

/// One question, answered by the swarm and by one node.
pub struct Comparison {
    name: &'static str,
    swarm: Heard,
    alone: Heard,
}

impl Comparison {
    /// The answers to one question.
    pub fn new(name: &'static str, swarm: Heard, alone: Heard) -> Self {
        Self { name, swarm, alone }
    }

    fn equal(&self) -> bool {
        let (swarm, alone) = (&self.swarm, &self.alone);
        !swarm.token_ids.is_empty()
            && swarm.token_ids == alone.token_ids
            && swarm.text == alone.text
            && swarm.finish_reason == alone.finish_reason
    }

    fn verdict(&self) -> String {
        if self.equal() {
            return "equal, token for token".into();
        }
        let pairs = self.swarm.token_ids.iter().zip(&self.alone.token_ids);
        let same = pairs.take_while(|(left, right)| left == right).count();
        format!("DIFFERENT from token {same} on")
    }
}

impl Report {
    /// Whether the swarm answered everything as one node does.
    pub fn equal(&self) -> bool {
        self.runs.iter().all(Comparison::equal)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut nodes = table(&["NODE", "PEER", "LAYERS", "FETCHED"]);
        for share in &self.shares {
            let layers = share.layers.map(|(first, last)| format!("{first}-{last}"));
            nodes.add_row(vec![
                share.name.to_owned(),
                short_peer(&share.peer_id),
                layers.unwrap_or_else(|| "none".into()),
                share.fetched(),
            ]);
        }
        let mut runs = table(&["ANSWER", "TOKENS", "THREE NODES", "ONE NODE", "THE TWO ARE"]);
        for run in &self.runs {
            runs.add_row(vec![
                run.name.to_owned(),
                run.swarm.token_ids.len().to_string(),
                speed(&run.swarm),
                speed(&run.alone),
                run.verdict(),
            ]);
        }
        format!("{nodes}\n\n{runs}\n")
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let nodes: Vec<Value> = self.shares.iter().map(share_json).collect();
        let runs: Vec<Value> = self.runs.iter().map(comparison_json).collect();
        json!({
            "model": self.model,
            "cid": self.cid,
            "file_bytes": self.file_bytes,
            "nodes": nodes,
            "runs": runs,
            "equal": self.equal(),
        })
    }
}

fn speed(heard: &Heard) -> String {
    match heard.tokens_per_s() {
        Some(speed) => format!("{speed:.1} tokens/s measured"),
        None => "-".into(),
    }
}

fn share_json(share: &Share) -> Value {
    json!({
        "node": share.name,
        "peer_id": share.peer_id,
        "first_layer": share.layers.map(|layers| layers.0),
        "last_layer": share.layers.map(|layers| layers.1),
        "bytes_fetched": share.bytes_fetched,
        "file_bytes": share.file_bytes,
        "given_the_file": share.added,
    })
}

fn comparison_json(run: &Comparison) -> Value {
    json!({
        "answer": run.name,
        "equal": run.equal(),
        "three_nodes": run.swarm.json(),
        "one_node": run.alone.json(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(tokens: &[u32]) -> Heard {
        Heard {
            token_ids: tokens.to_vec(),
            finish_reason: "stop".into(),
            decode_s: 0.5,
            ..Heard::default()
        }
    }

    fn report(alone: &[u32]) -> Report {
        let session = json!({"route": [{"peer_id": "p", "first_layer": 0, "last_layer": 9}]});
        Report {
            model: "m".into(),
            cid: "c".into(),
            file_bytes: 3 << 20,
            shares: vec![Share::new("node 2", "p", &session).with_bytes(1 << 20, 3 << 20, false)],
            runs: vec![Comparison::new("greedy", heard(&[1, 2, 3]), heard(alone))],
        }
    }

    #[test]
    fn equal_answers_are_called_equal_with_figures_that_are_tagged() {
        let report = report(&[1, 2, 3]);
        assert!(report.equal());
        let text = report.text();
        for part in [
            "0-9",
            "1.0 MiB of 3.0 MiB",
            "4.0 tokens/s measured",
            "equal",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert_eq!(report.json()["equal"], true);
        assert_eq!(report.json()["nodes"][0]["last_layer"], 9);
    }

    #[test]
    fn a_difference_is_told_with_its_place() {
        let report = report(&[1, 2, 4]);
        assert!(!report.equal());
        assert!(
            report.text().contains("DIFFERENT from token 2"),
            "{}",
            report.text()
        );
        assert_eq!(report.json()["equal"], false);
    }

    #[test]
    fn no_answer_equals_nothing() {
        let comparison = Comparison::new("greedy", heard(&[]), heard(&[]));
        assert!(!comparison.equal());
    }

    #[test]
    fn a_node_outside_the_route_has_no_layers() {
        let share = Share::new("node 1", "other", &json!({"route": []}));
        assert_eq!(share.layers, None);
    }
}
