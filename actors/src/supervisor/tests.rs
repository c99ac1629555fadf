use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, ResponseFuture};

use super::*;

const WITHIN: Duration = Duration::from_secs(20);

/// Counts what it is told, forgets it when it is replaced, and fails on request.
struct Counter {
    generation: usize,
    count: u32,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

supervised!(Counter);

#[derive(Message)]
#[rtype(result = "u32")]
struct Add(u32);

#[derive(Message)]
#[rtype(result = "()")]
struct Hang;

#[derive(Message)]
#[rtype(result = "usize")]
struct Generation;

impl Handler<Add> for Counter {
    type Result = u32;
    fn handle(&mut self, Add(n): Add, _: &mut Context<Self>) -> u32 {
        self.count += n;
        self.count
    }
}

impl Handler<Hang> for Counter {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Hang, _: &mut Context<Self>) -> ResponseFuture<()> {
        Box::pin(std::future::pending())
    }
}

impl Handler<Generation> for Counter {
    type Result = usize;
    fn handle(&mut self, _: Generation, _: &mut Context<Self>) -> usize {
        self.generation
    }
}

fn policy() -> RestartPolicy {
    RestartPolicy {
        first_pause: Duration::from_millis(1),
        heartbeat: Duration::from_millis(20),
        ..RestartPolicy::default()
    }
}

fn add_counter(unit: &mut Unit, name: &'static str) -> (ActorRef<Counter>, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let actor = unit.member(name, move || {
        let generation = counter.fetch_add(1, Ordering::SeqCst);
        Counter {
            generation,
            count: 0,
        }
        .start()
    });
    (actor, made)
}

async fn wait_for(watch: &UnitWatch, wanted: UnitState) {
    let mut state = watch.subscribe();
    state.wait_for(|state| *state == wanted).await.unwrap();
}

#[actix::test]
async fn a_panicked_actor_is_replaced_and_its_handle_goes_on_working() {
    let mut unit = Unit::new("unit", policy());
    let (counter, made) = add_counter(&mut unit, "counter");
    let watch = unit.start();

    assert_eq!(counter.ask(Add(2), WITHIN).await, Ok(2));
    let crashed = counter.ask(Crash, WITHIN).await;
    assert_eq!(crashed, Err(AskError::Crashed { actor: "counter" }));
    assert_eq!(
        counter.ask(Add(3), WITHIN).await,
        Ok(3),
        "a fresh instance answers"
    );
    assert_eq!(made.load(Ordering::SeqCst), 2);
    assert_eq!(watch.restarts().load(Ordering::Relaxed), 1);
    watch.stop().await;
}

#[actix::test]
async fn the_heartbeat_finds_a_failure_that_nobody_else_notices() {
    let mut unit = Unit::new("unit", policy());
    let (counter, made) = add_counter(&mut unit, "counter");
    let watch = unit.start();
    assert_eq!(counter.ask(Generation, WITHIN).await, Ok(0));

    let addr = match &*counter.slot.borrow() {
        actor_ref::Slot::Live(addr) => addr.clone(),
        _ => panic!("it answered a moment ago"),
    };
    addr.try_send(Crash).unwrap();
    while made.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(counter.ask(Generation, WITHIN).await, Ok(1));
    watch.stop().await;
}

#[actix::test]
async fn a_unit_restarts_as_one() {
    let mut unit = Unit::new("unit", policy());
    let (left, _) = add_counter(&mut unit, "left");
    let (right, _) = add_counter(&mut unit, "right");
    let watch = unit.start();

    assert_eq!(right.ask(Add(5), WITHIN).await, Ok(5));
    assert!(left.ask(Crash, WITHIN).await.is_err());
    assert_eq!(left.ask(Generation, WITHIN).await, Ok(1));
    assert_eq!(
        right.ask(Generation, WITHIN).await,
        Ok(1),
        "its neighbour was replaced too"
    );
    watch.stop().await;
}

#[actix::test]
async fn a_unit_that_keeps_failing_is_given_up_and_says_so() {
    let mut unit = Unit::new(
        "unit",
        RestartPolicy {
            most_restarts: 2,
            ..policy()
        },
    );
    let (counter, made) = add_counter(&mut unit, "counter");
    let watch = unit.start();
    for _ in 0..3 {
        assert!(counter.ask(Crash, WITHIN).await.is_err());
    }
    wait_for(&watch, UnitState::GivenUp).await;
    let answer = counter.ask(Add(1), WITHIN).await;
    assert_eq!(answer, Err(AskError::GivenUp { actor: "counter" }));
    assert_eq!(made.load(Ordering::SeqCst), 3);
}

#[actix::test]
async fn a_message_that_is_never_answered_ends_in_a_timeout() {
    let mut unit = Unit::new("unit", policy());
    let (counter, _) = add_counter(&mut unit, "counter");
    let watch = unit.start();
    let answer = counter.ask(Hang, Duration::from_millis(30)).await;
    assert!(
        matches!(answer, Err(AskError::Timeout { .. })),
        "{answer:?}"
    );
    assert_eq!(
        counter.ask(Add(1), WITHIN).await,
        Ok(1),
        "others are served meanwhile"
    );
    watch.stop().await;
}
