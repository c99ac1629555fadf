//! Control: a coordinator places stages on peers, in two phases, and keeps or ends them.
//!
//! One libp2p stream per call: one [`ControlRequest`], then any number of
//! [`ControlReply::Progress`], then exactly one final reply. A peer refuses whatever comes under
//! an epoch older than the newest it knows for the session: that is the fence.

use std::net::SocketAddr;

use cid::Cid;
use libp2p::PeerId;

use super::{Message, SessionId, WarmOrder, clip, limit, tag, wire_enum, wire_struct};

/// What a coordinator asks of a stage's peer.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlRequest {
    /// Phase one: reserve memory, fetch and verify the layers, load them. The reservation ends by
    /// itself after `lease_ms` without commit or renewal.
    Prepare {
        /// Whose stage this is.
        session: SessionId,
        /// The plan it belongs to.
        epoch: u64,
        /// Root of the model.
        model: Cid,
        /// Size of the model, to be held against the root node.
        model_bytes: u64,
        /// Layers to serve, half open: `first..end`.
        layers: (u32, u32),
        /// Layers of the whole model; first and last stages do more than their layers.
        total_layers: u32,
        /// Positions to reserve in the KV cache.
        max_tokens: u32,
        /// How long the reservation holds.
        lease_ms: u64,
        /// Who is known to have blocks of the model; best first.
        providers: Vec<PeerId>,
        /// What the peer may keep of the session, from epochs before and for those that follow.
        keep: Keep,
    },
    /// Phase two: the stage goes live under the epoch.
    Commit {
        /// Whose stage this is.
        session: SessionId,
        /// The plan that goes live.
        epoch: u64,
        /// All stages, in the order of their layers.
        route: Vec<Hop>,
        /// Where the last stage sends tokens, and all send failures.
        coordinator: PeerEndpoint,
        /// How the last stage samples.
        sampling: SamplingWire,
        /// Positions of the KV cache that stay; what is behind them is forgotten.
        length: u64,
        /// Who may send rows of its KV cache to this stage.
        donor: Option<PeerId>,
    },
    /// The plan is given up; what `Prepare` reserved is released, but for a KV cache that may be
    /// kept.
    Abort {
        /// Whose stage this was.
        session: SessionId,
        /// The plan that is given up.
        epoch: u64,
    },
    /// The session is over; everything of it is released, up to this epoch.
    Release {
        /// The session that is over.
        session: SessionId,
        /// Its newest epoch: an older coordinator may not release a newer one's stages.
        epoch: u64,
    },
    /// What was prepared under just this epoch is given up; what the peer does under others goes on.
    Leave {
        /// Whose stage this was.
        session: SessionId,
        /// The plan that is given up.
        epoch: u64,
    },
    /// The coordinator lives: the lease starts anew.
    Renew {
        /// Whose stage this is.
        session: SessionId,
        /// The plan that is live.
        epoch: u64,
        /// How long the reservation holds from now.
        lease_ms: u64,
    },
    /// Between the phases: the stage is to keep account of what it is given and makes of it, and to
    /// sign that. No rows of anybody's KV cache go into such a stage.
    Witness {
        /// Whose stage this is.
        session: SessionId,
        /// The plan that is prepared.
        epoch: u64,
        /// What the account begins with, so that nobody else can tell a prompt from its hashes.
        nonce: [u8; 32],
    },
    /// Of no session: layers that a stand-in may need soon. Answered at once; what becomes of it
    /// is the peer's own business.
    Warm {
        /// Which layers.
        order: WarmOrder,
    },
}

/// Answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq)]
pub enum ControlReply {
    /// `Prepare` is under way; more replies follow.
    Progress {
        /// Bytes of the layers that are here.
        done: u64,
        /// Bytes of the layers.
        total: u64,
    },
    /// `Prepare` is complete: the stage can be committed.
    Ready {
        /// Bytes fetched from other peers for it.
        bytes_fetched: u64,
        /// Blocks fetched from other peers for it.
        blocks_fetched: u64,
        /// Memory that the weights take.
        weights_bytes: u64,
        /// Numerics class of the loaded stage.
        numerics: String,
        /// What it still has of the session, and how fast it gets at more.
        held: HeldWire,
    },
    /// The request is carried out.
    Done,
    /// The request is refused; nothing of it stays behind.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// What to do about it.
        hint: String,
    },
}

/// What a peer may keep of a session beyond a plan. All of it goes with the session's end, and
/// with the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// The KV cache of the same layers, if there is one from an older epoch; and again when this
    /// plan is given up.
    pub cache: bool,
    /// The outputs of the stage, as far as there is memory, so that it can send them again to a
    /// next stage that is built anew.
    pub outputs: bool,
    /// Nothing else: where no cache is kept, nothing is prepared. For peers that only give theirs.
    pub only: bool,
    /// The epoch under which this peer serves the session now and goes on meanwhile, with other layers
    /// perhaps; 0 is none, and then nothing of older epochs stays.
    pub beside: u64,
}

/// What a stage that is ready has of its session already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldWire {
    /// Positions in its KV cache.
    pub cached: u64,
    /// Positions from the first on whose outputs it can send again.
    pub outputs: u64,
    /// Nanoseconds that its layers take for a position of a prompt; 0 when that was not measured.
    pub prefill_ns: u64,
    /// Bytes per second at which large frames came to it over the tensor plane; 0 when none came.
    pub plane_bytes_s: u64,
}

/// One stage of a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Hop {
    /// Who serves it.
    pub peer: PeerId,
    /// Where its tensor plane listens.
    pub tensor_addrs: Vec<SocketAddr>,
    /// Its layers, half open: `first..end`.
    pub layers: (u32, u32),
}

/// A peer and where its tensor plane listens.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerEndpoint {
    /// Who it is.
    pub peer: PeerId,
    /// Where its tensor plane listens.
    pub tensor_addrs: Vec<SocketAddr>,
}

/// How tokens are drawn; with the seed and the position, all that the sampler needs.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingWire {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the likeliest tokens up to this mass; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the likeliest's probability; 0 keeps all.
    pub min_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Randomness of position n is a function of (seed, n).
    pub seed: u64,
    /// How many alternatives to report with each token.
    pub top_logprobs: u32,
}

// Of the requests 1 and 2 and the reply 2 are retired: `Prepare`, `Commit` and `Ready` before
// stages kept anything; and 11, `Prepare` before a peer could have two stages of a session.
wire_enum!(ControlRequest {
    13 => Prepare {
        session, epoch, model, model_bytes, layers, total_layers, max_tokens, lease_ms,
        providers[limit::PROVIDERS], keep
    },
    12 => Commit { session, epoch, route[limit::HOPS], coordinator, sampling, length, donor },
    3 => Abort { session, epoch },
    4 => Release { session, epoch },
    5 => Renew { session, epoch, lease_ms },
    6 => Warm { order },
    7 => Witness { session, epoch, nonce },
    8 => Leave { session, epoch },
});
wire_enum!(ControlReply {
    1 => Progress { done, total },
    12 => Ready { bytes_fetched, blocks_fetched, weights_bytes, numerics[limit::LABEL], held },
    3 => Done {},
    4 => Refused { code[limit::LABEL], message[limit::MESSAGE], hint[limit::MESSAGE] },
});
wire_struct!(Keep {
    cache,
    outputs,
    only,
    beside
});
wire_struct!(HeldWire {
    cached,
    outputs,
    prefill_ns,
    plane_bytes_s
});
wire_struct!(Hop { peer, tensor_addrs[limit::ADDRS], layers });
wire_struct!(PeerEndpoint { peer, tensor_addrs[limit::ADDRS] });
wire_struct!(SamplingWire {
    temperature,
    top_p,
    min_p,
    top_k,
    seed,
    top_logprobs
});

impl ControlRequest {
    /// The session it is about, if it is about one.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::Prepare { session, .. }
            | Self::Commit { session, .. }
            | Self::Abort { session, .. }
            | Self::Release { session, .. }
            | Self::Leave { session, .. }
            | Self::Witness { session, .. }
            | Self::Renew { session, .. } => Some(*session),
            Self::Warm { .. } => None,
        }
    }

    /// The epoch it speaks under, if it is about a session.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Prepare { epoch, .. }
            | Self::Commit { epoch, .. }
            | Self::Abort { epoch, .. }
            | Self::Release { epoch, .. }
            | Self::Leave { epoch, .. }
            | Self::Witness { epoch, .. }
            | Self::Renew { epoch, .. } => Some(*epoch),
            Self::Warm { .. } => None,
        }
    }
}

impl ControlReply {
    /// A refusal whose texts are cut to what may travel.
    pub fn refused(code: &str, message: &str, hint: &str) -> Self {
        Self::Refused {
            code: clip(code, limit::LABEL),
            message: clip(message, limit::MESSAGE),
            hint: clip(hint, limit::MESSAGE),
        }
    }

    /// Whether no further reply follows.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Progress { .. })
    }
}

impl Message for ControlRequest {
    const NAME: &'static str = "control request";
    const TAG: u8 = tag::CONTROL_REQUEST;
    const LIMIT: usize = limit::CONTROL_REQUEST;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Prepare {
                layers,
                total_layers,
                ..
            } => check_layers(*layers, *total_layers),
            Self::Commit {
                route, sampling, ..
            } => {
                check_route(route)?;
                sampling.check()
            }
            Self::Warm { order } => order.check(),
            Self::Abort { .. }
            | Self::Release { .. }
            | Self::Leave { .. }
            | Self::Renew { .. }
            | Self::Witness { .. } => Ok(()),
        }
    }
}

impl Message for ControlReply {
    const NAME: &'static str = "control reply";
    const TAG: u8 = tag::CONTROL_REPLY;
    const LIMIT: usize = limit::CONTROL_REPLY;
}

pub(super) fn check_layers((first, end): (u32, u32), total: u32) -> Result<(), String> {
    if first < end && end <= total {
        return Ok(());
    }
    Err(format!("layers {first}..{end} of {total}"))
}

/// A route covers the layers from 0 on, without gap or overlap.
fn check_route(route: &[Hop]) -> Result<(), String> {
    if route.is_empty() {
        return Err("the route is empty".into());
    }
    let mut next = 0;
    for hop in route {
        let (first, end) = hop.layers;
        if first != next || end <= first {
            return Err(format!(
                "the route has layers {first}..{end} where {next} should begin"
            ));
        }
        next = end;
    }
    Ok(())
}

impl SamplingWire {
    fn check(&self) -> Result<(), String> {
        let rules = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
        ];
        for (name, value, range) in rules {
            if !range.contains(&value) {
                return Err(format!("{name} of {value}"));
            }
        }
        if self.top_logprobs as usize > limit::TOP_LOGPROBS {
            return Err(format!(
                "{} alternatives are over {}",
                self.top_logprobs,
                limit::TOP_LOGPROBS
            ));
        }
        Ok(())
    }
}
