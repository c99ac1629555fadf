//! Models that a command needs as a file on this machine.

use std::path::PathBuf;

use super::block_on;
use crate::failure::Failure;
use crate::sources::known::{self, KnownModel};
use crate::sources::{Obtained, Sources};
use crate::terminal;

/// A path, or the file of a known model, which is obtained if need be.
pub fn local_model(model: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(model);
    if path.is_file() {
        return Ok(path);
    }
    match known::find(model) {
        Some(known) => block_on(obtain(known)),
        None => Err(no_such_model(model)),
    }
}

/// Obtains a known model and tells where it came from.
pub async fn obtain(model: &'static KnownModel) -> Result<PathBuf, Failure> {
    let obtained = Sources::from_env()?.obtain(model).await?;
    tell(&obtained);
    Ok(obtained.path)
}

/// Obtains `hf:OWNER/REPO/FILE` and tells where it came from.
pub async fn obtain_hub(reference: &str) -> Result<PathBuf, Failure> {
    let obtained = Sources::from_env()?.obtain_hub(reference).await?;
    tell(&obtained);
    Ok(obtained.path)
}

fn tell(obtained: &Obtained) {
    let (path, source) = (obtained.path.display(), obtained.source);
    terminal::note(&format!("{path} (from: {source})"));
}

/// A number of threads that the engine takes.
pub fn threads(text: &str) -> Result<usize, String> {
    let most = accel_inference::MAX_THREADS;
    match text.parse() {
        Ok(threads) if (1..=most).contains(&threads) => Ok(threads),
        _ => Err(format!("not a number in 1..={most}")),
    }
}

/// Neither a file nor a known name.
pub fn no_such_model(model: &str) -> Failure {
    let known = known::names().join(", ");
    Failure::new(format!(
        "there is no file `{model}`, and no known model has this name"
    ))
    .with_hint(format!("give the path of a GGUF file, or one of: {known}"))
}
