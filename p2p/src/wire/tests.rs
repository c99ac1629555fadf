mod replica;
mod strategies;

use proptest::prelude::*;
use strategies::{advert, cid_of, frame, invite, join_response, keypair_of, reply, request};

use super::*;
use crate::membership::Invite;

/// Whatever is decoded from `bytes`, it must not panic.
fn decode_as_everything(bytes: &[u8]) {
    let _ = decode::<Advert>(bytes);
    let _ = decode::<Goodbye>(bytes);
    let _ = Gossip::open(bytes, 0);
    let _ = decode::<ControlRequest>(bytes);
    let _ = decode::<ControlReply>(bytes);
    let _ = decode::<JoinRequest>(bytes);
    let _ = decode::<JoinResponse>(bytes);
    let _ = decode::<ReplicaRequest>(bytes);
    let _ = decode::<ReplicaReply>(bytes);
    let _ = decode::<Invite>(bytes);
    let _ = crate::membership::Certificate::from_bytes(bytes);
    let _ = crate::membership::SwarmMembership::from_bytes(bytes);
    let _ = TensorFrame::from_parts(bytes, bytes::Bytes::new());
}

fn assert_round_trip<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let bytes = encode(message).expect("it is within the limits");
    assert_eq!(bytes.first(), Some(&M::TAG));
    assert_eq!(&decode::<M>(&bytes).expect("it was just encoded"), message);
}

fn abort() -> ControlRequest {
    ControlRequest::Abort {
        session: SessionId([7; 16]),
        epoch: 3,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn adverts_survive_the_wire((advert, keypair) in advert()) {
        assert_round_trip(&advert);
        let now = advert.issued_unix_ms;
        let gossip = Gossip::Advert(Box::new(advert));
        let sealed = gossip.seal(&keypair).expect("it is within the limits");
        prop_assert_eq!(Gossip::open(&sealed, now).expect("nobody changed it"), gossip);
    }

    #[test]
    fn control_requests_survive_the_wire(request in request()) {
        assert_round_trip(&request);
    }

    #[test]
    fn control_replies_survive_the_wire(reply in reply()) {
        assert_round_trip(&reply);
    }

    #[test]
    fn join_messages_survive_the_wire(invite in invite(), response in join_response()) {
        assert_round_trip(&JoinRequest { invite });
        assert_round_trip(&response);
    }

    #[test]
    fn tensor_frames_survive_the_wire(frame in frame()) {
        let (header, payload) = frame.clone().into_parts().expect("it is within the limits");
        let again = TensorFrame::from_parts(&header, payload).expect("it was just taken apart");
        prop_assert_eq!(again, frame);
    }

    #[test]
    fn a_changed_byte_of_an_advert_is_noticed(
        (advert, keypair) in advert(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let now = advert.issued_unix_ms;
        let sealed = Gossip::Advert(Box::new(advert)).seal(&keypair).expect("it fits");
        let mut changed = sealed;
        let at = at.index(changed.len());
        changed[at] ^= flip;
        prop_assert!(Gossip::open(&changed, now).is_err());
    }

    #[test]
    fn a_message_cut_short_is_refused(request in request(), at in any::<prop::sample::Index>()) {
        let bytes = encode(&request).expect("it fits");
        let cut = &bytes[..at.index(bytes.len())];
        let truncated = WireError::Truncated { message: ControlRequest::NAME };
        prop_assert_eq!(decode::<ControlRequest>(cut).expect_err("it is cut"), truncated);
    }

    #[test]
    fn damaged_messages_never_panic(
        request in request(), (advert, _) in advert(),
        at in any::<prop::sample::Index>(), junk in prop::collection::vec(any::<u8>(), 1..12),
    ) {
        for mut bytes in [encode(&request).expect("it fits"), encode(&advert).expect("it fits")] {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + junk.len());
            bytes.splice(at..end, junk.iter().copied());
            decode_as_everything(&bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        tag in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        decode_as_everything(&bytes);
        decode_as_everything(&[&[tag], bytes.as_slice()].concat());
    }
}

#[test]
fn an_unknown_message_is_refused_by_its_tag() {
    let mut bytes = encode(&abort()).expect("it fits");
    bytes[0] = 0xee;
    let error = decode::<ControlRequest>(&bytes).expect_err("no such tag");
    assert_eq!(
        error,
        WireError::UnknownTag {
            message: "control request",
            tag: 0xee
        }
    );
}

#[test]
fn an_unknown_kind_of_request_is_refused_by_its_tag() {
    let mut bytes = encode(&abort()).expect("it fits");
    bytes[1] = 99;
    let error = decode::<ControlRequest>(&bytes).expect_err("no such kind");
    assert_eq!(
        error,
        WireError::UnknownTag {
            message: "control request",
            tag: 99
        }
    );
}

#[test]
fn bytes_after_a_message_are_refused() {
    let mut bytes = encode(&abort()).expect("it fits");
    bytes.extend_from_slice(b"xyz");
    let error = decode::<ControlRequest>(&bytes).expect_err("it is too long");
    assert_eq!(
        error,
        WireError::Trailing {
            message: "control request",
            extra: 3
        }
    );
}

#[test]
fn a_message_over_its_limit_is_refused_before_it_is_read() {
    let bytes = vec![tag::CONTROL_REQUEST; limit::CONTROL_REQUEST + 1];
    let error = decode::<ControlRequest>(&bytes).expect_err("it is too long");
    assert!(
        matches!(
            error,
            WireError::TooLarge {
                limit: limit::CONTROL_REQUEST,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn lists_and_texts_over_their_limit_are_neither_sent_nor_accepted() {
    let reply = ControlReply::Refused {
        code: "x".repeat(limit::LABEL + 1),
        message: String::new(),
        hint: String::new(),
    };
    assert!(matches!(encode(&reply), Err(WireError::Malformed { .. })));

    // Tag, kind, then a text that says it has 2^60 bytes.
    let mut bytes = vec![tag::CONTROL_REPLY, 4, 253];
    bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
    let error = decode::<ControlReply>(&bytes).expect_err("it is over the limit");
    assert!(error.to_string().contains("is over 64"), "{error}");
}

#[test]
fn control_characters_reach_nobodys_terminal() {
    let reply = |message: &str| ControlReply::Refused {
        code: "busy".into(),
        message: message.into(),
        hint: String::new(),
    };
    assert!(encode(&reply("\u{1b}[2Jgone")).is_err());
    let mut bytes = encode(&reply("hello")).expect("it fits");
    let at = bytes
        .windows(5)
        .position(|window| window == b"hello")
        .expect("it is in there");
    bytes[at] = 0x1b;
    assert!(decode::<ControlReply>(&bytes).is_err());
    assert_eq!(clip("\u{1b}[2Jgone\r\n", 100), "[2Jgone\n");
}

#[test]
fn clipped_text_ends_at_a_character() {
    assert_eq!(clip("grün", 3), "gr");
    assert_eq!(clip("grün", 4), "grü");
    let refusal = ControlReply::refused(&"c".repeat(500), &"ü".repeat(5000), "");
    assert!(encode(&refusal).is_ok());
}

#[test]
fn layers_that_cannot_be_are_refused() {
    let prepare = |layers, total_layers| ControlRequest::Prepare {
        session: SessionId([1; 16]),
        epoch: 1,
        model: cid_of(b"model"),
        model_bytes: 10,
        layers,
        total_layers,
        max_tokens: 8,
        lease_ms: 1000,
        providers: Vec::new(),
        keep: Keep::default(),
    };
    assert!(encode(&prepare((0, 4), 4)).is_ok());
    for (layers, total) in [((3, 3), 4), ((3, 2), 4), ((0, 5), 4), ((0, 0), 0)] {
        assert!(
            encode(&prepare(layers, total)).is_err(),
            "{layers:?} of {total}"
        );
    }
}

#[test]
fn a_route_with_a_gap_is_refused() {
    let peer = keypair_of([1; 32]).public().to_peer_id();
    let hop = |layers| Hop {
        peer,
        tensor_addrs: Vec::new(),
        layers,
    };
    let commit = |route| ControlRequest::Commit {
        session: SessionId([1; 16]),
        epoch: 1,
        route,
        coordinator: PeerEndpoint {
            peer,
            tensor_addrs: Vec::new(),
        },
        sampling: SamplingWire {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            top_k: 0,
            seed: 1,
            top_logprobs: 0,
        },
        length: 0,
        donor: None,
    };
    assert!(encode(&commit(vec![hop((0, 4)), hop((4, 9))])).is_ok());
    assert!(encode(&commit(vec![])).is_err());
    assert!(encode(&commit(vec![hop((0, 4)), hop((5, 9))])).is_err());
    assert!(encode(&commit(vec![hop((0, 4)), hop((3, 9))])).is_err());
    assert!(encode(&commit(vec![hop((1, 4))])).is_err());
}

#[test]
fn a_payload_that_does_not_fit_its_header_is_refused() {
    let step = |input| TensorFrame::Step {
        session: SessionId([1; 16]),
        epoch: 1,
        step: 1,
        position: 0,
        sample: true,
        until: 0,
        input,
    };
    let hidden = |rows, size| {
        step(StepInput::Hidden {
            rows,
            data: vec![0; size].into(),
        })
    };
    assert!(hidden(2, 16).into_parts().is_ok());
    assert!(hidden(2, 12).into_parts().is_err(), "half a row");
    assert!(hidden(0, 16).into_parts().is_err(), "no rows");
    assert!(hidden(2, 0).into_parts().is_err(), "no data");
    assert!(
        hidden(u32::MAX, 16).into_parts().is_err(),
        "more rows than data"
    );
    assert!(
        step(StepInput::Tokens(Vec::new())).into_parts().is_err(),
        "no tokens"
    );
    let many = vec![0; limit::STEP_TOKENS + 1];
    assert!(
        step(StepInput::Tokens(many)).into_parts().is_err(),
        "too many tokens"
    );
    let replay = |rows| TensorFrame::Replay {
        session: SessionId([1; 16]),
        epoch: 1,
        step: 1,
        position: 0,
        rows,
        until: 1,
    };
    assert!(replay(1).into_parts().is_ok());
    assert!(replay(0).into_parts().is_err(), "nothing to send again");
    let (header, _) = replay(3).into_parts().expect("it is sound");
    let stuffed = TensorFrame::from_parts(&header, vec![0; 4].into());
    assert!(stuffed.is_err(), "rows that nobody asked for");
}

#[test]
fn floats_keep_every_bit() {
    let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::INFINITY, -3.25e-20];
    let StepInput::Hidden { data, .. } = StepInput::hidden(1, &values) else {
        panic!("hidden rows were asked for");
    };
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&step::floats(&data)), bits(&values));
}

#[test]
fn session_ids_are_32_hexadecimal_digits() {
    let id = SessionId([0xab; 16]);
    assert_eq!(id.to_string(), "ab".repeat(16));
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "ab", &"ab".repeat(17), &"zz".repeat(16)] {
        assert_eq!(
            bad.parse::<SessionId>(),
            Err(session::SessionIdError),
            "{bad}"
        );
    }
    assert_ne!(SessionId::random(), SessionId::random());
}

mod gossip {
    use super::*;

    fn goodbye() -> (Gossip, libp2p::identity::Keypair) {
        let keypair = keypair_of([9; 32]);
        let peer = keypair.public().to_peer_id();
        (
            Gossip::Goodbye(Goodbye {
                peer,
                seq: 5,
                issued_unix_ms: 1_000_000,
            }),
            keypair,
        )
    }

    #[test]
    fn a_goodbye_is_heard() {
        let (goodbye, keypair) = goodbye();
        let sealed = goodbye.seal(&keypair).expect("it fits");
        assert_eq!(Gossip::open(&sealed, 1_000_500), Ok(goodbye));
    }

    #[test]
    fn nobody_speaks_for_another_peer() {
        let (goodbye, _) = goodbye();
        let sealed = goodbye.seal(&keypair_of([8; 32])).expect("it fits");
        let refused = AdvertError::BadSignature(goodbye.peer());
        assert_eq!(Gossip::open(&sealed, 1_000_500), Err(refused));
    }

    #[test]
    fn old_gossip_is_refused_and_says_how_old_it_is() {
        let (goodbye, keypair) = goodbye();
        let sealed = goodbye.seal(&keypair).expect("it fits");
        let late = 1_000_000 + limit::CLOCK_TOLERANCE_MS + 1;
        let expected = AdvertError::Expired {
            peer: goodbye.peer(),
            since_ms: limit::CLOCK_TOLERANCE_MS + 1,
        };
        assert_eq!(Gossip::open(&sealed, late), Err(expected));
    }

    #[test]
    fn gossip_from_the_future_is_refused() {
        let (goodbye, keypair) = goodbye();
        let sealed = goodbye.seal(&keypair).expect("it fits");
        let error = Gossip::open(&sealed, 900_000).expect_err("its clock is far ahead");
        assert!(
            matches!(
                error,
                AdvertError::FromTheFuture {
                    ahead_ms: 100_000,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn keys_that_do_not_show_in_the_peer_id_are_refused() {
        let keypair = keypair_of([9; 32]);
        let peer = libp2p::PeerId::from_multihash(multihash_codetable::MultihashDigest::digest(
            &multihash_codetable::Code::Sha2_256,
            &keypair.public().encode_protobuf(),
        ))
        .expect("hashes are peer ids");
        let goodbye = Gossip::Goodbye(Goodbye {
            peer,
            seq: 1,
            issued_unix_ms: 0,
        });
        let sealed = goodbye.seal(&keypair).expect("it fits");
        assert_eq!(Gossip::open(&sealed, 0), Err(AdvertError::UnknownKey(peer)));
    }

    #[test]
    fn numbers_that_would_mislead_the_planner_are_refused() {
        let keypair = keypair_of([9; 32]);
        let mut advert = strategies::plain_advert(&keypair);
        assert!(encode(&advert).is_ok());
        for speed in [f32::NAN, f32::INFINITY, -1.0] {
            advert.body.measured_gb_s = speed;
            assert!(encode(&advert).is_err(), "{speed}");
        }
    }
}

mod streams {
    use futures::io::Cursor;

    use super::*;

    async fn written(message: &ControlRequest) -> Vec<u8> {
        let mut stream = Cursor::new(Vec::new());
        write_message(&mut stream, message)
            .await
            .expect("memory takes everything");
        stream.into_inner()
    }

    #[tokio::test]
    async fn messages_follow_each_other_on_a_stream() {
        let mut bytes = written(&abort()).await;
        bytes.extend(written(&abort()).await);
        let mut stream = Cursor::new(bytes);
        for _ in 0..2 {
            let read: Option<ControlRequest> = read_message(&mut stream).await.expect("it is good");
            assert_eq!(read, Some(abort()));
        }
        let end: Option<ControlRequest> = read_message(&mut stream).await.expect("it just ends");
        assert_eq!(end, None);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error() {
        let bytes = written(&abort()).await;
        for cut in 1..bytes.len() {
            let mut stream = Cursor::new(&bytes[..cut]);
            let read = read_message::<ControlRequest>(&mut stream).await;
            assert!(read.is_err(), "cut after {cut} bytes");
        }
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_anything_is_read() {
        let mut stream = Cursor::new(u32::MAX.to_le_bytes());
        let error = read_message::<ControlRequest>(&mut stream)
            .await
            .expect_err("4 GiB");
        let FrameError::Wire(WireError::TooLarge { size, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(size, u32::MAX as usize);
    }
}
