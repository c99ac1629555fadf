//! Blocks by CID, over `/ipfs/bitswap/1.2.0` as all of IPFS speaks it.
//!
//! ```text
//! fetch ─▶ wants ─▶ partner ══ stream ══▶ inbound ─▶ queue ─▶ store
//!   ▲                                                  │
//!   └── verified blocks ◀─ inbound ◀══ stream ══ partner
//! ```
//!
//! Each side writes on one outbound stream per peer, kept and reopened when it dies, and accepts
//! as many inbound streams as the other side cares to open, because Kubo opens one per message.
//!
//! | File | Does |
//! |---|---|
//! | [`message`] | the protobuf message |
//! | [`content`] | CID and hash |
//! | [`frame`] | messages on a stream |
//! | [`fetch`] | one block: whom to ask, in which order, when to give up |
//! | [`wants`] | what is asked of whom, and whose answer belongs to which fetch |
//! | [`ledger`] | how well each peer serves, purely |
//! | [`partner`] | the outbound stream to one peer |
//! | [`serve`] | what one peer asks of us |
//! | [`inbound`] | what comes in |

mod content;
mod fetch;
mod frame;
mod inbound;
mod ledger;
mod message;
mod partner;
mod serve;
mod wants;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use libp2p::PeerId;
use libp2p_stream::IncomingStreams;

use crate::network::{Members, Streams, Tasks};
use fetch::Flights;
use ledger::Ledger;
use partner::Partner;
use wants::Wants;

/// Size limits of the protocol.
pub(crate) mod limits {
    /// A whole message; larger ones are refused. The same as Kubo's.
    pub(crate) const MESSAGE: usize = 4 * 1024 * 1024;
    /// One block. The same as Kubo's.
    pub(crate) const BLOCK: usize = 2 * 1024 * 1024;
    /// Wants, blocks or presences in one message.
    pub(crate) const ENTRIES: usize = 4096;
    /// A response is sent when it has grown to this.
    pub(crate) const RESPONSE: usize = 1024 * 1024;
}

/// Where the blocks come from that this node serves.
pub trait BlockStore: Send + Sync {
    /// The block, if it is here. May block: it is called on a thread for that.
    fn get(&self, cid: &Cid) -> io::Result<Option<Bytes>>;
    /// Whether the block is here.
    fn has(&self, cid: &Cid) -> io::Result<bool>;
}

/// Why a block was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody could be asked.
    #[error("no connected peer can be asked for block {cid}")]
    NoProviders {
        /// The block.
        cid: Cid,
    },
    /// All that were asked do not have it.
    #[error("none of the {asked} peers asked has block {cid}")]
    NotFound {
        /// The block.
        cid: Cid,
        /// How many peers were asked.
        asked: usize,
    },
    /// Not all that were asked answered, and none with the block.
    #[error("none of the {asked} peers asked sent block {cid} in time")]
    TimedOut {
        /// The block.
        cid: Cid,
        /// How many peers were asked.
        asked: usize,
    },
}

/// What went over bitswap since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeStats {
    /// Blocks that were wanted and verified.
    pub blocks_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Blocks served to others.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Blocks that nobody had asked their sender for: wrong ones.
    pub wrong_blocks: u64,
    /// Blocks that came a second time.
    pub duplicates: u64,
}

/// Client and server of the block exchange; clones share it.
#[derive(Clone)]
pub(crate) struct Bitswap {
    exchange: Arc<Exchange>,
}

/// What all parts share.
struct Exchange {
    streams: Streams,
    members: Arc<Members>,
    store: Arc<dyn BlockStore>,
    tasks: Tasks,
    wants: Wants,
    flights: Flights,
    ledger: Mutex<Ledger>,
    partners: Mutex<HashMap<PeerId, Partner>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    blocks_received: AtomicU64,
    bytes_received: AtomicU64,
    blocks_sent: AtomicU64,
    bytes_sent: AtomicU64,
    wrong_blocks: AtomicU64,
    duplicates: AtomicU64,
}

impl Bitswap {
    pub(crate) fn new(
        streams: Streams,
        members: Arc<Members>,
        store: Arc<dyn BlockStore>,
        tasks: Tasks,
    ) -> Self {
        let exchange = Exchange {
            streams,
            members,
            store,
            tasks,
            wants: Wants::default(),
            flights: Flights::default(),
            ledger: Mutex::default(),
            partners: Mutex::default(),
            counters: Counters::default(),
        };
        Self {
            exchange: Arc::new(exchange),
        }
    }

    /// Takes streams from peers for as long as the network runs.
    pub(crate) async fn serve(self, incoming: IncomingStreams) {
        inbound::serve(self.exchange, incoming).await;
    }

    /// Fetches one block from `providers`, or from `connected` members if none are given.
    pub(crate) async fn fetch(
        &self,
        cid: Cid,
        providers: &[PeerId],
        per_provider: Duration,
    ) -> Result<Bytes, FetchError> {
        fetch::fetch(&self.exchange, cid, providers, per_provider).await
    }

    /// Forgets a peer whose last connection closed; what was asked of it is asked elsewhere.
    pub(crate) fn peer_left(&self, peer: &PeerId) {
        self.exchange.partners().remove(peer);
        self.exchange.wants.peer_left(peer);
    }

    pub(crate) fn stats(&self) -> ExchangeStats {
        self.exchange.counters.snapshot()
    }
}

impl Exchange {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partners(&self) -> MutexGuard<'_, HashMap<PeerId, Partner>> {
        self.partners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to a peer; made on first use, gone with its connection.
    fn partner(self: &Arc<Self>, peer: PeerId) -> Partner {
        let mut partners = self.partners();
        let partner = partners
            .entry(peer)
            .or_insert_with(|| partner::spawn(self, peer));
        partner.clone()
    }
}

impl Counters {
    fn received(&self, bytes: usize) {
        self.blocks_received.fetch_add(1, Ordering::Relaxed);
        self.bytes_received
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        self.blocks_sent.fetch_add(1, Ordering::Relaxed);
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn duplicate(&self) {
        self.duplicates.fetch_add(1, Ordering::Relaxed);
    }

    fn wrong(&self) {
        self.wrong_blocks.fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(&self) -> ExchangeStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExchangeStats {
            blocks_received: read(&self.blocks_received),
            bytes_received: read(&self.bytes_received),
            blocks_sent: read(&self.blocks_sent),
            bytes_sent: read(&self.bytes_sent),
            wrong_blocks: read(&self.wrong_blocks),
            duplicates: read(&self.duplicates),
        }
    }
}
