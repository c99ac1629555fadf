//! Evidence, for the API: what is kept, whether a piece of it is true, and whom to trust again.

use std::sync::Arc;

use accel_p2p::PeerId;
use accel_storage::StorageError;

use super::NodeHandle;
use crate::error::{ErrorKind, Failure};
use crate::evidence::{Evidence, Verdict};
use crate::stage::recompute;
use crate::views::{CheckView, EvidenceView};

impl NodeHandle {
    /// The evidence that this node has, the newest first.
    pub async fn evidence(&self) -> Result<Vec<EvidenceView>, Failure> {
        let quarantine = Arc::clone(&self.inner.placer.quarantine);
        let all = blocking(move || quarantine.evidence()).await?;
        Ok(all
            .iter()
            .map(|evidence| self.evidence_view(evidence))
            .collect())
    }

    /// One piece of evidence, whole.
    pub async fn evidence_show(&self, id: &str) -> Result<Evidence, Failure> {
        let quarantine = Arc::clone(&self.inner.placer.quarantine);
        let all = blocking(move || quarantine.evidence()).await?;
        let found = all.into_iter().find(|evidence| evidence.id() == id);
        found.ok_or_else(|| {
            let hint = "`accel evidence ls` shows what there is";
            let message = format!("there is no evidence {id}");
            Failure::new(ErrorKind::NotFound, "evidence_not_found", message, hint)
        })
    }

    /// Computes again what a peer is said to have got wrong. If it lied, it gets no more work from this
    /// node either.
    pub async fn evidence_check(&self, evidence: Evidence) -> Result<CheckView, Failure> {
        let charge = evidence.charge()?;
        let peer = charge.peer;
        let (input, output) = match charge.token_link() {
            // A first stage that was given something else needs no computing.
            Some(link) if charge.claim.layers.0 == 0 && link != charge.claim.input => {
                (link, charge.claim.output)
            }
            _ => recompute(&self.inner.stage_deps, charge.clone()).await?,
        };
        let verdict = charge.verdict(input, output);
        let id = evidence.id();
        if verdict == Verdict::Lied {
            self.inner.placer.quarantine.condemn(peer, evidence);
        }
        Ok(CheckView {
            id,
            peer_id: peer.to_string(),
            verdict: verdict.to_string(),
            quarantined: self.inner.placer.quarantine.holds(peer),
        })
    }

    /// Gives a peer work again; whether it got none before.
    pub async fn quarantine_lift(&self, peer: &str) -> Result<bool, Failure> {
        let peer: PeerId = peer.parse().map_err(|_| {
            let message = format!("`{peer}` is no peer id");
            let hint = "`accel peers` and `accel evidence ls` show peer ids";
            Failure::new(ErrorKind::BadRequest, "invalid_value", message, hint)
        })?;
        let quarantine = Arc::clone(&self.inner.placer.quarantine);
        blocking(move || quarantine.lift(peer)).await
    }

    fn evidence_view(&self, evidence: &Evidence) -> EvidenceView {
        let peer = evidence.peer_id.parse::<PeerId>().ok();
        let sentence = peer.and_then(|peer| self.inner.placer.quarantine.sentence(peer));
        EvidenceView {
            id: evidence.id(),
            peer_id: evidence.peer_id.clone(),
            model: evidence.name.clone(),
            first_layer: evidence.first_layer,
            last_layer: evidence.last_layer,
            tokens: evidence.tokens.len(),
            found_unix_ms: evidence.found_unix_ms,
            quarantined: sentence.is_some(),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Box<StorageError>> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Failure::internal(error.to_string()))?;
    done.map_err(|error| {
        let hint = "check the data directory and the space on its disk";
        Failure::new(ErrorKind::Internal, "storage", error.to_string(), hint)
    })
}
