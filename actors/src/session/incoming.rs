//! What a frame of a peer means to the session that it is for. Pure.

use accel_p2p::PeerId;
use accel_p2p::wire::TensorFrame;

use super::event::{Drawn, Event};
use crate::error::Failure;
use crate::stage::NEXT_STAGE_LOST;

/// The event that a frame brings; none when its sender may not say that.
pub(super) fn event(route: &[PeerId], from: PeerId, frame: TensorFrame) -> Option<Event> {
    let at = route.iter().position(|peer| *peer == from)?;
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
        TensorFrame::Applied { epoch, step, .. } if is_last => Some(Event::Applied { epoch, step }),
        TensorFrame::Failed {
            epoch,
            code,
            message,
            ..
        } => Some(failed(route, at, epoch, code, &message)),
        _ => None,
    }
}

fn failed(route: &[PeerId], at: usize, epoch: u64, code: String, message: &str) -> Event {
    let from = route.get(at).copied();
    let who = from.map_or_else(String::new, |peer| peer.to_string());
    let message = format!("peer {who} could not go on: {message}");
    let next = route.get(at + 1).copied();
    let lost = next.filter(|_| code == NEXT_STAGE_LOST);
    let failure = Failure::unavailable(code, message, "send the request again");
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
            let event = event(&route, peer, frame(NEXT_STAGE_LOST));
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
    fn only_the_last_stage_says_what_was_computed_and_strangers_say_nothing() {
        let route = [(); 2].map(|()| PeerId::random());
        let applied = || TensorFrame::Applied {
            session: SessionId([1; 16]),
            epoch: 1,
            step: 1,
            length: 5,
        };
        let [first, last] = route;
        assert!(event(&route, last, applied()).is_some());
        assert_eq!(event(&route, first, applied()), None);
        let stranger = PeerId::random();
        assert_eq!(event(&route, stranger, frame("step_failed")), None);
    }
}
