//! Fetching one block: whom to ask, in which order, and when to give up.
//!
//! The provider with the best record is asked for the block. When it has not answered in time,
//! has it not, leaves, or sends a wrong block, the next one is asked; whatever arrives late still
//! counts. Without named providers, all connected members are also asked whether they have it.
//! Two fetches of one block at the same time are one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

use super::message::{Entry, Want};
use super::partner::Partner;
use super::wants::{Answer, Reason};
use super::{Exchange, FetchError};

/// Peers asked for one block, at most.
const MAX_ASKED: usize = 16;
/// A provider that is slow but keeps sending blocks gets its time this often.
const EXTENSIONS: u32 = 8;
/// How soon a peer that opens a stream per answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

type Outcome = Result<Bytes, FetchError>;

/// Fetches under way, for others to wait on.
#[derive(Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Cid, watch::Receiver<Option<Outcome>>>>,
}

/// Either the one to fetch a block, or somebody who waits for the one.
enum Role<'a> {
    Leader(Lead<'a>),
    Follower(watch::Receiver<Option<Outcome>>),
}

impl Flights {
    fn open(&self) -> MutexGuard<'_, HashMap<Cid, watch::Receiver<Option<Outcome>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn board(&self, cid: Cid) -> Role<'_> {
        let mut open = self.open();
        if let Some(outcome) = open.get(&cid) {
            return Role::Follower(outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        open.insert(cid, outcome);
        Role::Leader(Lead {
            flights: self,
            cid,
            sender,
        })
    }
}

/// Dropped when the fetch is done, and also when its caller gives up.
struct Lead<'a> {
    flights: &'a Flights,
    cid: Cid,
    sender: watch::Sender<Option<Outcome>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.flights.open().remove(&self.cid);
    }
}

/// Fetches a block, or waits for whoever is fetching it already.
pub(super) async fn fetch(
    exchange: &Arc<Exchange>,
    cid: Cid,
    providers: &[PeerId],
    per_provider: Duration,
) -> Outcome {
    loop {
        match exchange.flights.board(cid) {
            Role::Leader(lead) => {
                let mut flight = Flight::new(exchange, cid, per_provider);
                let outcome = flight.run(providers).await;
                drop(flight);
                if let Ok(data) = &outcome {
                    exchange.counters.received(data.len());
                }
                lead.sender.send_replace(Some(outcome.clone()));
                return outcome;
            }
            Role::Follower(mut outcome) => {
                if let Ok(outcome) = outcome.wait_for(Option::is_some).await
                    && let Some(outcome) = outcome.clone()
                {
                    return outcome;
                }
                // The leader was dropped before it was done: somebody else leads.
            }
        }
    }
}

/// The leader's work. Dropping it at any point takes its wants back.
struct Flight<'a> {
    exchange: &'a Arc<Exchange>,
    cid: Cid,
    per_provider: Duration,
    answers: mpsc::Receiver<Answer>,
    candidates: Candidates,
}

/// Whom to ask next; pure.
#[derive(Debug, Default)]
struct Candidates {
    queue: VecDeque<PeerId>,
    asked: usize,
    /// How many of the asked said that they do not have it.
    denied: usize,
}

impl Candidates {
    fn next(&mut self) -> Option<PeerId> {
        let peer = self.queue.pop_front()?;
        self.asked += 1;
        Some(peer)
    }

    /// A peer that surely has it is asked before the others.
    fn prefer(&mut self, peer: PeerId) {
        if let Some(position) = self.queue.iter().position(|queued| *queued == peer) {
            self.queue.remove(position);
            self.queue.push_front(peer);
        }
    }

    /// A peer is of no use; if it was still to be asked, it counts as asked.
    fn refuse(&mut self, peer: PeerId, reason: Reason) {
        if let Some(position) = self.queue.iter().position(|queued| *queued == peer) {
            self.queue.remove(position);
            self.asked += 1;
        }
        if reason == Reason::DontHave {
            self.denied += 1;
        }
    }

    fn verdict(&self, cid: Cid) -> FetchError {
        let asked = self.asked;
        match asked {
            0 => FetchError::NoProviders { cid },
            _ if self.denied >= asked => FetchError::NotFound { cid, asked },
            _ => FetchError::TimedOut { cid, asked },
        }
    }
}

impl<'a> Flight<'a> {
    fn new(exchange: &'a Arc<Exchange>, cid: Cid, per_provider: Duration) -> Self {
        Self {
            exchange,
            cid,
            per_provider,
            answers: exchange.wants.open(cid),
            candidates: Candidates::default(),
        }
    }

    async fn run(&mut self, providers: &[PeerId]) -> Outcome {
        self.candidates.queue = self.rank(providers);
        if providers.is_empty() {
            self.ask_whether_they_have_it().await;
        }
        while let Some(peer) = self.candidates.next() {
            let turn = self.exchange.partner(peer).turn().await;
            self.ask(peer, Want::Block).await;
            let answer = self.wait_for(peer).await;
            drop(turn);
            if let Some(data) = answer {
                return Ok(data);
            }
        }
        Err(self.candidates.verdict(self.cid))
    }

    /// Connected members among the providers, the best first.
    fn rank(&self, providers: &[PeerId]) -> VecDeque<PeerId> {
        let exchange = self.exchange;
        let mut peers = exchange.streams.connected();
        if !providers.is_empty() {
            let connected = peers;
            peers = providers.to_vec();
            peers.retain(|peer| connected.contains(peer));
        }
        peers.retain(|peer| exchange.members.is_member(peer));
        let outstanding = |peer: &PeerId| exchange.wants.outstanding(peer);
        let mut ranked = exchange.ledger().rank(&peers, outstanding, Instant::now());
        ranked.truncate(MAX_ASKED);
        ranked.into()
    }

    async fn ask_whether_they_have_it(&self) {
        let others: Vec<PeerId> = self.candidates.queue.iter().skip(1).copied().collect();
        for peer in others {
            self.ask(peer, Want::Have).await;
        }
    }

    async fn ask(&self, peer: PeerId, want: Want) {
        let exchange = self.exchange;
        exchange.wants.asked(self.cid, peer, Instant::now());
        let partner = exchange.partner(peer);
        let asking = partner.ask(Entry::want(self.cid, want));
        if tokio::time::timeout(self.per_provider, asking)
            .await
            .is_err()
        {
            tracing::debug!(%peer, cid = %self.cid, "a want could not be sent in time");
        }
    }

    /// Waits for the block, from whomever, until it is time to ask somebody else than `peer`.
    async fn wait_for(&mut self, peer: PeerId) -> Option<Bytes> {
        for _ in 0..EXTENSIONS {
            if let Some(answer) = self.wait_once(peer).await {
                return answer;
            }
            let mut ledger = self.exchange.ledger();
            if !ledger.is_delivering(&peer, self.per_provider, Instant::now()) {
                ledger.failed(peer, Instant::now());
                return None;
            }
        }
        None
    }

    /// Gives `peer` its time. One that opens a stream per answer is asked again now and then,
    /// because such a stream may be lost on the way.
    async fn wait_once(&mut self, peer: PeerId) -> Option<Option<Bytes>> {
        let give_up = Instant::now() + self.per_provider;
        loop {
            let is_steady = self.is_steady(&peer);
            let left = give_up.saturating_duration_since(Instant::now());
            let span = if is_steady { left } else { left.min(ASK_AGAIN) };
            if let Ok(answer) = tokio::time::timeout(span, self.next_answer(peer)).await {
                return Some(answer);
            }
            if is_steady || span == left {
                return None;
            }
            self.ask(peer, Want::Block).await;
        }
    }

    fn is_steady(&self, peer: &PeerId) -> bool {
        let partners = self.exchange.partners();
        partners.get(peer).is_some_and(Partner::is_steady)
    }

    /// The block, or `None` once `peer` is of no use.
    async fn next_answer(&mut self, peer: PeerId) -> Option<Bytes> {
        while let Some(answer) = self.answers.recv().await {
            match answer {
                Answer::Block { data } => return Some(data),
                Answer::Have(has_it) => self.candidates.prefer(has_it),
                Answer::No(refuser, reason) => {
                    self.candidates.refuse(refuser, reason);
                    if reason != Reason::DontHave {
                        self.exchange.ledger().failed(refuser, Instant::now());
                    }
                    if refuser == peer {
                        return None;
                    }
                }
            }
        }
        None
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        for peer in self.exchange.wants.close(&self.cid) {
            let partner = self.exchange.partners().get(&peer).cloned();
            if let Some(partner) = partner {
                partner.ask_if_room(Entry::cancel(self.cid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitswap::content::raw_cid;

    fn candidates(count: usize) -> (Candidates, Vec<PeerId>) {
        let peers: Vec<PeerId> = (0..count).map(|_| PeerId::random()).collect();
        let candidates = Candidates {
            queue: peers.clone().into(),
            ..Candidates::default()
        };
        (candidates, peers)
    }

    #[test]
    fn who_says_to_have_it_is_asked_next() {
        let (mut candidates, peers) = candidates(3);
        candidates.prefer(peers[2]);
        let order: Vec<PeerId> = std::iter::from_fn(|| candidates.next()).collect();
        assert_eq!(order, [peers[2], peers[0], peers[1]]);
    }

    #[test]
    fn it_is_not_found_only_when_everybody_said_no() {
        let cid = raw_cid(b"data");
        let (mut all_deny, peers) = candidates(2);
        assert_eq!(all_deny.verdict(cid), FetchError::NoProviders { cid });
        all_deny.next();
        all_deny.refuse(peers[0], Reason::DontHave);
        all_deny.refuse(peers[1], Reason::DontHave);
        assert_eq!(all_deny.next(), None);
        assert_eq!(
            all_deny.verdict(cid),
            FetchError::NotFound { cid, asked: 2 }
        );

        let (mut one_silent, peers) = candidates(2);
        one_silent.next();
        one_silent.refuse(peers[1], Reason::DontHave);
        assert_eq!(
            one_silent.verdict(cid),
            FetchError::TimedOut { cid, asked: 2 }
        );
    }
}
