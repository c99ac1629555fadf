//! KV caches from peer to peer: one that keeps a session's cache gives rows of it to the stage that
//! takes over the same layers. The coordinator says who gives to whom, on both ends.

use std::sync::Arc;
use std::time::Instant;

use accel_p2p::PeerId;
use accel_p2p::wire::{CopyOrder, KvRows, PeerEndpoint, TensorFrame};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::engine::Engine;
use super::super::fence::MOST_ROWS;
use super::super::outlet::StepName;
use super::super::seat::{Cache, Seat, SeatState, Work, apply};
use super::StageServer;
use crate::peers::Peers;
use crate::session::table::SessionTable;

/// Orders that may wait; a coordinator has few under way.
const QUEUE: usize = 16;

/// The code of failures because rows could not be given or taken.
pub(in crate::stage) const COPY_FAILED: &str = "copy_failed";

/// Sends rows of caches, one order after the other.
pub(super) struct Giver {
    orders: mpsc::Sender<Gift>,
}

/// Rows that are to be sent.
struct Gift {
    engine: Arc<Engine>,
    seq: u64,
    layers: (u32, u32),
    coordinator: PeerId,
    order: CopyOrder,
}

impl Giver {
    /// Starts the task that sends them; it ends when this is dropped.
    pub(super) fn start(peers: Arc<dyn Peers>, sessions: Arc<SessionTable>) -> Self {
        let (orders, mut waiting) = mpsc::channel::<Gift>(QUEUE);
        actix::spawn(async move {
            while let Some(gift) = waiting.recv().await {
                gift.give(peers.as_ref(), &sessions).await;
            }
        });
        Self { orders }
    }
}

impl Gift {
    async fn give(self, peers: &dyn Peers, sessions: &SessionTable) {
        let to = self.order.to.clone();
        let given = match self.rows().await {
            Ok(frame) => peers.send(&to, frame).await,
            Err(reason) => return self.refuse(peers, sessions, &reason).await,
        };
        if let Err(failure) = given {
            self.refuse(peers, sessions, &failure.message).await;
        }
    }

    async fn rows(&self) -> Result<TensorFrame, String> {
        let CopyOrder {
            session,
            epoch,
            step,
            position,
            rows,
            ..
        } = self.order;
        let end = position.saturating_add(u64::from(rows));
        let positions = position as usize..end as usize;
        let data = self.engine.export(self.seq, positions).await?;
        let rows = KvRows {
            session,
            epoch,
            step,
            position,
            rows,
            layers: self.layers,
            numerics: self.engine.numerics().to_owned(),
        };
        let data = data.into();
        Ok(TensorFrame::Rows { rows, data })
    }

    async fn refuse(&self, peers: &dyn Peers, sessions: &SessionTable, reason: &str) {
        let CopyOrder {
            session,
            epoch,
            step,
            ..
        } = self.order;
        let frame = TensorFrame::failed(session, epoch, step, COPY_FAILED, reason);
        let own = peers.endpoint().peer;
        if self.coordinator == own {
            return sessions.deliver(own, frame).await;
        }
        let coordinator = PeerEndpoint {
            peer: self.coordinator,
            // The connection over which the order came is used for the answer.
            tensor_addrs: Vec::new(),
        };
        if let Err(failure) = peers.send(&coordinator, frame).await {
            tracing::debug!(peer = %self.coordinator, %failure, "it is not told");
        }
    }
}

impl StageServer {
    /// The coordinator has rows of a cache that is kept here sent to a stage.
    pub(super) fn copy(&mut self, from: PeerId, order: CopyOrder) {
        let CopyOrder {
            session,
            epoch,
            step,
            position,
            rows,
            ..
        } = order;
        if !self.seats.has(session) {
            return self.complaints.unknown_session(from, session, epoch, step);
        }
        // Whoever waits for its next plan gives under that; whoever computes goes on meanwhile, and gives
        // to one that gets ready under a newer epoch.
        let is_its = |seat: &Seat| match &seat.state {
            SeatState::Ready { .. } => seat.epoch == epoch && seat.coordinator == from,
            SeatState::Live(_) => seat.epoch < epoch && seat.coordinator == from,
            _ => false,
        };
        let Some(seat) = self.seats.find(session, is_its) else {
            return tracing::info!(%session, epoch, peer = %from, "rows of an epoch that is over are not given");
        };
        let (cache, length) = match &seat.state {
            SeatState::Ready { cache, length } => (cache, *length),
            SeatState::Live(live) => (&live.cache, live.fence.length()),
            _ => return,
        };
        let is_there = position.saturating_add(u64::from(rows)) <= length;
        if !is_there || u64::from(rows) > MOST_ROWS {
            return tracing::warn!(%session, epoch, peer = %from, "rows that are not to be had");
        }
        let Cache { engine, seq, .. } = cache.clone();
        let layers = seat.key.layers;
        seat.expires = Instant::now() + seat.lease;
        let gift = Gift {
            engine,
            seq,
            layers: (layers.first, layers.end),
            coordinator: from,
            order,
        };
        if self.giver.orders.try_send(gift).is_err() {
            tracing::warn!(%session, "too many rows wait to be sent");
        }
    }

    /// Rows for a stage, from the peer that the coordinator named.
    pub(super) fn take_rows(&mut self, from: PeerId, rows: KvRows, data: Bytes) {
        let Some(seat) = self.seats.of(rows.session, rows.epoch) else {
            return;
        };
        let layers = (seat.key.layers.first, seat.key.layers.end);
        let SeatState::Live(live) = &mut seat.state else {
            return;
        };
        if live.donor != Some(from) {
            return tracing::warn!(session = %rows.session, peer = %from, "rows from a peer that gives none");
        }
        if rows.layers != layers || rows.numerics != live.cache.engine.numerics() {
            let message = "the rows are of other layers, or of another numerics class";
            return live.outlet.refuse(rows.step, COPY_FAILED, message);
        }
        seat.expires = Instant::now() + seat.lease;
        let name = StepName {
            step: rows.step,
            position: rows.position,
            rows: u64::from(rows.rows),
            sample: false,
            until: 0,
        };
        apply(live, rows.epoch, name, Work::Rows(data));
    }
}
