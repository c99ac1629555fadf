//! Claims: what a stage of a witnessed session says it was given and what it made of it, signed.
//!
//! A stage keeps a hash chain over its input and one over its output, with a link for each position.
//! A claim names both links at one position. The rest of it follows from the plan and the step, and
//! does not travel; the signature covers all of it.

use cid::Cid;
use libp2p::PeerId;
use libp2p::identity::Keypair;

use super::advert::public_key_of;
use super::control::check_layers;
use super::{Message, SamplingWire, WireError, encode, limit, tag, wire_struct};

/// What a signature of a claim covers besides the claim itself: it means nothing anywhere else.
const SIGNING_DOMAIN: &[u8] = b"accel claim 1\0";

/// A hash over everything up to a position.
pub type Link = [u8; 32];

/// Everything that a claim says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Names the session, without telling its nonce.
    pub witness: Link,
    /// Root of the model.
    pub model: Cid,
    /// The numerics class in which it was computed.
    pub numerics: String,
    /// The layers, half open: `first..end`.
    pub layers: (u32, u32),
    /// Layers of the whole model.
    pub total_layers: u32,
    /// How many positions the links cover.
    pub position: u64,
    /// How tokens are drawn.
    pub sampling: SamplingWire,
    /// The link over the input.
    pub input: Link,
    /// The link over the output; of the last stage, the hash of what it drew.
    pub output: Link,
}

/// A claim as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedClaim {
    /// The link over the input.
    pub input: Link,
    /// The link over the output.
    pub output: Link,
    /// The stage's signature, over everything that the claim says.
    pub signature: [u8; 64],
}

wire_struct!(Claim {
    witness,
    model,
    numerics[limit::LABEL],
    layers,
    total_layers,
    position,
    sampling,
    input,
    output
});
wire_struct!(SignedClaim {
    input,
    output,
    signature
});

impl Message for Claim {
    const NAME: &'static str = "claim";
    const TAG: u8 = tag::CLAIM;
    const LIMIT: usize = limit::CLAIM;

    fn check(&self) -> Result<(), String> {
        check_layers(self.layers, self.total_layers)
    }
}

impl Claim {
    /// Signs the claim; none with a key that is not ed25519, or where it is malformed.
    pub fn sign(&self, keypair: &Keypair) -> Option<SignedClaim> {
        let signature = keypair.sign(&self.signed_bytes().ok()?).ok()?;
        Some(SignedClaim {
            input: self.input,
            output: self.output,
            signature: signature.try_into().ok()?,
        })
    }

    /// Whether the peer signed the claim.
    pub fn is_signed_by(&self, peer: &PeerId, signature: &[u8; 64]) -> bool {
        let (key, bytes) = (public_key_of(peer), self.signed_bytes());
        matches!((key, bytes), (Some(key), Ok(bytes)) if key.verify(&bytes, signature))
    }

    fn signed_bytes(&self) -> Result<Vec<u8>, WireError> {
        Ok([SIGNING_DOMAIN, &encode(self)?].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        Claim {
            witness: [1; 32],
            model: cid.parse().expect("a cid"),
            numerics: "cpu-1".into(),
            layers: (2, 4),
            total_layers: 6,
            position: 17,
            sampling: SamplingWire {
                temperature: 0.5,
                top_p: 1.0,
                min_p: 0.0,
                top_k: 0,
                seed: 7,
                top_logprobs: 0,
            },
            input: [2; 32],
            output: [3; 32],
        }
    }

    #[test]
    fn a_signature_holds_for_its_claim_and_its_signer_and_for_nothing_else() {
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let signed = claim().sign(&keypair).expect("an ed25519 key signs");
        assert!(claim().is_signed_by(&peer, &signed.signature));
        assert!(!claim().is_signed_by(&PeerId::random(), &signed.signature));
        let changes: [fn(&mut Claim); 9] = [
            |claim| claim.witness[0] ^= 1,
            |claim| claim.numerics.push('x'),
            |claim| claim.layers = (1, 4),
            |claim| claim.total_layers = 5,
            |claim| claim.position += 1,
            |claim| claim.sampling.seed += 1,
            |claim| claim.sampling.temperature = 0.25,
            |claim| claim.input[31] ^= 1,
            |claim| claim.output[31] ^= 1,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = claim();
            change(&mut changed);
            assert!(!changed.is_signed_by(&peer, &signed.signature), "{number}");
        }
        let mut impossible = claim();
        impossible.layers = (4, 4);
        assert_eq!(impossible.sign(&keypair), None);
    }
}
