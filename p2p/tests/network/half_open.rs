//! A connection that both ends have open and over which one of them is not heard: what is left when
//! bits of a length change on the way, or a router forgets half of what it knew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel_p2p::{JoinTarget, Multiaddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Node, advert_body, public_config};

/// Stands between the dialler and a node, and can stop passing on what the node says.
struct Router {
    addr: Multiaddr,
    forgotten: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Router {
    async fn before(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = port_of(&node.addr());
        let forgotten = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(route(listener, target, Arc::clone(&forgotten)));
        let addr = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", node.peer());
        Self {
            addr: addr.parse().unwrap(),
            forgotten,
            _tasks: tasks,
        }
    }

    /// Swallows what the node says over the connections that there are, and takes it from the node
    /// as if it went on. Those that come later work.
    fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }
}

fn port_of(addr: &Multiaddr) -> u16 {
    let mut parts = addr.to_string();
    parts = parts.split("/tcp/").nth(1).unwrap().to_owned();
    parts.split('/').next().unwrap().parse().unwrap()
}

async fn route(listener: TcpListener, target: u16, forgotten: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((dialler, _)) = listener.accept().await {
        let node = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
        let ((mut says, mut hears), (mut node_says, mut node_hears)) =
            (dialler.into_split(), node.into_split());
        connections.spawn(async move {
            let _ = tokio::io::copy(&mut says, &mut node_hears).await;
            let _ = node_hears.shutdown().await;
        });
        let (forgotten, before) = (Arc::clone(&forgotten), forgotten.load(Ordering::SeqCst));
        connections.spawn(async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(read @ 1..) = node_says.read(&mut bytes).await {
                let passes = forgotten.load(Ordering::SeqCst) == before;
                if passes && hears.write_all(&bytes[..read]).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_over_which_nobody_answers_is_closed_and_another_takes_its_place() {
    let mut a = Node::public(&[]).await;
    let router = Router::before(&a).await;
    let mut config = public_config();
    config.join = vec![JoinTarget::Addr(router.addr.clone())];
    let mut b = Node::start(config).await;
    b.network.set_advert(advert_body("b"));
    a.hears_greeting_of(b.peer()).await;
    b.hears_greeting_of(a.peer()).await;

    router.forget();
    b.sees_disconnected(a.peer()).await;
    a.sees_disconnected(b.peer()).await;
    // Both say again that they are there, and hear each other.
    a.hears_greeting_of(b.peer()).await;
    b.hears_greeting_of(a.peer()).await;
}
