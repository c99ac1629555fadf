//! What a frame of a peer means to the session that it is for. Pure.

use accel_p2p::PeerId;
use accel_p2p::wire::TensorFrame;

use super::event::{Drawn, Event};
use crate::error::Failure;
use crate::session::recovery::FaultKind;
use crate::stage::{BOUNDARY_DISPUTED, NEXT_STAGE_LOST};

/// The event that a frame brings; none when its sender may not say that.
/// Donors only give what they have, and may say that they cannot.
pub(super) fn event(
    route: &[PeerId],
    donors: &[PeerId],
    from: PeerId,
    frame: TensorFrame,
) -> Option<Event> {
    let Some(at) = route.iter().position(|peer| *peer == from) else {
        let is_donor = donors.contains(&from);
        return is_donor.then(|| refusal(from, frame)).flatten();
    };
    let is_last = at + 1 == route.len();
    match frame {
        TensorFrame::Token {
            epoch,
            step,
            position,
            token,
            logprob,
            top,
            ..
        } if is_last => {
            let drawn = Drawn {
                token,
                logprob,
                top,
            };
            Some(Event::Token {
                epoch,
                step,
                position,
                drawn,
            })
        }
        TensorFrame::Applied { epoch, step, .. } => Some(Event::Applied {
            epoch,
            step,
            stage: at,
        }),
        TensorFrame::Failed {
            epoch,
            code,
            message,
            ..
        } => Some(failed(route, at, epoch, code, &message)),
        _ => None,
    }
}

fn refusal(donor: PeerId, frame: TensorFrame) -> Option<Event> {
    let TensorFrame::Failed {
        epoch,
        code,
        message,
        ..
    } = frame
    else {
        return None;
    };
    let message = format!("peer {donor} could not give what it kept: {message}");
    Some(Event::StepFailed {
        epoch,
        culprit: Some(donor),
        failure: Failure::unavailable(code, message, "send the request again"),
    })
}

fn failed(route: &[PeerId], at: usize, epoch: u64, code: String, message: &str) -> Event {
    let from = route.get(at).copied();
    let who = from.map_or_else(String::new, |peer| peer.to_string());
    let message = format!("peer {who} could not go on: {message}");
    let next = route.get(at + 1).copied();
    let lost = next.filter(|_| code == NEXT_STAGE_LOST);
    let before = at.checked_sub(1).and_then(|before| route.get(before));
    let disputed = before.filter(|_| code == BOUNDARY_DISPUTED);
    let failure = Failure::unavailable(code, message, "send the request again");
    if let (Some(before), Some(from)) = (disputed, from) {
        // One of the two: nobody else was there.
        return Event::Distrusted {
            epoch,
            peers: vec![*before, from],
            kind: FaultKind::BoundaryDisputed,
            failure,
        };
    }
    match lost {
        Some(peer) => Event::Unreachable {
            epoch,
            peer,
            failure,
        },
        None => Event::StepFailed {
            epoch,
            culprit: from,
            failure,
        },
    }
}

#[cfg(test)]
mod tests {
    use accel_p2p::wire::SessionId;

    use super::*;

    fn frame(code: &str) -> TensorFrame {
        TensorFrame::failed(SessionId([1; 16]), 3, 7, code, "no")
    }

    #[test]
    fn a_stage_that_cannot_reach_the_next_one_blames_that_and_not_itself() {
        let route = [(); 3].map(|()| PeerId::random());
        for (at, peer) in route.into_iter().enumerate() {
            let event = event(&route, &[], peer, frame(NEXT_STAGE_LOST));
            match (event, route.get(at + 1)) {
                (Some(Event::Unreachable { epoch: 3, peer, .. }), Some(next)) => {
                    assert_eq!(peer, *next);
                }
                (Some(Event::StepFailed { culprit, .. }), None) => assert_eq!(culprit, Some(peer)),
                (event, _) => panic!("{event:?}"),
            }
        }
    }

    #[test]
    fn only_the_last_stage_draws_all_say_what_they_applied_and_strangers_say_nothing() {
        let route = [(); 2].map(|()| PeerId::random());
        let applied = || TensorFrame::Applied {
            session: SessionId([1; 16]),
            epoch: 1,
            step: 1,
            length: 5,
        };
        let token = || TensorFrame::Token {
            session: SessionId([1; 16]),
            epoch: 1,
            step: 1,
            position: 5,
            token: 7,
            logprob: 0.0,
            top: Vec::new(),
        };
        for (at, peer) in route.into_iter().enumerate() {
            let expected = Event::Applied {
                epoch: 1,
                step: 1,
                stage: at,
            };
            assert_eq!(event(&route, &[], peer, applied()), Some(expected));
            assert_eq!(event(&route, &[], peer, token()).is_some(), at == 1);
        }
        let stranger = PeerId::random();
        assert_eq!(event(&route, &[], stranger, frame("step_failed")), None);
        assert_eq!(event(&route, &[], stranger, applied()), None);
        let donors = [stranger];
        let refused = event(&route, &donors, stranger, frame("copy_failed"));
        assert!(
            matches!(refused, Some(Event::StepFailed { culprit, .. }) if culprit == Some(stranger))
        );
        assert_eq!(event(&route, &donors, stranger, applied()), None);
    }
}
