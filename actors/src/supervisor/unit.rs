//! The watcher of a unit: starts its members, asks for signs of life, replaces all of them when
//! one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::Addr;
use futures::future::{LocalBoxFuture, join_all};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::actor_ref::{ActorRef, Slot};
use super::backoff::{Backoff, RestartPolicy};
use super::{Heartbeat, Stop, Supervised};

/// How a unit fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Its members run.
    Running,
    /// They are being replaced.
    Restarting,
    /// It failed too often.
    GivenUp,
    /// It was stopped on purpose.
    Stopped,
}

/// Actors that belong together. Add members with [`Unit::member`], then [`Unit::start`].
pub struct Unit {
    name: &'static str,
    policy: RestartPolicy,
    nudge: Arc<Notify>,
    members: Vec<Box<dyn Member>>,
}

impl Unit {
    /// A unit without members.
    pub fn new(name: &'static str, policy: RestartPolicy) -> Self {
        Self {
            name,
            policy,
            nudge: Arc::default(),
            members: Vec::new(),
        }
    }

    /// Adds an actor. The factory starts it and is called again for each restart, always on the
    /// thread on which the unit is started. Members start in the order in which they were added.
    pub fn member<A, F>(&mut self, name: &'static str, factory: F) -> ActorRef<A>
    where
        A: Supervised,
        F: Fn() -> Addr<A> + 'static,
    {
        let (sender, slot) = watch::channel(Slot::Restarting);
        self.members.push(Box::new(Seat {
            name,
            factory,
            slot: sender,
        }));
        ActorRef {
            name,
            slot,
            nudge: Arc::clone(&self.nudge),
        }
    }

    /// Starts the members and watches over them, on the current actix arbiter.
    pub fn start(self) -> UnitWatch {
        let (state_sender, state) = watch::channel(UnitState::Restarting);
        let restarts = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(Notify::new());
        let watcher = Watcher {
            name: self.name,
            backoff: Backoff::new(self.policy.clone()),
            policy: self.policy,
            nudge: self.nudge,
            members: self.members,
            state: state_sender,
            restarts: Arc::clone(&restarts),
            stop: Arc::clone(&stop),
        };
        let task = actix::spawn(watcher.run());
        UnitWatch {
            state,
            restarts,
            stop,
            task,
        }
    }
}

/// What is known of a running unit.
pub struct UnitWatch {
    state: watch::Receiver<UnitState>,
    restarts: Arc<AtomicU64>,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl UnitWatch {
    /// How it fares now.
    pub fn state(&self) -> UnitState {
        *self.state.borrow()
    }

    /// Follows how it fares.
    pub fn subscribe(&self) -> watch::Receiver<UnitState> {
        self.state.clone()
    }

    /// How often it was restarted.
    pub fn restarts(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.restarts)
    }

    /// Stops the members and the watcher.
    pub async fn stop(self) {
        self.stop.notify_one();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "a supervisor did not stop in good order");
        }
    }
}

/// One place in a unit, whoever sits in it at the time.
trait Member {
    fn name(&self) -> &'static str;
    fn start(&self);
    fn is_alive(&self, patience: Duration) -> LocalBoxFuture<'_, bool>;
    /// Ends the instance and takes its address out of circulation.
    fn stop(&self, patience: Duration, for_good: bool) -> LocalBoxFuture<'_, ()>;
}

struct Seat<A: Supervised, F> {
    name: &'static str,
    factory: F,
    slot: watch::Sender<Slot<A>>,
}

impl<A: Supervised, F: Fn() -> Addr<A>> Seat<A, F> {
    fn addr(&self) -> Option<Addr<A>> {
        match &*self.slot.borrow() {
            Slot::Live(addr) => Some(addr.clone()),
            Slot::Restarting | Slot::GivenUp => None,
        }
    }
}

impl<A: Supervised, F: Fn() -> Addr<A>> Member for Seat<A, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&self) {
        self.slot.send_replace(Slot::Live((self.factory)()));
    }

    fn is_alive(&self, patience: Duration) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(addr) = self.addr() else {
                return false;
            };
            let answer = tokio::time::timeout(patience, addr.send(Heartbeat)).await;
            matches!(answer, Ok(Ok(())))
        })
    }

    fn stop(&self, patience: Duration, for_good: bool) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            let next = if for_good {
                Slot::GivenUp
            } else {
                Slot::Restarting
            };
            let Slot::Live(addr) = self.slot.send_replace(next) else {
                return;
            };
            // An actor that does not even stop keeps nothing but its own memory.
            let _ = tokio::time::timeout(patience, addr.send(Stop)).await;
        })
    }
}

struct Watcher {
    name: &'static str,
    policy: RestartPolicy,
    backoff: Backoff,
    nudge: Arc<Notify>,
    members: Vec<Box<dyn Member>>,
    state: watch::Sender<UnitState>,
    restarts: Arc<AtomicU64>,
    stop: Arc<Notify>,
}

/// Why the watcher stopped waiting.
enum Woken {
    Stop,
    Failed(&'static str),
}

impl Watcher {
    async fn run(mut self) {
        loop {
            for member in &self.members {
                member.start();
            }
            self.state.send_replace(UnitState::Running);
            let failed = match self.watch().await {
                Woken::Stop => return self.end(UnitState::Stopped).await,
                Woken::Failed(member) => member,
            };
            let Some(pause) = self.backoff.failed(Instant::now()) else {
                tracing::error!(
                    unit = self.name,
                    member = failed,
                    "failed too often; given up"
                );
                return self.end(UnitState::GivenUp).await;
            };
            self.restarts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                unit = self.name,
                member = failed,
                ?pause,
                "failed; restarting the unit"
            );
            self.state.send_replace(UnitState::Restarting);
            self.stop_members(false).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.notified() => return self.end(UnitState::Stopped).await,
            }
        }
    }

    /// Waits until a member fails or the unit is stopped.
    async fn watch(&self) -> Woken {
        loop {
            tokio::select! {
                () = self.stop.notified() => return Woken::Stop,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(self.policy.heartbeat) => {}
            }
            let checks = self.members.iter().map(|member| async move {
                let alive = member.is_alive(self.policy.patience).await;
                (!alive).then(|| member.name())
            });
            if let Some(failed) = join_all(checks).await.into_iter().flatten().next() {
                return Woken::Failed(failed);
            }
        }
    }

    async fn stop_members(&self, for_good: bool) {
        // Those that were started last may depend on those that were started first.
        for member in self.members.iter().rev() {
            member.stop(self.policy.patience, for_good).await;
        }
    }

    async fn end(&self, state: UnitState) {
        self.stop_members(true).await;
        self.state.send_replace(state);
    }
}
