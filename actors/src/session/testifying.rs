//! The actor's part in a witnessed session: what its stages say goes to the bench, and the machine
//! hears of a token once that is accepted.

use accel_p2p::SignedClaim;
use actix::Context;

use super::actor::SessionActor;
use super::bench::Said;
use super::event::{Event, RouteStage, Timer};
use super::jury::Lane;
use crate::error::Failure;

impl SessionActor {
    /// Takes in what a stage says, with its claims if it made any.
    pub(super) fn hear(
        &mut self,
        event: Event,
        claims: Option<Vec<SignedClaim>>,
        context: &mut Context<Self>,
    ) {
        match (&self.spec.bench, event) {
            (
                Some((bench, lane)),
                Event::Token {
                    epoch,
                    step,
                    position,
                    drawn,
                },
            ) => {
                if !self.machine.expects_token(epoch, step) {
                    return;
                }
                let route: Vec<RouteStage> = self
                    .machine
                    .route()
                    .map(|(stage, _)| stage.clone())
                    .collect();
                let said = Said {
                    epoch,
                    step,
                    position,
                    drawn,
                    claims: claims.unwrap_or_default(),
                };
                let (bench, lane) = (bench.clone(), *lane);
                match bench.hear((self.spec.id, lane), &route, said) {
                    Ok(Some(event)) => self.feed(event, context),
                    Ok(None) => {}
                    Err(reason) => self.feed(unwitnessed(epoch, route.last(), reason), context),
                }
            }
            (_, event) => self.feed(event, context),
        }
    }

    /// The timer of a step whose token waits for the other lane: the stages have done their part.
    pub(super) fn adjourned(&self, event: &Event) -> Option<Timer> {
        let Event::Timeout(timer @ Timer::Step { epoch, .. }) = event else {
            return None;
        };
        let (bench, lane) = self.spec.bench.as_ref()?;
        bench.holds(*lane, *epoch).then_some(*timer)
    }

    /// Whether it computes beside another, which has the client.
    pub(super) fn is_beside(&self) -> bool {
        let bench = self.spec.bench.as_ref();
        bench.is_some_and(|(_, lane)| *lane != Lane::Primary)
    }
}

fn unwitnessed(epoch: u64, last: Option<&RouteStage>, reason: &str) -> Event {
    let culprit = last.map(|stage| stage.peer);
    let who = culprit.map_or_else(String::new, |peer| peer.to_string());
    let message = format!("peer {who} gave a token that cannot be believed: {reason}");
    let hint = "send the request again; update accel on all nodes if it happens again";
    Event::StepFailed {
        epoch,
        culprit,
        failure: Failure::unavailable("unwitnessed", message, hint),
    }
}
