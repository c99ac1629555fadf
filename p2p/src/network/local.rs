//! Where this node itself can be reached.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use rust_ipfs::Ipfs;

use crate::wire::limit;

/// Network interfaces come and go; this is how often they are looked at.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// The addresses on which this node listens, kept up to date.
#[derive(Debug)]
pub(crate) struct LocalAddrs {
    peer: PeerId,
    tensor: Vec<SocketAddr>,
    listen: RwLock<Vec<Multiaddr>>,
}

impl LocalAddrs {
    pub(crate) fn new(peer: PeerId, tensor: Vec<SocketAddr>) -> Self {
        Self {
            peer,
            tensor,
            listen: RwLock::default(),
        }
    }

    /// Where libp2p listens, with real ports and the `/p2p/` part.
    pub(crate) fn listen(&self) -> Vec<Multiaddr> {
        let listen = self.listen.read().unwrap_or_else(PoisonError::into_inner);
        listen.clone()
    }

    /// Where the tensor plane listens. "Everywhere" is spelled out as the IPs that libp2p has.
    pub(crate) fn tensor(&self) -> Vec<SocketAddr> {
        let ips: BTreeSet<IpAddr> = self.listen().iter().filter_map(ip_of).collect();
        let mut addrs = Vec::new();
        for addr in &self.tensor {
            if addr.ip().is_unspecified() {
                let same_family = ips.iter().filter(|ip| ip.is_ipv4() == addr.is_ipv4());
                addrs.extend(same_family.map(|ip| SocketAddr::new(*ip, addr.port())));
            } else {
                addrs.push(*addr);
            }
        }
        addrs.truncate(limit::ADDRS);
        addrs
    }

    /// Asks the swarm where it listens.
    pub(crate) async fn refresh(&self, ipfs: &Ipfs) {
        let Ok(addrs) = ipfs.listening_addresses().await else {
            return;
        };
        let with_peer = |addr: Multiaddr| match addr.iter().last() {
            Some(Protocol::P2p(_)) => addr,
            _ => addr.with(Protocol::P2p(self.peer)),
        };
        let mut addrs: Vec<Multiaddr> = addrs.into_iter().map(with_peer).collect();
        addrs.truncate(limit::ADDRS);
        *self.listen.write().unwrap_or_else(PoisonError::into_inner) = addrs;
    }
}

/// Refreshes for as long as the network runs.
pub(crate) async fn keep_fresh(addrs: Arc<LocalAddrs>, ipfs: Ipfs) {
    let mut ticks = tokio::time::interval(REFRESH_INTERVAL);
    loop {
        ticks.tick().await;
        addrs.refresh(&ipfs).await;
    }
}

fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_plane_that_listens_everywhere_is_advertised_with_real_ips() {
        let tensor = vec!["0.0.0.0:7".parse().unwrap(), "[::1]:8".parse().unwrap()];
        let addrs = LocalAddrs::new(PeerId::random(), tensor);
        let listen = [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.0.0.2/tcp/1",
            "/ip6/::1/tcp/1",
        ];
        *addrs.listen.write().unwrap() = listen.iter().map(|text| text.parse().unwrap()).collect();
        let expected = ["10.0.0.2:7", "127.0.0.1:7", "[::1]:8"].map(|text| text.parse().unwrap());
        assert_eq!(addrs.tensor(), expected);
    }
}
