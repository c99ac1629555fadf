//! The outbound stream to one peer: wants and responses leave on it, one writer for both.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::AsyncReadExt;
use libp2p::{PeerId, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::{Entry, Message};
use super::serve::{self, Queue};
use super::{Exchange, frame};
use crate::network::{NetworkError, Streams};
use crate::wire::protocol;

/// Wants that may wait to be written.
const WANT_QUEUE: usize = 256;
/// Wants written in one message.
const WANTS_PER_MESSAGE: usize = 128;
/// Responses that may wait to be written; each is up to a megabyte or so.
const RESPONSE_QUEUE: usize = 2;
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const OPEN_ATTEMPTS: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(40);
/// A stream that ends this soon after it was opened was dropped before it was read.
const PROBATION: Duration = Duration::from_secs(1);
/// Blocks that may be outstanding at a peer that answers on one stream.
const WIDE: usize = 64;
/// First messages of a stream that are kept during probation, to be written again.
const KEPT_MESSAGES: usize = 4;

/// Handle to the tasks that serve one peer; they end when all handles are dropped.
#[derive(Clone)]
pub(super) struct Partner {
    wants: mpsc::Sender<Entry>,
    pub(super) queue: Arc<Queue>,
    turns: Arc<Turns>,
    _tasks: Arc<DropGuard>,
}

/// How many blocks may be outstanding at a peer: one at first, many once it has proved steady.
///
/// Kubo answers each want on a stream of its own, and of several streams that arrive together
/// libp2p-stream drops all but one. Asked for one block after the other, it sends one stream
/// after the other.
struct Turns {
    permits: Arc<Semaphore>,
    is_steady: AtomicBool,
}

impl Partner {
    /// Queues a line of the wantlist.
    pub(super) async fn ask(&self, entry: Entry) {
        // The receiver ends with the connection, and the want is refused then.
        let _ = self.wants.send(entry).await;
    }

    /// Waits until one more block may be asked of the peer; the turn ends when dropped.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turns.permits).acquire_owned().await.ok()
    }

    /// Whether the peer has been seen to answer more than once on one stream.
    pub(super) fn is_steady(&self) -> bool {
        self.turns.is_steady.load(Ordering::Relaxed)
    }

    /// The peer answered more than once on one stream: it can be asked for many blocks at once.
    pub(super) fn prove_steady(&self) {
        if !self.turns.is_steady.swap(true, Ordering::Relaxed) {
            self.turns.permits.add_permits(WIDE - 1);
        }
    }

    /// Queues it if there is room; for what does no harm when it is lost.
    pub(super) fn ask_if_room(&self, entry: Entry) {
        let _ = self.wants.try_send(entry);
    }
}

/// Starts the tasks for a peer.
pub(super) fn spawn(exchange: &Arc<Exchange>, peer: PeerId) -> Partner {
    let (want_sender, wants) = mpsc::channel(WANT_QUEUE);
    let (response_sender, responses) = mpsc::channel(RESPONSE_QUEUE);
    let queue = Arc::new(Queue::default());
    let token = exchange.tasks.child_token();
    let serving = serve::run(Arc::clone(exchange), Arc::clone(&queue), response_sender);
    let writing = Writer::new(exchange, peer, wants, responses).run();
    let both = async move {
        tokio::join!(serving, writing);
    };
    let ended = token.clone();
    exchange.tasks.spawn(async move {
        ended.run_until_cancelled(both).await;
    });
    Partner {
        wants: want_sender,
        queue,
        turns: Arc::new(Turns {
            permits: Arc::new(Semaphore::new(1)),
            is_steady: AtomicBool::new(false),
        }),
        _tasks: Arc::new(CancellationToken::drop_guard(token)),
    }
}

struct Writer {
    exchange: Arc<Exchange>,
    peer: PeerId,
    wants: mpsc::Receiver<Entry>,
    responses: mpsc::Receiver<Bytes>,
    link: Link,
}

enum Next {
    Write(Bytes),
    StreamEnded,
    Stop,
}

impl Writer {
    fn new(
        exchange: &Arc<Exchange>,
        peer: PeerId,
        wants: mpsc::Receiver<Entry>,
        responses: mpsc::Receiver<Bytes>,
    ) -> Self {
        let link = Link {
            peer,
            streams: exchange.streams.clone(),
            stream: None,
            opened: Instant::now(),
            first_messages: VecDeque::new(),
        };
        Self {
            exchange: Arc::clone(exchange),
            peer,
            wants,
            responses,
            link,
        }
    }

    async fn run(mut self) {
        loop {
            let written = match self.next().await {
                Next::Write(message) => self.link.write(message).await,
                Next::StreamEnded => self.link.write_again().await,
                Next::Stop => return,
            };
            if let Err(error) = written {
                tracing::debug!(peer = %self.peer, %error, "no bitswap messages reach this peer");
                self.exchange.wants.unreachable(&self.peer);
                if !self.exchange.streams.is_connected(&self.peer) {
                    self.exchange.partners().remove(&self.peer);
                    return;
                }
            }
        }
    }

    async fn next(&mut self) -> Next {
        tokio::select! {
            biased;
            entry = self.wants.recv() => match entry {
                Some(entry) => Next::Write(self.wantlist(entry)),
                None => Next::Stop,
            },
            response = self.responses.recv() => match response {
                Some(response) => Next::Write(response),
                None => Next::Stop,
            },
            () = self.link.ended() => Next::StreamEnded,
        }
    }

    /// One message of all wants that wait.
    fn wantlist(&mut self, first: Entry) -> Bytes {
        let mut wants = vec![first];
        while wants.len() < WANTS_PER_MESSAGE
            && let Ok(entry) = self.wants.try_recv()
        {
            wants.push(entry);
        }
        let message = Message {
            wants,
            ..Message::default()
        };
        message.encode().into()
    }
}

/// One outbound stream, opened when needed and again when it died.
struct Link {
    peer: PeerId,
    streams: Streams,
    stream: Option<Stream>,
    opened: Instant,
    first_messages: VecDeque<Bytes>,
}

impl Link {
    async fn write(&mut self, message: Bytes) -> Result<(), NetworkError> {
        self.keep(&message);
        let mut last = None;
        for attempt in 1..=OPEN_ATTEMPTS {
            if self.stream.is_none() {
                self.open(&message).await?;
            }
            let Some(stream) = self.stream.as_mut() else {
                continue;
            };
            let writing = frame::write(stream, &message);
            match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
            }
            self.stream = None;
            tokio::time::sleep(RETRY_PAUSE * attempt).await;
        }
        Err(NetworkError::Broken {
            peer: self.peer,
            reason: last.map_or_else(String::new, |error| error.to_string()),
        })
    }

    async fn open(&mut self, first: &Bytes) -> Result<(), NetworkError> {
        self.stream = Some(self.streams.open(self.peer, protocol::BITSWAP).await?);
        self.opened = Instant::now();
        self.first_messages.clear();
        self.first_messages.push_back(first.clone());
        Ok(())
    }

    /// Keeps what is written on a young stream, in case it turns out to be dropped.
    fn keep(&mut self, message: &Bytes) {
        if self.stream.is_none() {
            return;
        }
        if self.opened.elapsed() >= PROBATION {
            self.first_messages.clear();
        } else if self.first_messages.len() < KEPT_MESSAGES {
            self.first_messages.push_back(message.clone());
        }
    }

    /// Resolves when the peer ends the stream; it never sends anything on it.
    async fn ended(&mut self) {
        let Some(stream) = self.stream.as_mut() else {
            return std::future::pending().await;
        };
        let mut nothing = [0];
        let _ = stream.read(&mut nothing).await;
    }

    /// After the stream ended: opens another if it was dropped before it was read.
    async fn write_again(&mut self) -> Result<(), NetworkError> {
        self.stream = None;
        let unread = std::mem::take(&mut self.first_messages);
        if self.opened.elapsed() >= PROBATION {
            return Ok(());
        }
        for message in unread {
            tokio::time::sleep(RETRY_PAUSE).await;
            self.write(message).await?;
        }
        Ok(())
    }
}
