//! What is asked of whom, and whose answer belongs to which fetch.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use libp2p::PeerId;
use tokio::sync::mpsc;

use super::message::Presence;

const ANSWER_QUEUE: usize = 64;
/// For how long a block may still come after it was asked for without counting as wrong.
const REMEMBER: Duration = Duration::from_secs(120);
/// Asked blocks remembered per peer.
const MAX_REMEMBERED: usize = 16 * 1024;

/// All open wants.
#[derive(Default)]
pub(super) struct Wants {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: HashMap<Cid, Open>,
    asked: HashMap<PeerId, HashMap<Cid, Instant>>,
}

/// A block that a fetch waits for.
struct Open {
    answers: mpsc::Sender<Answer>,
    /// Peers that were asked and have not answered finally.
    asked: HashMap<PeerId, Instant>,
}

/// What a peer said to a want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Here it is, verified.
    Block { data: Bytes },
    /// It has it.
    Have(PeerId),
    /// It has it not, or will not answer: it left, or sent something else.
    No(PeerId, Reason),
}

/// Why a peer is of no use for a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    DontHave,
    Lost,
    Wrong,
}

/// What a block that came in turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It was waited for; the peer took this long.
    Wanted(Duration),
    /// It was asked for once.
    Duplicate,
    /// Nobody asked this peer for it, though it was asked for others.
    Wrong,
}

impl Wants {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a want; there is one fetch per block.
    pub(super) fn open(&self, cid: Cid) -> mpsc::Receiver<Answer> {
        let (answers, received) = mpsc::channel(ANSWER_QUEUE);
        let open = Open {
            answers,
            asked: HashMap::new(),
        };
        self.state().open.insert(cid, open);
        received
    }

    /// Closes a want and says who was asked and has not answered.
    pub(super) fn close(&self, cid: &Cid) -> Vec<PeerId> {
        let closed = self.state().open.remove(cid);
        closed.map_or_else(Vec::new, |open| open.asked.into_keys().collect())
    }

    /// Notes that a peer is asked.
    pub(super) fn asked(&self, cid: Cid, peer: PeerId, now: Instant) {
        let mut state = self.state();
        if let Some(open) = state.open.get_mut(&cid) {
            open.asked.insert(peer, now);
        }
        let remembered = state.asked.entry(peer).or_default();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, asked| now.duration_since(*asked) < REMEMBER);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(cid, now);
        }
    }

    /// How many wants wait for a peer.
    pub(super) fn outstanding(&self, peer: &PeerId) -> usize {
        let state = self.state();
        let waiting = state.open.values();
        waiting.filter(|open| open.asked.contains_key(peer)).count()
    }

    /// A block came whose bytes amount to `cid` (`None`: to nothing that can be checked).
    pub(super) fn block(
        &self,
        peer: PeerId,
        cid: Option<Cid>,
        data: Bytes,
        now: Instant,
    ) -> Arrival {
        let mut state = self.state();
        if let Some(open) = cid.and_then(|cid| state.open.get_mut(&cid)) {
            let asked = open.asked.remove(&peer).unwrap_or(now);
            open.tell(Answer::Block { data });
            return Arrival::Wanted(now.duration_since(asked));
        }
        let was_asked = cid.is_some_and(|cid| {
            let asked = state.asked.get(&peer);
            asked.is_some_and(|asked| asked.contains_key(&cid))
        });
        let waits_for_peer = state
            .open
            .values()
            .any(|open| open.asked.contains_key(&peer));
        if was_asked || !waits_for_peer {
            return Arrival::Duplicate;
        }
        Arrival::Wrong
    }

    /// A peer sent a wrong block: nothing that waits for it can trust it to answer.
    pub(super) fn distrust(&self, peer: &PeerId) {
        self.state().refuse(peer, Reason::Wrong);
    }

    /// A peer said whether it has a block.
    pub(super) fn presence(&self, peer: PeerId, cid: &Cid, presence: Presence) {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(cid) else {
            return;
        };
        match presence {
            Presence::Have => open.tell(Answer::Have(peer)),
            Presence::DontHave => {
                if open.asked.remove(&peer).is_some() {
                    open.tell(Answer::No(peer, Reason::DontHave));
                }
            }
        }
    }

    /// A peer cannot be written to: what waits for it must look elsewhere.
    pub(super) fn unreachable(&self, peer: &PeerId) {
        self.state().refuse(peer, Reason::Lost);
    }

    /// A peer is gone.
    pub(super) fn peer_left(&self, peer: &PeerId) {
        let mut state = self.state();
        state.refuse(peer, Reason::Lost);
        state.asked.remove(peer);
    }
}

impl State {
    /// Tells every fetch that waits for the peer that it waits in vain.
    fn refuse(&mut self, peer: &PeerId, reason: Reason) {
        for open in self.open.values_mut() {
            if open.asked.remove(peer).is_some() {
                open.tell(Answer::No(*peer, reason));
            }
        }
    }
}

impl Open {
    fn tell(&self, answer: Answer) {
        // The fetch reads as fast as it can; if it cannot, its timeout takes care.
        if let Err(error) = self.answers.try_send(answer) {
            tracing::debug!(%error, "an answer to a want was dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitswap::content::raw_cid;

    fn block(data: &'static [u8]) -> (Cid, Bytes) {
        (raw_cid(data), Bytes::from_static(data))
    }

    #[test]
    fn a_wanted_block_goes_to_its_fetch_and_a_second_one_is_a_duplicate() {
        let (wants, peer, now) = (Wants::default(), PeerId::random(), Instant::now());
        let (cid, data) = block(b"data");
        let mut answers = wants.open(cid);
        wants.asked(cid, peer, now);
        let later = now + Duration::from_millis(7);
        let arrival = wants.block(peer, Some(cid), data.clone(), later);
        assert_eq!(arrival, Arrival::Wanted(Duration::from_millis(7)));
        assert_eq!(answers.try_recv(), Ok(Answer::Block { data: data.clone() }));
        assert_eq!(wants.close(&cid), []);
        assert_eq!(
            wants.block(peer, Some(cid), data, later),
            Arrival::Duplicate
        );
    }

    #[test]
    fn a_block_that_was_never_asked_for_fails_all_that_waits_for_its_sender() {
        let (wants, now) = (Wants::default(), Instant::now());
        let (liar, honest) = (PeerId::random(), PeerId::random());
        let (wanted, _) = block(b"wanted");
        let (other, data) = block(b"other");
        let mut answers = wants.open(wanted);
        wants.asked(wanted, liar, now);
        wants.asked(wanted, honest, now);
        for cid in [Some(other), None] {
            wants.asked(wanted, liar, now);
            assert_eq!(wants.block(liar, cid, data.clone(), now), Arrival::Wrong);
            wants.distrust(&liar);
            assert_eq!(answers.try_recv(), Ok(Answer::No(liar, Reason::Wrong)));
        }
        assert_eq!(wants.outstanding(&liar), 0);
        assert_eq!(wants.outstanding(&honest), 1);
    }

    #[test]
    fn an_unasked_block_from_a_peer_that_is_asked_nothing_harms_nobody() {
        let (wants, peer) = (Wants::default(), PeerId::random());
        let (cid, data) = block(b"data");
        let arrival = wants.block(peer, Some(cid), data, Instant::now());
        assert_eq!(arrival, Arrival::Duplicate);
    }

    #[test]
    fn a_peer_that_leaves_fails_what_waits_for_it() {
        let (wants, peer) = (Wants::default(), PeerId::random());
        let (cid, _) = block(b"data");
        let mut answers = wants.open(cid);
        wants.asked(cid, peer, Instant::now());
        wants.peer_left(&peer);
        assert_eq!(answers.try_recv(), Ok(Answer::No(peer, Reason::Lost)));
        assert_eq!(wants.close(&cid), []);
    }

    #[test]
    fn only_an_asked_peer_can_say_no() {
        let (wants, peer) = (Wants::default(), PeerId::random());
        let (cid, _) = block(b"data");
        let mut answers = wants.open(cid);
        wants.presence(peer, &cid, Presence::DontHave);
        assert!(answers.try_recv().is_err());
        wants.asked(cid, peer, Instant::now());
        wants.presence(peer, &cid, Presence::DontHave);
        assert_eq!(answers.try_recv(), Ok(Answer::No(peer, Reason::DontHave)));
    }
}
