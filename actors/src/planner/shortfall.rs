//! Why a model fits nowhere, with the numbers that a person needs to change that.

use std::fmt;

use accel_inference::KvFormat;
use accel_p2p::PeerId;
use thiserror::Error;

use super::cost::Costs;
use super::{Class, PeerFacts, PlanRequest, human_bytes, split};
use crate::error::ErrorKind;

/// Why no placement exists.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// There is not enough memory, all peers of a numerics class together.
    #[error(
        "the model needs {} with {tokens} tokens of context, the peers give {}: {} are missing ({})",
        human_bytes(*needed), human_bytes(*available), human_bytes(*missing), list(peers)
    )]
    TooLittleMemory {
        /// Weights and KV caches.
        needed: u64,
        /// What the peers of the class give.
        available: u64,
        /// What is missing; where the sum would do but no cut fits, a layer's worth.
        missing: u64,
        /// Tokens planned for.
        tokens: u32,
        /// What each peer gives.
        peers: Vec<PeerShortfall>,
    },
    /// There is memory enough, but the users' limits on layers forbid it.
    #[error(
        "the model has {layers} layers, but the limits of the peers allow no placement ({})",
        list(peers)
    )]
    LayerLimits {
        /// Layers of the model.
        layers: u32,
        /// What each peer gives.
        peers: Vec<PeerShortfall>,
    },
    /// It would fit, but only with peers whose results are not comparable.
    #[error(
        "the model fits only over peers of several numerics classes, which are never mixed ({})",
        list(peers)
    )]
    MixedNumerics {
        /// What each peer gives.
        peers: Vec<PeerShortfall>,
    },
    /// There is a route, and no second one beside it.
    #[error(
        "fault_tolerance `critical` computes everything twice, on different peers, and no {stages} \
         other peers can take the stages of a second route"
    )]
    TooFewPeers {
        /// Stages of a route.
        stages: usize,
    },
    /// The model has no layers.
    #[error("the model has no layers")]
    EmptyModel,
}

/// What one peer gives, in an error.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerShortfall {
    /// Who.
    pub peer: PeerId,
    /// Memory for models.
    pub memory_bytes: u64,
    /// Limit on layers.
    pub max_layers: Option<u32>,
    /// Numerics class.
    pub numerics: String,
}

impl fmt::Display for PeerShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.peer.to_string();
        let tail = id.len().saturating_sub(6);
        let short = id.get(tail..).unwrap_or(&id);
        write!(f, "…{short}: {}", human_bytes(self.memory_bytes))?;
        if let Some(most) = self.max_layers {
            write!(f, ", at most {most} layers")?;
        }
        write!(f, ", {}", self.numerics)
    }
}

fn list(peers: &[PeerShortfall]) -> String {
    let shown: Vec<String> = peers.iter().map(PeerShortfall::to_string).collect();
    shown.join("; ")
}

impl PlanError {
    /// How a client must react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::EmptyModel => ErrorKind::BadRequest,
            _ => ErrorKind::Unavailable,
        }
    }

    /// For programs, stable.
    pub fn code(&self) -> &str {
        match self {
            Self::TooLittleMemory { .. } => "insufficient_memory",
            Self::LayerLimits { .. } => "layer_limits",
            Self::MixedNumerics { .. } => "mixed_numerics",
            Self::TooFewPeers { .. } => "too_few_peers",
            Self::EmptyModel => "empty_model",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::TooLittleMemory { missing, .. } => format!(
                "join a node that gives {} or more, raise --memory, or ask for fewer tokens \
                 (--kv q8 holds nearly twice as many)",
                human_bytes(*missing)
            ),
            Self::LayerLimits { .. } => {
                "raise --max-layers on a node, or join another node".to_owned()
            }
            Self::MixedNumerics { .. } => {
                "join a node of the same class as the strongest one, or start all with the same --kv"
                    .to_owned()
            }
            Self::TooFewPeers { .. } => {
                "start more nodes of the same numerics class, or nodes that take more layers, or ask \
                 for `high`"
                    .to_owned()
            }
            Self::EmptyModel => "choose another model".to_owned(),
        }
    }
}

pub(super) fn explain(request: &PlanRequest<'_>, classes: &[Class]) -> PlanError {
    let layers = request.shape.layers;
    if layers == 0 {
        return PlanError::EmptyModel;
    }
    let fits = |costs: &Costs, peers: &[PeerFacts]| split::choose(costs, peers).is_some();
    let everyone: Vec<PeerFacts> = classes
        .iter()
        .flat_map(|class| class.peers.clone())
        .collect();
    let peers = everyone.iter().map(shortfall).collect();
    if classes
        .iter()
        .any(|class| fits(&class.costs, &unlimited(&class.peers)))
    {
        return PlanError::LayerLimits { layers, peers };
    }
    // If all were of the one class.
    if classes.iter().any(|class| fits(&class.costs, &everyone)) {
        return PlanError::MixedNumerics { peers };
    }
    too_little_memory(request, classes, peers)
}

fn unlimited(peers: &[PeerFacts]) -> Vec<PeerFacts> {
    let lifted = |peer: &PeerFacts| PeerFacts {
        max_layers: None,
        ..peer.clone()
    };
    peers.iter().map(lifted).collect()
}

/// Tells of the class that misses least.
fn too_little_memory(
    request: &PlanRequest<'_>,
    classes: &[Class],
    peers: Vec<PeerShortfall>,
) -> PlanError {
    let sums = classes.iter().map(|class| {
        let memory = class.peers.iter().map(|peer| peer.memory_bytes);
        let needed = class.costs.memory(class.costs.whole());
        (needed, memory.fold(0, u64::saturating_add))
    });
    let closest = sums.min_by_key(|(needed, available)| needed.saturating_sub(*available));
    let (needed, available) = closest.unwrap_or_else(|| {
        let costs = Costs::new(request.shape, request.tokens, KvFormat::default());
        (costs.memory(costs.whole()), 0)
    });
    let a_layer = needed / u64::from(request.shape.layers.max(1));
    PlanError::TooLittleMemory {
        needed,
        available,
        missing: needed.saturating_sub(available).max(a_layer),
        tokens: request.tokens,
        peers,
    }
}

fn shortfall(peer: &PeerFacts) -> PeerShortfall {
    PeerShortfall {
        peer: peer.peer,
        memory_bytes: peer.memory_bytes,
        max_layers: peer.max_layers,
        numerics: peer.numerics.clone(),
    }
}
