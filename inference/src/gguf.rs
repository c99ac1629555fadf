//! GGUF model files: the header is parsed here, by hand and on the assumption that it is hostile.
//!
//! A header may come from a stranger over the network, so every length is checked against the
//! bytes at hand before anything is allocated for it, and no value can make the parser panic.
//! A node that does not hold the file yet parses a growing prefix: [`GgufError::NeedMore`] says
//! how many bytes to fetch before the next attempt is worthwhile.
//!
//! * [`Gguf`] – a parsed header: [`Metadata`], [`TensorInfo`]s and where the tensor data begins;
//! * [`writer`] – writes small valid files (used by [`crate::synthetic`] and by tests).

mod error;
mod metadata;
mod parse;
mod strings;
mod tensor;
pub mod writer;

pub use error::GgufError;
pub use metadata::{Array, Metadata, Value};
pub use strings::Strings;
pub use tensor::{TensorInfo, TensorType};

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// No header may be longer than this; the largest seen in the field are about 16 MiB
/// (vocabularies of 262,144 tokens).
pub const HEADER_LIMIT: u64 = 256 << 20;

/// A first prefix that is worth reading: most headers are shorter than this.
const FIRST_PREFIX: u64 = 1 << 20;

/// A parsed GGUF header. The tensor data itself is not read.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Format version, 2 or 3.
    pub version: u32,
    /// The key–value pairs.
    pub metadata: Metadata,
    /// Every tensor, in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Tensors begin at multiples of this.
    pub alignment: u64,
    /// Where the tensor data begins, from the start of the file.
    pub data_offset: u64,
    /// Length of the whole file in bytes.
    pub file_len: u64,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Parses the header out of the first bytes of a file of `file_len` bytes.
    ///
    /// When `prefix` ends inside the header the answer is [`GgufError::NeedMore`]; when the file
    /// itself is too short for what its header promises, [`GgufError::Truncated`].
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<Self, GgufError> {
        parse::header(prefix, file_len)
    }

    /// Reads and parses the header of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let read_error = |source| GgufError::Io {
            path: path.to_path_buf(),
            source,
        };
        let found = std::fs::metadata(path).map_err(read_error)?;
        if !found.is_file() {
            // Opening a pipe would wait for a writer.
            let kind = std::io::ErrorKind::InvalidInput;
            return Err(read_error(std::io::Error::new(kind, "it is not a file")));
        }
        let mut file = File::open(path).map_err(read_error)?;
        let file_len = found.len();
        let mut prefix = Vec::new();
        let mut wanted = FIRST_PREFIX.min(file_len);
        loop {
            let missing = wanted.saturating_sub(prefix.len() as u64);
            let read = Read::by_ref(&mut file)
                .take(missing)
                .read_to_end(&mut prefix)
                .map_err(read_error)?;
            if (read as u64) < missing {
                return Err(GgufError::Truncated {
                    needed: wanted,
                    file_len: prefix.len() as u64,
                });
            }
            match Self::parse(&prefix, file_len) {
                Err(GgufError::NeedMore { at_least }) => {
                    // Doubling keeps the number of attempts logarithmic in the header's length.
                    let doubled = (prefix.len() as u64).saturating_mul(2);
                    wanted = at_least.max(doubled).min(file_len);
                }
                outcome => return outcome,
            }
        }
    }

    /// The tensor of this name, if the file has one.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&at| self.tensors.get(at))
    }

    /// `general.architecture`, e.g. `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.str("general.architecture")
    }

    /// Absolute byte range of a tensor of this file.
    pub fn tensor_range(&self, tensor: &TensorInfo) -> std::ops::Range<u64> {
        // Both sums were checked against the file length when the header was parsed.
        let start = self.data_offset + tensor.offset;
        start..start + tensor.bytes
    }
}
