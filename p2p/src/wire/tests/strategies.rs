//! Any message, within its limits.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use multihash_codetable::{Code, MultihashDigest};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;
use crate::membership::{Invite, SwarmKey};

pub fn keypair_of(seed: [u8; 32]) -> Keypair {
    Keypair::ed25519_from_bytes(seed).expect("any 32 bytes are a seed")
}

pub fn cid_of(content: &[u8]) -> Cid {
    Cid::new_v1(0x55, Code::Sha2_256.digest(content))
}

pub fn peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(|seed| keypair_of(seed).public().to_peer_id())
}

fn cid() -> impl Strategy<Value = Cid> {
    any::<[u8; 8]>().prop_map(|content| cid_of(&content))
}

fn multiaddr() -> impl Strategy<Value = Multiaddr> {
    any::<([u8; 4], u16)>().prop_map(|([a, b, c, d], port)| {
        format!("/ip4/{a}.{b}.{c}.{d}/tcp/{port}")
            .parse()
            .expect("it is well-formed")
    })
}

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ]
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId)
}

fn hardware() -> impl Strategy<Value = HardwareAdvert> {
    let gpu = (text(), text(), text()).prop_map(|(name, backend, kind)| GpuAdvert {
        name,
        backend,
        kind,
    });
    (any::<(u32, u64, u64)>(), text(), vec(gpu, 0..3)).prop_map(|(numbers, isa, gpus)| {
        let (cores, memory_bytes, memory_for_models) = numbers;
        HardwareAdvert {
            cores,
            isa,
            memory_bytes,
            memory_for_models,
            gpus,
        }
    })
}

fn model() -> impl Strategy<Value = ModelOffer> {
    (cid(), text(), any::<u32>(), any::<u32>()).prop_map(|(cid, name, here, missing)| {
        let bytes = u64::from(here) + u64::from(missing);
        ModelOffer {
            cid,
            name,
            bytes,
            complete: missing == 0,
            present_bytes: u64::from(here),
        }
    })
}

fn body() -> impl Strategy<Value = AdvertBody> {
    let places = (
        vec(multiaddr(), 0..3),
        vec(socket_addr(), 0..3),
        option::of(socket_addr()),
    );
    let texts = (text(), text(), 0.0f32..1000.0, option::of(any::<u32>()));
    let load = any::<(u32, u32, u64)>();
    let certificate = option::of(any::<[u8; 32]>());
    (
        places,
        texts,
        hardware(),
        load,
        vec(model(), 0..4),
        certificate,
    )
        .prop_map(
            |(places, texts, hardware, load, models, certificate)| AdvertBody {
                addrs: places.0,
                tensor_addrs: places.1,
                api: places.2,
                version: texts.0,
                hardware,
                measured_gb_s: texts.2,
                numerics: texts.1,
                max_layers: texts.3,
                draining: load.0 % 2 == 1,
                load: LoadAdvert {
                    sessions: load.0,
                    queued: load.1,
                    reserved_bytes: load.2,
                    toil_percent: load.1,
                },
                models,
                membership: certificate.map(certificate_for),
            },
        )
}

fn certificate_for(seed: [u8; 32]) -> crate::membership::Certificate {
    let key = SwarmKey::generate("home").expect("the name is good");
    let peer = keypair_of(seed).public().to_peer_id();
    key.issue_certificate(peer, 1_000, Duration::from_secs(60))
}

/// An advert, and the key of the peer that it is about.
pub fn advert() -> impl Strategy<Value = (Advert, Keypair)> {
    (
        any::<[u8; 32]>(),
        any::<(u64, u64, u32)>(),
        0..limit::ADVERT_TTL_MS,
        body(),
    )
        .prop_map(|(seed, (seq, started_unix_ms, issued), ttl_ms, body)| {
            let keypair = keypair_of(seed);
            let peer = keypair.public().to_peer_id();
            (
                Advert {
                    peer,
                    seq,
                    started_unix_ms,
                    issued_unix_ms: u64::from(issued),
                    ttl_ms,
                    body,
                },
                keypair,
            )
        })
}

fn layers() -> impl Strategy<Value = ((u32, u32), u32)> {
    (0..100u32, 1..100u32, 0..100u32)
        .prop_map(|(first, count, rest)| ((first, first + count), first + count + rest))
}

fn endpoint() -> impl Strategy<Value = PeerEndpoint> {
    (peer(), vec(socket_addr(), 0..3))
        .prop_map(|(peer, tensor_addrs)| PeerEndpoint { peer, tensor_addrs })
}

/// Stages that follow each other.
fn route() -> impl Strategy<Value = Vec<Hop>> {
    vec((endpoint(), 1..20u32), 1..5).prop_map(|stages| {
        let mut next = 0;
        let hop = |(endpoint, count): (PeerEndpoint, u32)| {
            let layers = (next, next + count);
            next += count;
            Hop {
                peer: endpoint.peer,
                tensor_addrs: endpoint.tensor_addrs,
                layers,
            }
        };
        stages.into_iter().map(hop).collect()
    })
}

fn sampling() -> impl Strategy<Value = SamplingWire> {
    (
        0.0f32..2.0,
        0.0f32..1.0,
        0.0f32..1.0,
        any::<u32>(),
        any::<u64>(),
        0..64u32,
    )
        .prop_map(
            |(temperature, top_p, min_p, top_k, seed, top_logprobs)| SamplingWire {
                temperature,
                top_p,
                min_p,
                top_k,
                seed,
                top_logprobs,
            },
        )
}

pub fn request() -> impl Strategy<Value = ControlRequest> {
    let numbers = any::<(u64, u64, u32, u64)>();
    let kept = any::<(bool, bool, bool, u64)>();
    let prepare = (session(), numbers, cid(), layers(), vec(peer(), 0..4), kept).prop_map(
        |(
            session,
            numbers,
            model,
            (layers, total_layers),
            providers,
            (cache, outputs, only, beside),
        )| {
            let (epoch, model_bytes, max_tokens, lease_ms) = numbers;
            ControlRequest::Prepare {
                session,
                epoch,
                model,
                model_bytes,
                layers,
                total_layers,
                max_tokens,
                lease_ms,
                providers,
                keep: Keep {
                    cache,
                    outputs,
                    only,
                    beside,
                },
            }
        },
    );
    let commit = (
        session(),
        any::<(u64, u64)>(),
        route(),
        endpoint(),
        sampling(),
        option::of(peer()),
    )
        .prop_map(|(session, numbers, route, coordinator, sampling, donor)| {
            let (epoch, length) = numbers;
            ControlRequest::Commit {
                session,
                epoch,
                route,
                coordinator,
                sampling,
                length,
                donor,
            }
        });
    let short = (session(), any::<(u64, u64)>(), 0..5).prop_map(|(session, numbers, which)| {
        let (epoch, lease_ms) = numbers;
        match which {
            3 => ControlRequest::Witness {
                session,
                epoch,
                nonce: [lease_ms as u8; 32],
            },
            4 => ControlRequest::Leave { session, epoch },
            0 => ControlRequest::Abort { session, epoch },
            1 => ControlRequest::Release { session, epoch },
            _ => ControlRequest::Renew {
                session,
                epoch,
                lease_ms,
            },
        }
    });
    let warm = (cid(), any::<u64>(), layers(), vec(peer(), 0..4)).prop_map(
        |(model, model_bytes, (layers, total_layers), providers)| ControlRequest::Warm {
            order: WarmOrder {
                model,
                model_bytes,
                layers,
                total_layers,
                providers,
            },
        },
    );
    prop_oneof![prepare, commit, short, warm]
}

fn held() -> impl Strategy<Value = HeldWire> {
    any::<(u64, u64, u64, u64)>().prop_map(|(cached, outputs, prefill_ns, plane_bytes_s)| {
        HeldWire {
            cached,
            outputs,
            prefill_ns,
            plane_bytes_s,
        }
    })
}

pub fn reply() -> impl Strategy<Value = ControlReply> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(done, total)| ControlReply::Progress { done, total }),
        (any::<(u64, u64, u64)>(), text(), held()).prop_map(|(numbers, numerics, held)| {
            let (bytes_fetched, blocks_fetched, weights_bytes) = numbers;
            ControlReply::Ready {
                bytes_fetched,
                blocks_fetched,
                weights_bytes,
                numerics,
                held,
            }
        }),
        Just(ControlReply::Done),
        (text(), text(), text()).prop_map(|(code, message, hint)| ControlReply::Refused {
            code,
            message,
            hint
        }),
    ]
}

pub fn invite() -> impl Strategy<Value = Invite> {
    (vec(multiaddr(), 0..4), any::<u32>(), any::<u32>()).prop_map(|(addrs, ttl, now)| {
        let key = SwarmKey::generate("home").expect("the name is good");
        key.issue_invite(addrs, Duration::from_millis(ttl.into()), now.into())
            .expect("it is within the limits")
    })
}

pub fn join_response() -> impl Strategy<Value = JoinResponse> {
    prop_oneof![
        (any::<[u8; 32]>(), vec(multiaddr(), 0..4)).prop_map(|(seed, addrs)| {
            JoinResponse::Welcome {
                certificate: certificate_for(seed),
                addrs,
            }
        }),
        (text(), text(), text()).prop_map(|(code, message, hint)| JoinResponse::Refused {
            code,
            message,
            hint
        }),
    ]
}

fn input() -> impl Strategy<Value = StepInput> {
    prop_oneof![
        vec(any::<u32>(), 1..300).prop_map(StepInput::Tokens),
        (1..5u32, 1..40usize, any::<u8>()).prop_map(|(rows, hidden, byte)| StepInput::Hidden {
            rows,
            data: Bytes::from(vec![byte; rows as usize * hidden * 4]),
        }),
    ]
}

pub fn frame() -> impl Strategy<Value = TensorFrame> {
    let place = || (session(), any::<(u64, u64, u64)>());
    let top = vec((any::<u32>(), -100.0f32..0.0), 0..limit::TOP_LOGPROBS);
    let step =
        (place(), any::<(bool, u32)>(), input()).prop_map(|(place, (sample, until), input)| {
            let (session, (epoch, step, position)) = place;
            TensorFrame::Step {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                input,
            }
        });
    let replay = (place(), 1..=u32::MAX, any::<u32>()).prop_map(|(place, rows, until)| {
        let (session, (epoch, step, position)) = place;
        TensorFrame::Replay {
            session,
            epoch,
            step,
            position,
            rows,
            until,
        }
    });
    let copy = (place(), 1..=u32::MAX, endpoint()).prop_map(|((session, numbers), rows, to)| {
        let (epoch, step, position) = numbers;
        TensorFrame::Copy(CopyOrder {
            session,
            epoch,
            step,
            position,
            rows,
            to,
        })
    });
    let rows = (place(), 1..=u32::MAX, any::<(u32, u32)>(), text()).prop_map(
        |((session, numbers), rows, layers, numerics)| {
            let (epoch, step, position) = numbers;
            let rows = KvRows {
                session,
                epoch,
                step,
                position,
                rows,
                layers,
                numerics,
            };
            let data = Bytes::from(vec![7; 1 + layers.0 as usize % 100]);
            TensorFrame::Rows { rows, data }
        },
    );
    let token =
        (place(), any::<u32>(), -100.0f32..0.0, top).prop_map(|(place, token, logprob, top)| {
            let (session, (epoch, step, position)) = place;
            TensorFrame::Token {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
            }
        });
    let applied = (place(), any::<u64>()).prop_map(|((session, numbers), length)| {
        let (epoch, step, _) = numbers;
        TensorFrame::Applied {
            session,
            epoch,
            step,
            length,
        }
    });
    let failed = (place(), text(), text()).prop_map(|((session, numbers), code, message)| {
        let (epoch, step, _) = numbers;
        TensorFrame::Failed {
            session,
            epoch,
            step,
            code,
            message,
        }
    });
    let (step, token) = (step.boxed(), token.boxed());
    let claimed = (
        prop_oneof![step.clone(), token.clone()],
        vec(claim(), 0..=limit::CLAIMS),
    );
    let claimed = claimed.prop_map(|(frame, claims)| match &frame {
        TensorFrame::Step {
            input: StepInput::Tokens(_),
            ..
        } => frame,
        _ => TensorFrame::Claimed {
            frame: Box::new(frame),
            claims,
        },
    });
    prop_oneof![step, replay, copy, rows, token, claimed, applied, failed]
}

fn claim() -> impl Strategy<Value = SignedClaim> {
    any::<([u8; 32], [u8; 32], u8)>().prop_map(|(input, output, byte)| SignedClaim {
        input,
        output,
        signature: [byte; 64],
    })
}

/// An advert with nothing special in it.
pub fn plain_advert(keypair: &Keypair) -> Advert {
    let body = AdvertBody {
        addrs: Vec::new(),
        tensor_addrs: Vec::new(),
        api: None,
        version: "0.1.0".into(),
        hardware: HardwareAdvert::default(),
        measured_gb_s: 10.0,
        numerics: "cpu-1".into(),
        max_layers: None,
        draining: false,
        load: LoadAdvert::default(),
        models: Vec::new(),
        membership: None,
    };
    let peer = keypair.public().to_peer_id();
    Advert {
        peer,
        seq: 1,
        started_unix_ms: 1,
        issued_unix_ms: 0,
        ttl_ms: 15_000,
        body,
    }
}
