//! Our own supervision over actix: a unit of actors that belongs together is watched as one and
//! replaced as one.
//!
//! actix's `Supervisor` only calls `restarting()` on the same value and does not survive a panic.
//! Here every actor has a factory. A panic in a handler ends the actor's task; the next heartbeat,
//! or the next message, finds that out; all members of the unit are stopped and, after a back-off
//! that grows with every restart, made anew. Whoever holds an [`ActorRef`] notices a pause at
//! most. A unit that keeps failing escalates: its watcher gives up, says so, and every message
//! is answered with [`AskError::GivenUp`].
//!
//! | File | Holds |
//! |---|---|
//! | `actor_ref.rs` | the address that always leads to the living instance |
//! | `backoff.rs` | how long to wait before the next restart, and when to give up |
//! | `unit.rs` | the watcher of a unit |

mod actor_ref;
mod backoff;
mod unit;

#[cfg(test)]
mod tests;

pub use actor_ref::{ActorRef, AskError};
pub use backoff::{Backoff, RestartPolicy};
pub use unit::{Unit, UnitState, UnitWatch};

use actix::{Actor, Context, Handler, Message};

/// Every supervised actor answers it, and thereby shows that its mailbox moves.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Heartbeat;

/// Asks an actor to end, because its unit is restarted or the node stops.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// An actor that can be supervised.
pub trait Supervised: Actor<Context = Context<Self>> + Handler<Heartbeat> + Handler<Stop> {}

impl<A> Supervised for A where A: Actor<Context = Context<A>> + Handler<Heartbeat> + Handler<Stop> {}

/// Gives an actor the two handlers that supervision needs.
macro_rules! supervised {
    ($actor:ty) => {
        impl actix::Handler<$crate::supervisor::Heartbeat> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::supervisor::Heartbeat, _: &mut Self::Context) {}
        }

        impl actix::Handler<$crate::supervisor::Stop> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::supervisor::Stop, context: &mut Self::Context) {
                actix::ActorContext::stop(context);
            }
        }

        #[cfg(test)]
        impl actix::Handler<$crate::supervisor::Crash> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::supervisor::Crash, _: &mut Self::Context) {
                panic!("on request");
            }
        }
    };
}
pub(crate) use supervised;

/// Makes an actor panic, for tests of what goes on without it.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub(crate) struct Crash;
