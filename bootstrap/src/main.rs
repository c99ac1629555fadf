//! `accel-bootstrap`: a meeting point for the nodes of a swarm.
//!
//! It listens at a known address; nodes that `--join` it hear each other's adverts through it and then
//! connect to each other. It has no engine, holds no model and serves no stage, and it never advertises
//! itself as a machine. Started with the key of a private swarm, it also lets in who has an invite.
//!
//! - `identity`: the key that gives it the same PeerId on every start
//! - `meeting`: the network, with nothing behind it

mod identity;
mod meeting;

use std::{fs, path::PathBuf};

use accel_p2p::{
    JoinTarget, Keypair, Multiaddr, Network, NetworkConfig, SwarmKey, SwarmMembership, unix_ms,
};
use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use identity::Identity;

/// A meeting point for the nodes of a swarm: no engine, no models
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Address for peers to connect to, may be repeated
    #[arg(
        long,
        value_name = "MULTIADDR",
        default_value = "/ip4/0.0.0.0/tcp/4001"
    )]
    listen: Vec<Multiaddr>,
    /// Another meeting point or node of the swarm, may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    join: Vec<Multiaddr>,
    /// Public swarm to serve
    #[arg(
        long,
        value_name = "NAME",
        default_value = "public",
        conflicts_with = "swarm_key"
    )]
    swarm: String,
    /// Key file of a private swarm (see `accel swarm init`)
    #[arg(long, value_name = "FILE")]
    swarm_key: Option<PathBuf>,
    /// Directory of its identity
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File to write {"peer_id","addrs"} to once everything listens
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    serve(Options::parse()).await
}

async fn serve(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let identity = Identity::open(&options.data)?;
    let config = network_config(&options, &identity)?;
    let (network, events) = Network::start(config, meeting::no_blocks())
        .await
        .context("the meeting point cannot be opened")?;
    announce(&options, &network)?;
    tokio::select! {
        () = meeting::host(events) => {}
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    network.shutdown().await;
    if let Some(path) = &options.ready_file {
        // Whoever reads it later must not believe that somebody listens.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn network_config(options: &Options, identity: &Identity) -> Result<NetworkConfig> {
    let swarm = match &options.swarm_key {
        None => SwarmMembership::public(&options.swarm),
        Some(path) => private_swarm(path, identity)?,
    };
    let join = options.join.iter().cloned().map(JoinTarget::Addr);
    Ok(NetworkConfig {
        listen: options.listen.clone(),
        join: join.collect(),
        ..NetworkConfig::loopback(identity.seed, swarm)
    })
}

fn private_swarm(path: &PathBuf, identity: &Identity) -> Result<SwarmMembership> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key: SwarmKey = text
        .parse()
        .with_context(|| format!("{} is no swarm key", path.display()))?;
    let keypair = Keypair::ed25519_from_bytes(identity.seed).context("the identity is no key")?;
    let peer = keypair.public().to_peer_id();
    Ok(SwarmMembership::from_key(&key, peer, unix_ms()))
}

fn announce(options: &Options, network: &Network) -> Result<()> {
    let peer_id = network.peer_id().to_string();
    let addrs: Vec<String> = network
        .listen_addrs()
        .iter()
        .map(Multiaddr::to_string)
        .collect();
    for addr in &addrs {
        println!("{addr}");
    }
    if let Some(path) = &options.ready_file {
        let told = json!({"peer_id": peer_id, "addrs": addrs}).to_string();
        // Renamed into place, so that nobody reads half of it.
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, told)
            .and_then(|()| fs::rename(&unfinished, path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
