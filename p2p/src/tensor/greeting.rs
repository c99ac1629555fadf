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
}

wire_struct!(Greeting { certificate });

impl Message for Greeting {
    const NAME: &'static str = "tensor greeting";
    const TAG: u8 = tag::TENSOR_GREETING;
    const LIMIT: usize = limit::TENSOR_GREETING;
}

/// Greets whom we dialled; an error when one end does not admit the other.
pub(super) async fn offer(
    connection: &Connection,
    peer: PeerId,
    admission: &dyn Admission,
) -> Result<(), TensorError> {
    let answer = async {
        let (mut sending, mut receiving) = connection.open_bi().await.ok()?;
        say(&mut sending, admission).await?;
        hear(&mut receiving).await
    };
    let answer = answer.await.ok_or_else(|| broken(connection, peer))?;
    judge(connection, peer, admission, &answer)
}

/// Answers who dialled us; an error when one end does not admit the other.
pub(super) async fn answer(
    connection: &Connection,
    peer: PeerId,
    admission: &dyn Admission,
) -> Result<(), TensorError> {
    let offer = async {
        let (sending, mut receiving) = connection.accept_bi().await.ok()?;
        Some((sending, hear(&mut receiving).await?))
    };
    let (mut sending, offer) = offer.await.ok_or_else(|| broken(connection, peer))?;
    judge(connection, peer, admission, &offer)?;
    let said = say(&mut sending, admission).await;
    said.ok_or_else(|| broken(connection, peer))
}

async fn say(stream: &mut SendStream, admission: &dyn Admission) -> Option<()> {
    let certificate = admission.own_certificate();
    let greeting = encode(&Greeting { certificate }).ok()?;
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
) -> Result<(), TensorError> {
    let reason = match decode::<Greeting>(greeting) {
        Ok(greeting) => match admission.admit(&peer, greeting.certificate.as_ref()) {
            Ok(()) => return Ok(()),
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
