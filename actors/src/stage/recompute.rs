//! Computing again what a peer signed, on this node alone and from the tokens: what it was given, and
//! what an honest stage makes of that.

use std::path::PathBuf;
use std::sync::Arc;

use accel_inference::{
    Gguf, LayerRange, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput, load_stage,
    sample,
};
use accel_p2p::Link;
use accel_p2p::wire::{SessionId, StepInput};

use super::ledger::StageKey;
use super::obtain::{Layers, bad_request};
use super::prepare::short_of_memory;
use super::seat::params_of;
use super::server::StageDeps;
use crate::account::{self, Chain};
use crate::error::Failure;
use crate::evidence::Charge;
use crate::models::Header;
use crate::session::machine::CHUNK;

/// Layers that are loaded for it, with their memory.
struct Loan {
    deps: Arc<StageDeps>,
    session: SessionId,
    key: StageKey,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.deps.shelf.release(self.session, &self.key);
    }
}

/// What the peer was given and what it should have made of it, at the position of its claim.
pub(crate) async fn recompute(
    deps: &Arc<StageDeps>,
    charge: Charge,
) -> Result<(Link, Link), Failure> {
    let layers = charge.layers();
    let own = obtain(&charge, layers);
    let (header, _) = own.header(deps).await?;
    check(&charge, &header)?;
    let mut loans = vec![borrow(deps, &charge, &header, layers).await?];
    if layers.first > 0 {
        let before = LayerRange::new(0, layers.first);
        loans.push(borrow(deps, &charge, &header, before).await?);
    }
    let path = deps.store.model_path(&charge.claim.model);
    let path = path.map_err(|error| failed(&error.to_string()))?;
    let options = LoadOptions {
        threads: deps.threads,
        kv: deps.kv,
        kv_bytes: Some(deps.shelf.limit()),
        ..LoadOptions::default()
    };
    let leave = deps.shelf.leave_to_load().await;
    let gguf = Arc::clone(&header.gguf);
    let work = tokio::task::spawn_blocking(move || {
        let bench = Bench {
            path,
            gguf,
            options,
        };
        let links = bench.run(&charge);
        drop((leave, loans));
        links
    });
    match work.await {
        Ok(links) => links,
        Err(_) => Err(failed("computing it panicked")),
    }
}

fn obtain(charge: &Charge, layers: LayerRange) -> Layers {
    Layers {
        model: charge.claim.model,
        model_bytes: charge.model_bytes,
        layers,
        total_layers: charge.claim.total_layers,
        providers: Vec::new(),
    }
}

/// The model has such tokens, and so many.
fn check(charge: &Charge, header: &Header) -> Result<(), Failure> {
    let shape = &header.shape;
    if charge.tokens.len() as u64 > u64::from(shape.context) {
        return Err(bad_request(
            "it is longer than the context of the model".into(),
        ));
    }
    match charge.tokens.iter().all(|token| *token < shape.vocab) {
        true => Ok(()),
        false => Err(bad_request("it has tokens that the model has not".into())),
    }
}

/// Reserves memory for layers and fetches them.
async fn borrow(
    deps: &Arc<StageDeps>,
    charge: &Charge,
    header: &Header,
    layers: LayerRange,
) -> Result<Loan, Failure> {
    let wanted = obtain(charge, layers);
    let (session, key) = (SessionId::random(), wanted.key());
    let kv = header
        .shape
        .kv_bytes_per_token_layer(deps.kv)
        .saturating_mul(u64::from(layers.len()))
        .saturating_mul(charge.tokens.len() as u64);
    let weights = header.shape.stage_bytes(&layers);
    let reserved = deps.shelf.reserve(session, key, weights, kv);
    reserved.map_err(short_of_memory)?;
    let loan = Loan {
        deps: Arc::clone(deps),
        session,
        key,
    };
    wanted.fetch(deps, header, &|_| {}).await?;
    Ok(loan)
}

struct Bench {
    path: PathBuf,
    gguf: Arc<Gguf>,
    options: LoadOptions,
}

impl Bench {
    fn load(&self, layers: LayerRange, charge: &Charge) -> Result<Box<dyn Stage>, Failure> {
        let stage = load_stage(&self.path, &self.gguf, layers, &self.options);
        let mut stage = stage.map_err(|error| failed(&error.to_string()))?;
        if stage.numerics() != charge.claim.numerics {
            return Err(other_class(stage.numerics(), &charge.claim.numerics));
        }
        stage.open(0, charge.tokens.len()).map_err(not_computed)?;
        Ok(stage)
    }

    fn run(&self, charge: &Charge) -> Result<(Link, Link), Failure> {
        let layers = charge.layers();
        let mut before = match layers.first {
            0 => None,
            first => Some(self.load(LayerRange::new(0, first), charge)?),
        };
        let mut stage = self.load(layers, charge)?;
        let mut given = Chain::new(&charge.nonce, layers.first);
        let mut made = Chain::new(&charge.nonce, layers.end);
        let mut drawn = None;
        let mut position = 0;
        for chunk in charge.tokens.chunks(CHUNK) {
            let tokens = StageInput::Tokens(chunk.to_vec());
            let input = match &mut before {
                Some(before) => {
                    let output = before.step(0, position, tokens, Logits::None);
                    let output = output.map_err(not_computed)?;
                    extend(&mut given, &output)?;
                    as_input(output)?
                }
                None => {
                    given.extend_tokens(chunk);
                    tokens
                }
            };
            let is_last = position + chunk.len() == charge.tokens.len();
            let want = if is_last { Logits::Last } else { Logits::None };
            let output = stage.step(0, position, input, want).map_err(not_computed)?;
            position += chunk.len();
            match output {
                StageOutput::Logits { data, .. } => drawn = Some(draw(charge, &given, &data)?),
                StageOutput::Hidden { .. } => extend(&mut made, &output)?,
                StageOutput::Nothing => {}
            }
        }
        let length = charge.tokens.len() as u64;
        let links = given.at(length).zip(drawn.or_else(|| made.at(length)));
        links.ok_or_else(|| failed("not all positions were computed"))
    }
}

/// What an honest last stage draws.
fn draw(charge: &Charge, given: &Chain, logits: &[f32]) -> Result<Link, Failure> {
    let position = charge.tokens.len() as u64;
    let params = params_of(&charge.claim.sampling);
    let drawn = sample(logits, &params, position).map_err(|error| failed(&error.to_string()))?;
    let given = given
        .at(position)
        .ok_or_else(|| failed("positions are missing"))?;
    Ok(account::drawn(
        &given,
        position,
        drawn.token,
        drawn.logprob,
        &drawn.top,
    ))
}

fn extend(chain: &mut Chain, output: &StageOutput) -> Result<(), Failure> {
    let StageOutput::Hidden { rows, data } = output else {
        return Err(failed("the layers are not those of a stage in the middle"));
    };
    // As it would travel.
    let StepInput::Hidden { data, .. } = StepInput::hidden(*rows as u32, data) else {
        return Ok(());
    };
    chain.extend(&data, data.len() / (*rows).max(1));
    Ok(())
}

fn as_input(output: StageOutput) -> Result<StageInput, Failure> {
    match output {
        StageOutput::Hidden { rows, data } => Ok(StageInput::Hidden { rows, data }),
        _ => Err(failed("the layers are not those of a stage in the middle")),
    }
}

fn not_computed(error: StageError) -> Failure {
    failed(&error.to_string())
}

fn failed(reason: &str) -> Failure {
    let hint = "check it on a node that has the model, or memory for it";
    let message = format!("it cannot be computed again here: {reason}");
    Failure::unavailable("not_recomputed", message, hint)
}

fn other_class(own: &str, theirs: &str) -> Failure {
    let message = format!("this node computes in the numerics class {own}, the peer in {theirs}");
    let hint = "check it on a node of that class: results of different classes are not comparable";
    Failure::unavailable("mixed_numerics", message, hint)
}
