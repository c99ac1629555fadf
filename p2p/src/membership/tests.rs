use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use super::*;

const NOW: u64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;

fn key(name: &str) -> SwarmKey {
    SwarmKey::generate(name).expect("the name is good")
}

fn addr() -> Multiaddr {
    "/ip4/127.0.0.1/tcp/4001"
        .parse()
        .expect("it is well-formed")
}

fn holder(key: &SwarmKey) -> SwarmMembership {
    SwarmMembership::from_key(key, PeerId::random(), NOW)
}

mod key_files {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let key = key("home");
        let again: SwarmKey = key.to_string().parse().expect("it was just written");
        assert_eq!(again, key);
        assert_eq!(again.swarm_id(), key.swarm_id());
    }

    #[test]
    fn comments_blank_lines_and_windows_line_ends_mean_nothing() {
        let key = key("home");
        let text = key.to_string().replace('\n', "\r\n\r\n# a note\r\n");
        assert_eq!(text.parse(), Ok(key));
    }

    #[test]
    fn two_swarms_of_one_name_are_different() {
        assert_ne!(key("home").swarm_id(), key("home").swarm_id());
    }

    #[test]
    fn names_that_would_break_the_file_are_refused() {
        for name in ["", " home", "ho\nme", &"x".repeat(500)] {
            assert_eq!(
                SwarmKey::generate(name),
                Err(KeyFileProblem::BadName),
                "{name:?}"
            );
        }
        assert!(SwarmKey::generate("Großmutters Küche").is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let good = key("home").to_string();
        let cases: [(&str, &str, usize, KeyFileProblem); 9] = [
            (
                "accel-swarm-key 1",
                "/key/swarm/psk/1.0.0/",
                1,
                KeyFileProblem::NotAKeyFile,
            ),
            (
                "key 1",
                "key 7",
                1,
                KeyFileProblem::UnknownVersion("7".into()),
            ),
            ("name: home", "name home", 3, KeyFileProblem::NotAField),
            (
                "name: home",
                "nam: home",
                3,
                KeyFileProblem::UnknownField("nam".into()),
            ),
            (
                "name: home",
                "name: home\nname: home",
                4,
                KeyFileProblem::Repeated("name"),
            ),
            ("name: home", "", 6, KeyFileProblem::Missing("name")),
            ("name: home", "name:", 3, KeyFileProblem::BadName),
            (
                "psk: ",
                "psk: x",
                4,
                KeyFileProblem::BadHex {
                    field: "psk",
                    digits: 64,
                },
            ),
            ("name: home", "name: hone", 6, KeyFileProblem::BadChecksum),
        ];
        for (find, replace, line, problem) in cases {
            let error = good
                .replacen(find, replace, 1)
                .parse::<SwarmKey>()
                .expect_err(replace);
            assert_eq!(error, KeyFileError { line, problem }, "{find} -> {replace}");
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        let error = "nonsense"
            .parse::<SwarmKey>()
            .expect_err("it is no key file");
        let text = error.to_string();
        assert!(text.starts_with("line 1 of the swarm key"), "{text}");
        assert!(text.contains("accel swarm init"), "{text}");
    }

    #[test]
    fn every_lost_digit_is_noticed() {
        let good = key("home").to_string();
        for (at, _) in good.char_indices().filter(|(_, c)| c.is_ascii_hexdigit()) {
            let mut bad = good.clone();
            bad.remove(at);
            let comment = bad.lines().count() == good.lines().count()
                && bad
                    .lines()
                    .zip(good.lines())
                    .any(|(a, b)| a != b && b.starts_with('#'));
            assert!(
                comment || bad.parse::<SwarmKey>().is_err(),
                "without character {at}"
            );
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let key = key("home");
        let shown = format!("{key:?} {:?}", holder(&key));
        for line in key
            .to_string()
            .lines()
            .filter(|line| line.starts_with(['p', 'a']))
        {
            let secret = line.rsplit(' ').next().expect("every line has a last word");
            assert!(secret.len() < 64 || !shown.contains(secret), "{line}");
        }
    }
}

mod certificates {
    use super::*;

    #[test]
    fn a_member_is_admitted_until_its_certificate_expires() {
        let (key, peer) = (key("home"), PeerId::random());
        let certificate = key.issue_certificate(peer, NOW, HOUR);
        let swarm = holder(&key);
        assert_eq!(
            swarm.admit(peer, Some(&certificate), NOW + HOUR_MS - 1),
            Ok(())
        );
        let expired = CertificateError::Expired {
            peer,
            since: Duration::from_millis(500),
        };
        assert_eq!(
            swarm.admit(peer, Some(&certificate), NOW + HOUR_MS + 500),
            Err(expired)
        );
    }

    #[test]
    fn nobody_gets_in_without_a_certificate() {
        let peer = PeerId::random();
        let refused = CertificateError::Missing(peer);
        assert_eq!(holder(&key("home")).admit(peer, None, NOW), Err(refused));
    }

    #[test]
    fn nobody_gets_in_with_the_certificate_of_another_peer() {
        let (key, peer, thief) = (key("home"), PeerId::random(), PeerId::random());
        let certificate = key.issue_certificate(peer, NOW, HOUR);
        let refused = CertificateError::WrongPeer {
            expected: thief,
            found: Box::new(peer),
        };
        assert_eq!(
            holder(&key).admit(thief, Some(&certificate), NOW),
            Err(refused)
        );
    }

    #[test]
    fn nobody_gets_in_with_the_certificate_of_another_swarm() {
        let (key, other, peer) = (key("home"), key("home"), PeerId::random());
        let certificate = other.issue_certificate(peer, NOW, HOUR);
        let refused = CertificateError::WrongSwarm {
            expected: key.swarm_id(),
            found: other.swarm_id(),
        };
        assert_eq!(
            holder(&key).admit(peer, Some(&certificate), NOW),
            Err(refused)
        );
    }

    #[test]
    fn a_certificate_that_was_changed_is_refused() {
        let (key, peer) = (key("home"), PeerId::random());
        let certificate = key.issue_certificate(peer, NOW, HOUR);
        let longer = Certificate {
            expires_unix_ms: u64::MAX,
            ..certificate.clone()
        };
        let earlier = Certificate {
            issued_unix_ms: 0,
            ..certificate.clone()
        };
        let mut signature = certificate.signature;
        signature[10] ^= 1;
        let resigned = Certificate {
            signature,
            ..certificate
        };
        for changed in [longer, earlier, resigned] {
            let refused = holder(&key).admit(peer, Some(&changed), NOW);
            assert_eq!(refused, Err(CertificateError::BadSignature(peer)));
        }
    }

    #[test]
    fn a_certificate_from_the_future_is_refused() {
        let (key, peer) = (key("home"), PeerId::random());
        let certificate = key.issue_certificate(peer, NOW + HOUR_MS, HOUR);
        let refused = CertificateError::NotYetValid { peer, ahead: HOUR };
        assert_eq!(
            holder(&key).admit(peer, Some(&certificate), NOW),
            Err(refused)
        );
    }

    #[test]
    fn a_certificate_survives_its_bytes() {
        let certificate = key("home").issue_certificate(PeerId::random(), NOW, HOUR);
        assert_eq!(
            Certificate::from_bytes(&certificate.to_bytes()),
            Ok(certificate)
        );
    }
}

mod invites {
    use super::*;

    fn invite(key: &SwarmKey) -> Invite {
        key.issue_invite(vec![addr()], HOUR, NOW)
            .expect("it is within the limits")
    }

    #[test]
    fn an_invite_lets_a_newcomer_in() {
        let (key, newcomer) = (key("home"), PeerId::random());
        let text = invite(&key).to_string();
        assert!(text.starts_with("accel-invite:"), "{text}");

        let received: Invite = format!("  {text}\n")
            .parse()
            .expect("blanks around it are fine");
        assert_eq!(received.addrs, [addr()]);
        assert_eq!(received.verify(NOW), Ok(()));
        let mut joining = SwarmMembership::from_invite(&received);
        assert_eq!(joining.psk(), Some(key.psk()));
        assert_eq!(joining.swarm_id(), key.swarm_id());
        assert!(joining.certificate().is_none());

        let certificate = holder(&key)
            .accept_invite(&received, newcomer, NOW)
            .expect("it is good");
        joining
            .accept_certificate(certificate, newcomer, NOW)
            .expect("it is ours");
        assert_eq!(
            holder(&key).admit(newcomer, joining.certificate(), NOW),
            Ok(())
        );
    }

    #[test]
    fn an_expired_invite_says_since_when() {
        let (key, newcomer) = (key("home"), PeerId::random());
        let invite = invite(&key);
        let expired = InviteError::Expired {
            since: Duration::from_secs(5),
        };
        assert_eq!(invite.verify(NOW + HOUR_MS + 5000), Err(expired.clone()));
        let refused = holder(&key).accept_invite(&invite, newcomer, NOW + HOUR_MS + 5000);
        assert_eq!(refused, Err(expired));
    }

    #[test]
    fn an_invite_to_another_swarm_is_refused() {
        let (key, other) = (key("home"), key("office"));
        let refused = holder(&key).accept_invite(&invite(&other), PeerId::random(), NOW);
        let expected = InviteError::WrongSwarm {
            expected: "home".into(),
            found: "office".into(),
        };
        assert_eq!(refused, Err(expected));
    }

    #[test]
    fn an_invite_that_was_changed_is_refused() {
        let key = key("home");
        let mut longer = invite(&key);
        longer.expires_unix_ms = u64::MAX;
        let mut elsewhere = invite(&key);
        elsewhere.addrs = vec!["/ip4/6.6.6.6/tcp/6".parse().expect("it is well-formed")];
        for changed in [longer, elsewhere] {
            assert_eq!(changed.verify(NOW), Err(InviteError::BadSignature));
            let text = changed.to_string();
            let received: Invite = text.parse().expect("its checksum is good");
            let refused = holder(&key).accept_invite(&received, PeerId::random(), NOW);
            assert_eq!(refused, Err(InviteError::BadSignature));
        }
    }

    #[test]
    fn a_text_that_is_no_invite_is_malformed() {
        let text = invite(&key("home")).to_string();
        let shorter = &text[..text.len() - 7];
        let typo = text.replacen(':', ":AAAA", 1);
        let long = format!("accel-invite:{}", "A".repeat(100_000));
        let others = [
            "",
            "hello",
            "accel-invite:",
            "accel-invite:!!",
            "/ip4/1.2.3.4/tcp/1",
        ];
        for bad in others.into_iter().chain([shorter, &typo, &long]) {
            let error = bad.parse::<Invite>().expect_err(bad);
            assert!(
                matches!(error, InviteError::Malformed { .. }),
                "{bad}: {error}"
            );
            assert!(error.to_string().contains("accel swarm invite"), "{error}");
        }
    }

    #[test]
    fn only_who_holds_the_key_can_invite_and_let_in() {
        let key = key("home");
        let member = SwarmMembership::from_invite(&invite(&key));
        let public = SwarmMembership::public("everybody");
        for without in [member, public] {
            assert!(!without.holds_authority());
            let refused = without.create_invite(vec![addr()], HOUR, NOW);
            assert_eq!(refused, Err(InviteError::NoAuthority));
            let refused = without.accept_invite(&invite(&key), PeerId::random(), NOW);
            assert_eq!(refused, Err(InviteError::NoAuthority));
        }
        assert!(holder(&key).create_invite(vec![addr()], HOUR, NOW).is_ok());
    }

    #[test]
    fn more_addresses_than_fit_are_an_error() {
        let error = key("home")
            .issue_invite(vec![addr(); 100], HOUR, NOW)
            .expect_err("too many");
        assert!(matches!(error, InviteError::Unsendable(_)), "{error}");
    }
}

mod states {
    use super::*;

    #[test]
    fn membership_survives_the_data_directory() {
        let key = key("home");
        let invite = key.issue_invite(vec![addr()], HOUR, NOW).expect("it fits");
        let states = [
            SwarmMembership::public("all"),
            holder(&key),
            SwarmMembership::from_invite(&invite),
        ];
        for state in states {
            let bytes = state.to_bytes().expect("it fits");
            assert_eq!(SwarmMembership::from_bytes(&bytes), Ok(state));
        }
    }

    #[test]
    fn every_changed_or_lost_byte_on_disk_is_noticed() {
        let bytes = holder(&key("home")).to_bytes().expect("it fits");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(SwarmMembership::from_bytes(&changed).is_err(), "byte {at}");
            assert!(
                SwarmMembership::from_bytes(&bytes[..at]).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn a_public_swarm_admits_everybody_and_has_no_key() {
        let public = SwarmMembership::public("all");
        assert_eq!(public.admit(PeerId::random(), None, NOW), Ok(()));
        assert_eq!(public.psk(), None);
        assert_eq!(public.swarm_id(), SwarmMembership::public("all").swarm_id());
        assert_ne!(public.swarm_id(), SwarmMembership::public("ALL").swarm_id());
        assert!(!public.is_private());
    }

    #[test]
    fn a_node_keeps_no_certificate_that_is_not_its_own() {
        let (key, own) = (key("home"), PeerId::random());
        let invite = key.issue_invite(vec![], HOUR, NOW).expect("it fits");
        let mut state = SwarmMembership::from_invite(&invite);
        let foreign = key.issue_certificate(PeerId::random(), NOW, HOUR);
        assert!(state.accept_certificate(foreign, own, NOW).is_err());
        assert_eq!(state.certificate(), None);
    }
}
