//! The answers that trials are compared with: those of one node that holds the whole model and that
//! nothing happens to.

use std::collections::BTreeMap;

use anyhow::Result;

use super::plan::Request;
use crate::{Answer, ChatRequest, Node, NodeOptions, models::Model};

const SENTENCES: [&str; 4] = [
    "Write a long story about a lighthouse keeper, and do not leave out the weather.",
    "Explain in many words how bread is made, from the field to the table.",
    "Describe every room of an old house by the sea and who lived in it.",
    "List the planets and tell a long legend about each of them.",
];

/// An undisturbed node, and what it answered so far.
pub struct Baseline {
    node: Node,
    model: String,
    answers: BTreeMap<Request, Answer>,
}

impl Baseline {
    /// Starts the node.
    pub async fn start(model: &Model) -> Result<Self> {
        let mut node = Node::start(&NodeOptions::default()).await?;
        node.process.hush();
        node.add_model(&model.path)?;
        Ok(Self {
            node,
            model: model.name.clone(),
            answers: BTreeMap::new(),
        })
    }

    /// The answer to a request; computed once.
    pub async fn answer(&mut self, request: &Request) -> Result<Answer> {
        if let Some(answer) = self.answers.get(request) {
            return Ok(answer.clone());
        }
        let answer = self
            .node
            .client
            .chat(&chat(request, &self.model, None))
            .await?;
        self.answers.insert(request.clone(), answer.clone());
        Ok(answer)
    }
}

/// A request as a client sends it, for an answer that is to survive so much.
pub fn chat(request: &Request, model: &str, level: Option<&'static str>) -> ChatRequest {
    let prompt = prompt(request);
    let mut chat = ChatRequest::greedy(model, &prompt, request.answer);
    chat.seed = request.seed;
    chat.fault_tolerance = level;
    if !request.greedy {
        chat.temperature = 0.8;
    }
    chat
}

/// So many words, which differ from request to request.
fn prompt(request: &Request) -> String {
    let first = request.id as usize;
    let sentences = SENTENCES.iter().cycle().skip(first % SENTENCES.len());
    let words = sentences.flat_map(|sentence| sentence.split(' '));
    let words: Vec<&str> = words.take(request.words as usize).collect();
    format!("Number {first}. {}", words.join(" "))
}
