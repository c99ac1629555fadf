//! Adverts over gossipsub: one topic per swarm.

use std::sync::Arc;
use std::time::Duration;

use accel_swarm::GossipsubEvent;
use futures::StreamExt;
use futures::stream::BoxStream;
use rust_ipfs::Ipfs;

use super::{Adverts, Told};
use crate::network::NetworkError;
use crate::wire::limit;

/// Two adverts of one node are at least this far apart.
const MIN_INTERVAL: Duration = Duration::from_millis(200);

/// The swarm's gossip topic.
#[derive(Clone)]
pub(crate) struct Topic {
    ipfs: Ipfs,
    name: String,
}

impl Topic {
    /// Subscribes; what is heard comes out of the stream.
    pub(crate) async fn subscribe(
        ipfs: &Ipfs,
        name: String,
    ) -> Result<(Self, BoxStream<'static, GossipsubEvent>), NetworkError> {
        let failed = |error| NetworkError::Swarm(format!("cannot subscribe to {name}: {error:#}"));
        let heard = ipfs.pubsub_listener(name.as_str()).await.map_err(failed)?;
        ipfs.pubsub_subscribe(name.as_str()).await.map_err(failed)?;
        let topic = Self {
            ipfs: ipfs.clone(),
            name,
        };
        Ok((topic, heard))
    }

    /// Sends to whoever listens; nobody listening is no error.
    pub(crate) async fn publish(&self, sealed: bytes::Bytes) {
        if let Err(error) = self.ipfs.pubsub_publish(self.name.as_str(), sealed).await {
            tracing::debug!(%error, "an advert was not gossiped");
        }
    }
}

/// Publishes the advert every third of its life, and at once when asked to.
pub(crate) async fn publish(adverts: Arc<Adverts>, topic: Topic) {
    let renewal = (adverts.ttl / 3).saturating_sub(MIN_INTERVAL);
    loop {
        if let Some(sealed) = adverts.seal_own() {
            topic.publish(sealed).await;
        }
        tokio::time::sleep(MIN_INTERVAL).await;
        // Whether woken or due, the advert is published again.
        let _ = tokio::time::timeout(renewal, adverts.publish_now.notified()).await;
    }
}

/// Hears what others publish.
pub(crate) async fn listen(adverts: Arc<Adverts>, mut heard: BoxStream<'static, GossipsubEvent>) {
    while let Some(event) = heard.next().await {
        match event {
            GossipsubEvent::Subscribed { .. } => adverts.publish_now(),
            GossipsubEvent::Unsubscribed { .. } => {}
            GossipsubEvent::Message { message } => {
                if message.data.len() > limit::GOSSIP_ENVELOPE {
                    continue;
                }
                let via = message.propagated_source;
                if let Err(error) = adverts.hear(message.data, Told::Gossip(via)).await {
                    tracing::debug!(%via, %error, "gossip is not believed");
                }
            }
        }
    }
}
