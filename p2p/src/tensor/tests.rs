mod frames;
mod lives;
mod losses;
mod strangers;

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::membership::{SwarmKey, SwarmMembership};
use crate::wire::{SessionId, StepInput, limit};

/// When the certificates of these tests are issued and checked.
const NOW: u64 = 1_700_000_000_000;
/// Far beyond every limit of the plane: only a hang gets here.
const HANG: Duration = Duration::from_secs(60);

/// Admits whom it is told to, or whoever shows a certificate of the swarm.
enum Gate {
    Everybody,
    Only(PeerId),
    Members(SwarmMembership),
}

impl Admission for Gate {
    fn own_certificate(&self) -> Option<Certificate> {
        match self {
            Gate::Members(swarm) => swarm.certificate().cloned(),
            Gate::Everybody | Gate::Only(_) => None,
        }
    }

    fn admit(
        &self,
        peer: &PeerId,
        certificate: Option<&Certificate>,
    ) -> Result<(), CertificateError> {
        match self {
            Gate::Only(member) if member != peer => Err(CertificateError::Missing(*peer)),
            Gate::Everybody | Gate::Only(_) => Ok(()),
            Gate::Members(swarm) => swarm.admit(*peer, certificate, NOW),
        }
    }
}

/// A plane for tests: how long an attempt to connect takes is told by those that wait for it.
fn config(life: u64) -> PlaneConfig {
    PlaneConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        started_unix_ms: life,
        connect_timeout: CONNECT_TIMEOUT,
    }
}

struct Node {
    id: PeerId,
    plane: TensorPlane,
    frames: mpsc::Receiver<(PeerId, TensorFrame)>,
}

impl Node {
    fn start() -> Self {
        Self::start_as(&Keypair::generate_ed25519(), Gate::Everybody)
    }

    fn start_as(keypair: &Keypair, gate: Gate) -> Self {
        Self::start_with(keypair, &config(1), gate)
    }

    /// One of the lives of a peer.
    fn start_in(keypair: &Keypair, life: u64) -> Self {
        Self::start_with(keypair, &config(life), Gate::Everybody)
    }

    fn start_with(keypair: &Keypair, config: &PlaneConfig, gate: Gate) -> Self {
        let (plane, frames) = TensorPlane::bind(keypair, config, Arc::new(gate)).expect("port 0");
        Self {
            id: keypair.public().to_peer_id(),
            plane,
            frames,
        }
    }

    /// Stops the plane's thread, like a process that hangs, until what is returned is dropped.
    fn freeze(&self) -> std::sync::mpsc::SyncSender<()> {
        let (hold, held) = std::sync::mpsc::sync_channel(1);
        self.plane.shared.spawn(async move {
            let _ = held.recv();
        });
        hold
    }

    async fn sender_to(&self, other: &Node) -> TensorSender {
        let addrs = other.plane.local_addrs();
        self.plane
            .sender(other.id, &addrs)
            .await
            .expect("it listens")
    }

    async fn next(&mut self) -> (PeerId, TensorFrame) {
        timeout(HANG, self.frames.recv())
            .await
            .expect("it hangs")
            .expect("the plane runs")
    }
}

async fn next_loss(losses: &mut broadcast::Receiver<PeerLoss>) -> PeerLoss {
    timeout(HANG, losses.recv())
        .await
        .expect("it hangs")
        .expect("the plane runs")
}

fn step(step: u64, input: StepInput) -> TensorFrame {
    let session = SessionId([1; 16]);
    TensorFrame::Step {
        session,
        epoch: 1,
        step,
        position: step,
        sample: true,
        until: 0,
        input,
    }
}

fn tokens(number: u64) -> TensorFrame {
    step(number, StepInput::Tokens(vec![number as u32; 3]))
}

fn hidden(number: u64, bytes: usize) -> TensorFrame {
    let data = Bytes::from(vec![number as u8; bytes]);
    step(number, StepInput::Hidden { rows: 1, data })
}
