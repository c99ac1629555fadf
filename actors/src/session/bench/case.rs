//! What a witnessed session is about, as every lane has to know it.

use std::sync::Arc;

use accel_inference::{ModelShape, Tokenizer};
use accel_p2p::{Claim, PeerId, SignedClaim};

use crate::account::witness_of;
use crate::evidence::{Evidence, sampling_wire};
use crate::models::ModelRef;
use crate::session::machine::Opening;
use crate::session::record::OpeningRecord;
use crate::tolerance::FaultTolerance;

/// See the module.
pub(crate) struct Case {
    /// What the stages' accounts begin with.
    pub(crate) nonce: [u8; 32],
    pub(crate) model: ModelRef,
    pub(crate) shape: Arc<ModelShape>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) record: OpeningRecord,
    /// What the machine knows of it.
    pub(crate) opening: Opening,
}

impl Case {
    /// Whether it is computed once, and compared when it has ended.
    pub(super) fn is_audited(&self) -> bool {
        self.record.fault_tolerance != FaultTolerance::Critical
    }

    /// What all claims have in common.
    pub(super) fn claim(&self) -> Claim {
        Claim {
            witness: witness_of(&self.nonce),
            model: self.model.cid,
            numerics: self.record.numerics.clone(),
            layers: (0, self.shape.layers),
            total_layers: self.shape.layers,
            position: 0,
            sampling: sampling_wire(&self.record.sampling),
            input: [0; 32],
            output: [0; 32],
        }
    }

    pub(super) fn evidence(
        &self,
        peer: PeerId,
        claim: &Claim,
        signed: &SignedClaim,
        tokens: Vec<u32>,
    ) -> Evidence {
        let model = (self.record.name.as_str(), self.model.bytes);
        Evidence::new(peer, claim, signed, model, &self.nonce, tokens)
    }

    /// The request of a lane beside the first: the same, from what there is on, for nobody.
    pub(super) fn beside(&self, tokens: Vec<u32>, max_new: u64) -> OpeningRecord {
        OpeningRecord {
            prompt: tokens,
            max_new,
            stop: Vec::new(),
            form: None,
            fault_tolerance: FaultTolerance::Critical,
            ..self.record.clone()
        }
    }
}
