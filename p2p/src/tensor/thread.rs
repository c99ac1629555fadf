//! The thread of the tensor plane: QUIC is driven on it and on no other, so that neither the
//! blocks of a model, nor the swarm, nor an actor keeps a sign of life from being sent or heard.
//! It waits nearly all of the time, and a scheduler lets those run first that wait much.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, TokioRuntime};
use tokio::runtime::{Builder, Handle, Runtime};

/// See the module; it ends when this is dropped.
pub(super) struct PlaneThread(Option<Runtime>);

impl PlaneThread {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("accel-tensor")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> &Handle {
        let runtime = self.0.as_ref();
        runtime
            .expect("the runtime is there until this is dropped")
            .handle()
    }
}

impl Drop for PlaneThread {
    fn drop(&mut self) {
        // A plain drop would wait, which is not allowed within another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Puts what QUIC does in the background on the plane's thread, whoever asks for it.
#[derive(Debug)]
pub(super) struct OnThread(pub(super) Handle);

impl OnThread {
    pub(super) fn new(thread: &PlaneThread) -> Arc<Self> {
        Arc::new(Self(thread.handle().clone()))
    }
}

impl quinn::Runtime for OnThread {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _within = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _within = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
