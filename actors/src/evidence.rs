//! Evidence that a peer lied: what it signed, and all that it takes to compute the same. Whoever has
//! the model can tell by it that the peer was given what is right and made something else of it, and
//! needs to believe nobody. It holds the prompt, and is shown to nobody by itself.

use std::fmt;

use accel_inference::{LayerRange, SamplingParams};
use accel_p2p::wire::{SamplingWire, limit};
use accel_p2p::{Claim, Link, PeerId, SignedClaim, unix_ms};
use cid::Cid;
use serde::{Deserialize, Serialize};

use crate::account::{Chain, witness_of};
use crate::error::{ErrorKind, Failure};

/// The form of evidence.
const VERSION: u32 = 1;
/// Positions that evidence may have: no context is longer.
const LONGEST: usize = 1 << 22;

/// See the module. Hashes and keys are hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Form of the evidence.
    pub version: u32,
    /// Who lied.
    pub peer_id: String,
    /// The model's CID.
    pub model: String,
    /// Size of the model's file.
    pub model_bytes: u64,
    /// What the model is called.
    pub name: String,
    /// The numerics class in which it was computed.
    pub numerics: String,
    /// The first layer that the peer computed.
    pub first_layer: u32,
    /// The last one.
    pub last_layer: u32,
    /// Layers of the whole model.
    pub total_layers: u32,
    /// How tokens were drawn.
    pub sampling: Sampling,
    /// What the hashes begin with.
    pub nonce: String,
    /// Everything that was computed, prompt and answer.
    pub tokens: Vec<u32>,
    /// What the peer was given, as it signed.
    pub input: String,
    /// What it made of that, as it signed.
    pub output: String,
    /// Its signature.
    pub signature: String,
    /// When it was found out.
    pub found_unix_ms: u64,
}

/// How tokens were drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
    seed: u64,
    top_logprobs: u32,
}

/// What is wrong with evidence, before anything is computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no evidence: {0}")]
pub struct EvidenceError(pub(crate) &'static str);

/// Evidence whose parts fit each other, and that the peer did sign.
#[derive(Debug, Clone)]
pub(crate) struct Charge {
    pub(crate) peer: PeerId,
    pub(crate) claim: Claim,
    pub(crate) model_bytes: u64,
    pub(crate) nonce: [u8; 32],
    pub(crate) tokens: Vec<u32>,
}

/// What came of computing it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The peer was given what is right, and made something else of it.
    Lied,
    /// The peer made of it what everybody does.
    Truthful,
    /// The peer was given something else: whoever it had that from may have lied.
    Misled,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lied => "confirmed",
            Self::Truthful => "refuted",
            Self::Misled => "not_proven",
        })
    }
}

impl Evidence {
    /// Of what a peer claimed about so many tokens.
    pub(crate) fn new(
        peer: PeerId,
        claim: &Claim,
        signed: &SignedClaim,
        (name, model_bytes): (&str, u64),
        nonce: &[u8; 32],
        tokens: Vec<u32>,
    ) -> Self {
        let (first, end) = claim.layers;
        Self {
            version: VERSION,
            peer_id: peer.to_string(),
            model: claim.model.to_string(),
            model_bytes,
            name: name.to_owned(),
            numerics: claim.numerics.clone(),
            first_layer: first,
            last_layer: end.saturating_sub(1),
            total_layers: claim.total_layers,
            sampling: Sampling::of(&claim.sampling),
            nonce: hex::encode(nonce),
            tokens,
            input: hex::encode(signed.input),
            output: hex::encode(signed.output),
            signature: hex::encode(signed.signature),
            found_unix_ms: unix_ms(),
        }
    }

    /// Names it: the same for everybody who has it.
    pub fn id(&self) -> String {
        let hash = blake3::hash(self.signature.as_bytes());
        hex::encode(hash.as_bytes().get(..8).unwrap_or_default())
    }

    /// As it is written.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("evidence has nothing that JSON cannot hold")
    }

    /// Reads it back; what it says is not checked.
    pub fn read(bytes: &[u8]) -> Result<Self, EvidenceError> {
        serde_json::from_slice(bytes)
            .map_err(|_| EvidenceError("it is not of the form of evidence"))
    }

    /// What can be seen without computing anything: its parts are possible, and the peer has signed it.
    pub(crate) fn charge(&self) -> Result<Charge, EvidenceError> {
        if self.version != VERSION {
            return Err(EvidenceError("another version of accel wrote it"));
        }
        if self.tokens.is_empty() || self.tokens.len() > LONGEST {
            return Err(EvidenceError("it has no tokens, or too many"));
        }
        if self.numerics.len() > limit::LABEL {
            return Err(EvidenceError("its numerics class is too long"));
        }
        let peer = self
            .peer_id
            .parse()
            .map_err(|_| EvidenceError("its peer id is malformed"))?;
        let model = Cid::try_from(self.model.as_str())
            .map_err(|_| EvidenceError("its CID is malformed"))?;
        let end = self
            .last_layer
            .checked_add(1)
            .ok_or(EvidenceError("its layers are impossible"))?;
        let nonce = bytes::<32>(&self.nonce)?;
        let signature = bytes::<64>(&self.signature)?;
        let claim = Claim {
            witness: witness_of(&nonce),
            model,
            numerics: self.numerics.clone(),
            layers: (self.first_layer, end),
            total_layers: self.total_layers,
            position: self.tokens.len() as u64,
            sampling: self.sampling.wire(),
            input: bytes(&self.input)?,
            output: bytes(&self.output)?,
        };
        if !claim.is_signed_by(&peer, &signature) {
            return Err(EvidenceError(
                "the peer has not signed it, or it was changed since",
            ));
        }
        Ok(Charge {
            peer,
            claim,
            model_bytes: self.model_bytes,
            nonce,
            tokens: self.tokens.clone(),
        })
    }
}

fn bytes<const N: usize>(text: &str) -> Result<[u8; N], EvidenceError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| EvidenceError("a hash or a key is malformed"))?;
    Ok(bytes)
}

impl Charge {
    /// The layers that the peer computed.
    pub(crate) fn layers(&self) -> LayerRange {
        LayerRange::new(self.claim.layers.0, self.claim.layers.1)
    }

    /// The link over the tokens: what a first stage is given.
    pub(crate) fn token_link(&self) -> Option<Link> {
        let mut chain = Chain::new(&self.nonce, 0);
        chain.extend_tokens(&self.tokens);
        chain.at(self.tokens.len() as u64)
    }

    /// What follows from the links that this node has computed.
    pub(crate) fn verdict(&self, input: Link, output: Link) -> Verdict {
        match (self.claim.input == input, self.claim.output == output) {
            (false, _) => Verdict::Misled,
            (true, true) => Verdict::Truthful,
            (true, false) => Verdict::Lied,
        }
    }
}

impl Sampling {
    fn of(wire: &SamplingWire) -> Self {
        Self {
            temperature: wire.temperature,
            top_p: wire.top_p,
            min_p: wire.min_p,
            top_k: wire.top_k,
            seed: wire.seed,
            top_logprobs: wire.top_logprobs,
        }
    }

    fn wire(&self) -> SamplingWire {
        SamplingWire {
            temperature: self.temperature,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: self.top_k,
            seed: self.seed,
            top_logprobs: self.top_logprobs,
        }
    }
}

/// How tokens are drawn, as the wire has it.
pub(crate) fn sampling_wire(params: &SamplingParams) -> SamplingWire {
    SamplingWire {
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        top_k: params.top_k,
        seed: params.seed,
        top_logprobs: params.top_logprobs,
    }
}

impl From<EvidenceError> for Failure {
    fn from(error: EvidenceError) -> Self {
        let hint = "give a file that `accel evidence show` wrote, as it was";
        Self::new(
            ErrorKind::BadRequest,
            "bad_evidence",
            error.to_string(),
            hint,
        )
    }
}

#[cfg(test)]
mod tests {
    use accel_p2p::Keypair;

    use super::*;

    fn evidence(keypair: &Keypair) -> Evidence {
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        let nonce = [5; 32];
        let claim = Claim {
            witness: witness_of(&nonce),
            model: cid.parse().expect("a cid"),
            numerics: "cpu-1".into(),
            layers: (2, 4),
            total_layers: 6,
            position: 3,
            sampling: sampling_wire(&SamplingParams::default()),
            input: [2; 32],
            output: [3; 32],
        };
        let signed = claim.sign(keypair).expect("an ed25519 key signs");
        let peer = keypair.public().to_peer_id();
        Evidence::new(peer, &claim, &signed, ("small", 7), &nonce, vec![1, 2, 3])
    }

    #[test]
    fn evidence_that_was_changed_is_none() {
        let keypair = Keypair::generate_ed25519();
        let evidence = evidence(&keypair);
        let read = Evidence::read(&evidence.to_bytes()).expect("it is what was written");
        assert_eq!(read, evidence);
        let charge = read.charge().expect("the peer has signed it");
        assert_eq!(charge.peer, keypair.public().to_peer_id());
        assert_eq!(charge.layers(), LayerRange::new(2, 4));
        let changes: [fn(&mut Evidence); 15] = [
            |e| e.version = 2,
            |e| e.peer_id = PeerId::random().to_string(),
            |e| e.peer_id.clear(),
            |e| e.model.push('x'),
            |e| e.numerics = "cpu-2".into(),
            |e| e.first_layer = 1,
            |e| e.last_layer = u32::MAX,
            |e| e.total_layers = 7,
            |e| e.sampling.seed += 1,
            |e| e.nonce = hex::encode([6; 32]),
            |e| e.tokens.push(4),
            |e| e.tokens.clear(),
            |e| e.input = hex::encode([9; 32]),
            |e| e.output = hex::encode([9; 31]),
            |e| e.signature = hex::encode([9; 64]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = evidence.clone();
            change(&mut changed);
            assert!(changed.charge().is_err(), "change {number}");
        }
        assert!(Evidence::read(b"{}").is_err());
    }

    #[test]
    fn only_who_was_given_what_is_right_and_made_something_else_of_it_lied() {
        let charge = evidence(&Keypair::generate_ed25519())
            .charge()
            .expect("it is signed");
        assert_eq!(charge.verdict([2; 32], [4; 32]), Verdict::Lied);
        assert_eq!(charge.verdict([2; 32], [3; 32]), Verdict::Truthful);
        assert_eq!(charge.verdict([1; 32], [4; 32]), Verdict::Misled);
        assert_eq!(charge.verdict([1; 32], [3; 32]), Verdict::Misled);
    }
}
