//! Where the APIs of a swarm's nodes are, for clients that look for their answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Client;

/// Shared by the swarm, which keeps it, and the clients.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<Vec<(String, Client)>>>);

impl Directory {
    /// Enters a node, or its new address.
    pub fn put(&self, peer_id: &str, client: Client) {
        let mut nodes = self.lock();
        nodes.retain(|(known, _)| known != peer_id);
        nodes.push((peer_id.to_owned(), client));
    }

    /// Forgets all but these.
    pub fn keep(&self, peer_ids: &[&str]) {
        let mut nodes = self.lock();
        nodes.retain(|(known, _)| peer_ids.contains(&known.as_str()));
    }

    /// The API of a node.
    pub fn client(&self, peer_id: &str) -> Option<Client> {
        let nodes = self.lock();
        let found = nodes.iter().find(|(known, _)| known == peer_id);
        found.map(|(_, client)| client.clone())
    }

    /// All nodes.
    pub fn peer_ids(&self) -> Vec<String> {
        let nodes = self.lock();
        nodes.iter().map(|(peer_id, _)| peer_id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Client)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
