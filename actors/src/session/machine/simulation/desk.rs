//! A coordinator: a node's machine for the session, with whatever belongs to it alone. There may be
//! several at once, on different nodes: the client goes elsewhere, and nobody tells the one before.

use std::collections::{BTreeMap, VecDeque};

use super::calls::Call;
use super::checks::Conduct;
use super::copies::Post;
use super::weather::Millis;
use super::{Machine, Simulation};
use crate::session::event::Event;

/// See the module.
pub(super) struct Desk {
    /// Tells it from all others, also from those that the node had before.
    pub(super) process: u32,
    /// The number under which it took the session over.
    pub(super) claim: u64,
    pub(super) machine: Machine,
    pub(super) conduct: Conduct,
    pub(super) calls: BTreeMap<u64, Call>,
    /// The newest timer: an earlier one was replaced.
    pub(super) timer: u64,
    pub(super) journaled_at: Millis,
    /// Tokens on their way to the client.
    pub(super) sent: VecDeque<(u64, String)>,
    pub(super) post: Post,
}

impl Desk {
    pub(super) fn new(process: u32, claim: u64, machine: Machine, conduct: Conduct) -> Self {
        Self {
            process,
            claim,
            machine,
            conduct,
            calls: BTreeMap::new(),
            timer: 0,
            journaled_at: 0,
            sent: VecDeque::new(),
            post: Post::default(),
        }
    }
}

/// What a node knows of the others.
pub(super) struct View {
    /// Whom it is connected to.
    pub(super) connected: Vec<bool>,
    /// When each one's newest advert came.
    pub(super) heard: Vec<Millis>,
}

impl View {
    pub(super) fn of(count: usize) -> Self {
        Self {
            connected: vec![true; count],
            heard: vec![0; count],
        }
    }
}

impl Simulation {
    /// The coordinator on a node, if there is one.
    pub(super) fn desk(&mut self, at: usize) -> &mut Desk {
        self.desks.get_mut(&at).expect("a coordinator")
    }

    /// Where this one is, if it is still there.
    pub(super) fn desk_of(&self, process: u32) -> Option<usize> {
        let mut desks = self.desks.iter();
        desks
            .find(|(_, desk)| desk.process == process)
            .map(|(at, _)| *at)
    }

    /// The coordinator that the client listens to.
    pub(super) fn serving(&self) -> Option<usize> {
        self.desk_of(self.client.listens?)
    }

    /// Whether the client listens to the coordinator on a node.
    pub(super) fn serves(&self, at: usize) -> bool {
        self.serving() == Some(at)
    }

    /// The machine on a node is told something, unless another takes its place before.
    pub(super) fn later(&mut self, at: usize, time: Millis, event: Event) {
        let process = self.desk(at).process;
        self.at(time, super::Happening::Event(process, event));
    }
}
