//! From what a person calls a model (name, CID, path) to what the engine needs of it: the header
//! for whoever serves layers; tokenizer and template, too, for whoever takes requests.
//!
//! A header is fetched by byte range, from the swarm if need be, within a time limit; what was
//! read is kept for the next request.
//!
//! | File | Holds |
//! |---|---|
//! | `cache.rs` | headers and cards that were read |
//! | `header.rs` | reading a header that may be elsewhere |
//! | `error.rs` | why a model cannot be had |

mod cache;
mod error;
mod header;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use accel_inference::{ChatTemplate, Gguf, ModelShape, Tokenizer};
use accel_p2p::PeerId;
use accel_storage::{ModelRecord, StorageError, Store, Want, canonical};
use cid::Cid;

use crate::directory::{Directory, PeerRecord, snapshot};
use crate::peers::Peers;
use crate::placement::providers;
use crate::supervisor::ActorRef;
use crate::telemetry::Telemetry;
use cache::Cache;
pub use error::ModelsError;
pub(crate) use header::Fetched;

/// Headers and cards that are kept.
const KEPT: usize = 8;

/// Told with bytes done and bytes in all.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A model by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelRef {
    pub(crate) cid: Cid,
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// What is known of a model once its header was read.
pub(crate) struct Header {
    pub(crate) gguf: Arc<Gguf>,
    pub(crate) shape: Arc<ModelShape>,
    pub(crate) file_len: u64,
}

/// A header with everything that turns text into tokens and back.
#[derive(Clone)]
pub(crate) struct Card {
    pub(crate) model: ModelRef,
    pub(crate) header: Arc<Header>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<Arc<ChatTemplate>>,
}

/// See the module.
pub(crate) struct Models {
    store: Store,
    peers: Arc<dyn Peers>,
    directory: ActorRef<Directory>,
    header_timeout: Duration,
    telemetry: Telemetry,
    headers: Cache<Arc<Header>>,
    cards: Cache<Card>,
}

impl Models {
    pub(crate) fn new(
        store: Store,
        peers: Arc<dyn Peers>,
        directory: ActorRef<Directory>,
        header_timeout: Duration,
        telemetry: Telemetry,
    ) -> Self {
        Self {
            store,
            peers,
            directory,
            header_timeout,
            telemetry,
            headers: Cache::new(KEPT),
            cards: Cache::new(KEPT),
        }
    }

    /// Finds a model by name, CID or path. A path is added to the store first. What is found by
    /// CID alone may turn out to be nowhere when its header is asked for.
    pub(crate) async fn resolve(&self, model: &str) -> Result<Found, ModelsError> {
        if let Some(record) = self.store.resolve(model)? {
            return Ok(Found::here(record));
        }
        let records = snapshot(&self.directory).await;
        if let Ok(cid) = model.parse::<Cid>() {
            let cid = canonical(&cid);
            let name = offered_name(&records, &cid).unwrap_or_else(|| cid.to_string());
            return Ok(Found { cid, name });
        }
        if let Some((cid, name)) = offered(&records, model) {
            return Ok(Found { cid, name });
        }
        match looks_like_path(model) {
            true => {
                let quiet: Progress = Arc::new(|_, _| {});
                self.add(PathBuf::from(model), None, quiet)
                    .await
                    .map(Found::here)
            }
            false => Err(ModelsError::Unknown(model.to_owned())),
        }
    }

    /// Everything about a model that requests need.
    pub(crate) async fn card(&self, model: &str) -> Result<Card, ModelsError> {
        let Found { cid, name } = self.resolve(model).await?;
        let providers = self.providers(&cid).await;
        let (header, _) = self.header(&cid, providers).await?;
        if let Some(card) = self.cards.get(&cid) {
            return Ok(card);
        }
        let model = ModelRef {
            cid,
            name,
            bytes: header.file_len,
        };
        let card = read_card(model, header).await?;
        self.cards.put(cid, card.clone());
        Ok(card)
    }

    /// The header of a model and what was fetched for it just now.
    pub(crate) async fn header(
        &self,
        cid: &Cid,
        providers: Vec<PeerId>,
    ) -> Result<(Arc<Header>, Fetched), ModelsError> {
        if let Some(header) = self.headers.get(cid) {
            return Ok((header, Fetched::default()));
        }
        let asked = providers.len().max(self.peers.connected());
        let source = self.peers.blocks(providers);
        let reading = header::read(&self.store, cid, source.as_ref());
        let nobody = || ModelsError::NotFound {
            cid: cid.to_string(),
            peers: asked,
            seconds: self.header_timeout.as_secs(),
        };
        let read = tokio::time::timeout(self.header_timeout, reading).await;
        let (header, fetched) = match read {
            Ok(Err(ModelsError::Storage(error))) if is_missing(&error) => return Err(nobody()),
            Ok(read) => read?,
            Err(_) => return Err(nobody()),
        };
        self.telemetry
            .stages()
            .fetched(fetched.bytes_fetched, fetched.blocks_fetched);
        if fetched.bytes_fetched > 0 {
            self.keep_record(cid, header.file_len).await;
        }
        let header = Arc::new(header);
        self.headers.put(*cid, Arc::clone(&header));
        Ok((header, fetched))
    }

    async fn providers(&self, cid: &Cid) -> Vec<PeerId> {
        let records = snapshot(&self.directory).await;
        let own = self.peers.endpoint().peer;
        let mut providers = providers(&records, cid);
        providers.retain(|peer| *peer != own);
        providers
    }

    /// Enters a model of which some bytes are here now, under the name that its peers give it.
    pub(crate) async fn keep_record(&self, cid: &Cid, bytes: u64) {
        let known = self.store.resolve(&cid.to_string());
        if matches!(&known, Ok(Some(record)) if record.name != cid.to_string()) {
            return;
        }
        let records = snapshot(&self.directory).await;
        let name = offered_name(&records, cid).unwrap_or_else(|| cid.to_string());
        let record = new_record(*cid, name, bytes);
        if let Err(error) = self.store.record(record) {
            tracing::warn!(%cid, %error, "the model is not in the catalogue");
        }
    }

    /// Adds a file, after a look at its header: what the engine cannot run is refused.
    pub(crate) async fn add(
        &self,
        path: PathBuf,
        name: Option<String>,
        progress: Progress,
    ) -> Result<ModelRecord, ModelsError> {
        let shown = path.display().to_string();
        if !path.is_file() {
            return Err(ModelsError::NoFile(shown));
        }
        let (file, model) = (path.clone(), shown.clone());
        let checked = tokio::task::spawn_blocking(move || header::check_file(&file, &model)).await;
        checked.map_err(|_| ModelsError::Internal(format!("reading {shown} panicked")))??;
        let name = name.unwrap_or_else(|| name_of(&path));
        let record = self
            .store
            .add_file(&path, &name, &move |done, total| progress(done, total))
            .await?;
        Ok(record)
    }

    /// Fetches all of a model.
    pub(crate) async fn pull(
        &self,
        model: &str,
        name: Option<String>,
        progress: Progress,
    ) -> Result<ModelRecord, ModelsError> {
        let found = self.resolve(model).await?;
        let providers = self.providers(&found.cid).await;
        let (header, _) = self.header(&found.cid, providers.clone()).await?;
        let source = self.peers.blocks(providers);
        let told = move |now: accel_storage::FetchProgress| {
            progress(now.done_bytes, now.total_bytes);
        };
        let report = self
            .store
            .fetch(&found.cid, Want::All, source.as_ref(), &told)
            .await?;
        self.telemetry
            .stages()
            .fetched(report.bytes_fetched, report.blocks_fetched);
        let name = name.unwrap_or(found.name);
        self.store
            .record(new_record(found.cid, name, header.file_len))?;
        let record = self.store.resolve(&found.cid.to_string())?;
        record.ok_or_else(|| ModelsError::Internal("the model was removed meanwhile".into()))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Forgets what was read of a model.
    pub(crate) fn forget(&self, cid: &Cid) {
        self.headers.remove(cid);
        self.cards.remove(cid);
    }
}

/// A model that somebody has, or that was named by its CID.
pub(crate) struct Found {
    pub(crate) cid: Cid,
    pub(crate) name: String,
}

impl Found {
    fn here(record: ModelRecord) -> Self {
        Self {
            cid: record.cid,
            name: record.name,
        }
    }
}

/// Whether the trouble is that no peer gave a block.
fn is_missing(error: &StorageError) -> bool {
    matches!(error, StorageError::Source { .. })
}

async fn read_card(model: ModelRef, header: Arc<Header>) -> Result<Card, ModelsError> {
    let name = model.name.clone();
    let gguf = Arc::clone(&header.gguf);
    let reading = tokio::task::spawn_blocking(move || {
        let no_text = |reason: String| ModelsError::NoText {
            model: name.clone(),
            reason,
        };
        let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|error| no_text(error.to_string()))?;
        let template =
            ChatTemplate::from_gguf(&gguf).map_err(|error| no_text(error.to_string()))?;
        Ok::<_, ModelsError>((Arc::new(tokenizer), template.map(Arc::new)))
    });
    let read = reading.await;
    let read = read.map_err(|_| ModelsError::Internal("reading the tokenizer panicked".into()))?;
    let (tokenizer, template) = read?;
    Ok(Card {
        model,
        header,
        tokenizer,
        template,
    })
}

fn new_record(cid: Cid, name: String, bytes: u64) -> ModelRecord {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    ModelRecord {
        cid,
        name,
        bytes,
        present_bytes: 0,
        pinned: false,
        added_unix: now.map_or(0, |now| now.as_secs()),
    }
}

/// What peers call a model, if not by its CID; of several names, the one that most say, and of
/// those the first in order.
fn offered_name(records: &[PeerRecord], cid: &Cid) -> Option<String> {
    let nameless = cid.to_string();
    let offers = records.iter().flat_map(|record| &record.body.models);
    let mut votes = std::collections::BTreeMap::new();
    for offer in offers.filter(|offer| offer.cid == *cid && offer.name != nameless) {
        *votes.entry(offer.name.clone()).or_insert(0_usize) += 1;
    }
    let most = votes.values().max().copied()?;
    votes
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(name, _)| name)
}

/// A model that peers offer under a name; complete copies count before parts.
fn offered(records: &[PeerRecord], name: &str) -> Option<(Cid, String)> {
    let offers = records
        .iter()
        .filter(|record| record.connected)
        .flat_map(|record| &record.body.models)
        .filter(|offer| offer.name == name);
    let best = offers.max_by_key(|offer| (offer.complete, offer.present_bytes, offer.cid))?;
    Some((best.cid, best.name.clone()))
}

fn looks_like_path(model: &str) -> bool {
    let path = Path::new(model);
    path.is_file() || path.components().count() > 1 || model.ends_with(".gguf")
}

/// What a file is called as a model: its name without the ending.
fn name_of(path: &Path) -> String {
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| "model".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_models_are_told_apart() {
        assert!(looks_like_path("/tmp/model.bin"));
        assert!(looks_like_path("model.gguf"));
        assert!(!looks_like_path("SmolLM2-135M-Instruct.Q4_1"));
        assert_eq!(
            name_of(Path::new("/x/SmolLM2-135M.Q4_1.gguf")),
            "SmolLM2-135M.Q4_1"
        );
    }
}
