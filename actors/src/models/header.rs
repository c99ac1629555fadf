//! Reading the header of a model whose bytes may be on other nodes: a growing prefix is fetched
//! until it parses.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use accel_inference::{Gguf, GgufError, ModelShape};
use accel_storage::{BlockSource, Store, Want};
use cid::Cid;

use super::{Header, ModelsError};

/// The first guess at the length of a header.
const FIRST_PREFIX: u64 = 1 << 20;
/// No honest header is longer.
const LONGEST_PREFIX: u64 = 256 << 20;

/// What was fetched from peers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fetched {
    pub(crate) bytes_fetched: u64,
    pub(crate) blocks_fetched: u64,
}

pub(super) async fn read(
    store: &Store,
    cid: &Cid,
    source: &dyn BlockSource,
) -> Result<(Header, Fetched), ModelsError> {
    let file_len = store.file_len(cid, source).await?;
    let mut fetched = Fetched::default();
    let mut length = FIRST_PREFIX.min(file_len);
    loop {
        let want = Want::from(0..length);
        let report = store.fetch(cid, want, source, &|_| {}).await?;
        fetched.bytes_fetched += report.bytes_fetched;
        fetched.blocks_fetched += report.blocks_fetched;
        let path = store.model_path(cid)?;
        match parse(path, length, file_len).await? {
            Ok(gguf) => return Ok((header(cid, gguf, file_len)?, fetched)),
            Err(GgufError::NeedMore { at_least }) if length < file_len.min(LONGEST_PREFIX) => {
                let next = at_least.max(length.saturating_mul(2));
                length = next.min(file_len).min(LONGEST_PREFIX);
            }
            Err(error) => return Err(bad_file(&cid.to_string(), &error)),
        }
    }
}

/// Parses a prefix on a thread that may block.
async fn parse(
    path: std::path::PathBuf,
    length: u64,
    file_len: u64,
) -> Result<Result<Gguf, GgufError>, ModelsError> {
    let parsing = tokio::task::spawn_blocking(move || {
        let mut prefix = Vec::new();
        let file = std::fs::File::open(&path)?;
        file.take(length).read_to_end(&mut prefix)?;
        Ok::<_, std::io::Error>(Gguf::parse(&prefix, file_len))
    });
    match parsing.await {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(error)) => Err(ModelsError::Internal(format!(
            "reading a header failed: {error}"
        ))),
        Err(_) => Err(ModelsError::Internal(
            "parsing a header panicked".to_owned(),
        )),
    }
}

fn header(cid: &Cid, gguf: Gguf, file_len: u64) -> Result<Header, ModelsError> {
    let shape = shape_of(&gguf, &cid.to_string())?;
    Ok(Header {
        gguf: Arc::new(gguf),
        shape: Arc::new(shape),
        file_len,
    })
}

fn shape_of(gguf: &Gguf, model: &str) -> Result<ModelShape, ModelsError> {
    ModelShape::from_gguf(gguf).map_err(|source| ModelsError::Unsupported {
        model: model.to_owned(),
        source: Box::new(source),
    })
}

fn bad_file(model: &str, error: &GgufError) -> ModelsError {
    ModelsError::BadFile {
        model: model.to_owned(),
        reason: error.to_string(),
    }
}

/// Whether a file on disk is a model that the engine can run. Blocking.
pub(super) fn check_file(path: &Path, model: &str) -> Result<(), ModelsError> {
    let gguf = Gguf::open(path).map_err(|error| bad_file(model, &error))?;
    shape_of(&gguf, model).map(|_| ())
}
