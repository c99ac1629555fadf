//! The first words on a connection: each side shows its certificate before any frame is taken.
//!
//! The dialler opens a bidirectional stream and sends its [`Greeting`]; the other end checks it
//! and answers with its own, or closes the connection. So whoever gets an answer knows that it was
//! let in, and two members need not have heard of each other before.

use libp2p::PeerId;
use quinn::{Connection, RecvStream, SendStream};

use super::{Admission, TensorError, endpoint};
use crate::membership::Certificate;
use crate::wire::{Message, decode, encode, limit, tag, wire_struct};

/// What one end of a connection shows the other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Greeting {
    /// Proof of membership, in a private swarm.
    pub certificate: Option<Certificate>,
    /// Which life of the node it is: when it was started, by its own clock.
    pub started_unix_ms: u64,
}

wire_struct!(Greeting {
    certificate,
    started_unix_ms
});

impl Message for Greeting {
    const NAME: &'static str = "tensor greeting";
    const TAG: u8 = tag::TENSOR_GREETING;
    const LIMIT: usize = limit::TENSOR_GREETING;
}

/// Greets whom we dialled in our `life`, and learns its; an error when one end does not admit the
/// other.
pub(super) async fn offer(
    connection: &Connection,
    peer: PeerId,
    admission: &dyn Admission,
    life: u64,
) -> Result<u64, TensorError> {
    let answer = async {
        let (mut sending, mut receiving) = connection.open_bi().await.ok()?;
        say(&mut sending, admission, life).await?;
        hear(&mut receiving).await
    };
    let answer = answer.await.ok_or_else(|| broken(connection, peer))?;
    judge(connection, peer, admission, &answer)
}

/// Answers who dialled us, and learns in which life; an error when one end does not admit the
/// other.
pub(super) async fn answer(
    connection: &Connection,
    peer: PeerId,
    admission: &dyn Admission,
    life: u64,
) -> Result<u64, TensorError> {
    let offer = async {
        let (sending, mut receiving) = connection.accept_bi().await.ok()?;
        Some((sending, hear(&mut receiving).await?))
    };
    let (mut sending, offer) = offer.await.ok_or_else(|| broken(connection, peer))?;
    let theirs = judge(connection, peer, admission, &offer)?;
    let said = say(&mut sending, admission, life).await;
    said.map(|()| theirs)
        .ok_or_else(|| broken(connection, peer))
}

async fn say(stream: &mut SendStream, admission: &dyn Admission, life: u64) -> Option<()> {
    let greeting = Greeting {
        certificate: admission.own_certificate(),
        started_unix_ms: life,
    };
    let greeting = encode(&greeting).ok()?;
    stream.write_all(&greeting).await.ok()?;
    stream.finish().ok()
}

async fn hear(stream: &mut RecvStream) -> Option<Vec<u8>> {
    stream.read_to_end(limit::TENSOR_GREETING).await.ok()
}

/// Decides on what the peer showed; closes the connection if that is not enough.
fn judge(
    connection: &Connection,
    peer: PeerId,
    admission: &dyn Admission,
    greeting: &[u8],
) -> Result<u64, TensorError> {
    let reason = match decode::<Greeting>(greeting) {
        Ok(greeting) => match admission.admit(&peer, greeting.certificate.as_ref()) {
            Ok(()) => return Ok(greeting.started_unix_ms),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    connection.close(endpoint::NOT_A_MEMBER, b"not a member of this swarm");
    Err(TensorError::NotAMember { peer, reason })
}

fn broken(connection: &Connection, peer: PeerId) -> TensorError {
    match connection.close_reason() {
        Some(error) => endpoint::loss(peer, &error),
        None => {
            connection.close(endpoint::BAD_FRAME, b"bad greeting");
            let reason = "it did not greet".to_owned();
            TensorError::Lost { peer, reason }
        }
    }
}
