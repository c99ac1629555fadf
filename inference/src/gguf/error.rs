//! What can be wrong with a model file's header.

use std::path::PathBuf;

/// Why a GGUF header could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The prefix ends inside the header: read at least this many bytes and parse again.
    #[error("the header is longer than the bytes read so far; read at least {at_least} bytes")]
    NeedMore {
        /// Length of the shortest prefix with which another attempt can get further.
        at_least: u64,
    },
    /// The file does not begin with the magic bytes.
    #[error("not a gguf file: it begins with {found:02x?}; convert the model to gguf first")]
    NotGguf {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that this parser does not know.
    #[error("gguf version {version} is not supported (known: 2, 3); convert the model again")]
    UnsupportedVersion {
        /// The version in the file.
        version: u32,
    },
    /// The file was written for a big-endian machine.
    #[error("the file is big-endian; convert the model again for little-endian machines")]
    BigEndian,
    /// The file ends before what its header promises.
    #[error("the file is truncated: it needs {needed} bytes and has {file_len}; download it again")]
    Truncated {
        /// Length that the header asks for.
        needed: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// The header contradicts itself.
    #[error("the file is corrupt near byte {offset}: {what}; download it again")]
    Corrupt {
        /// Where the trouble was noticed.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A length in the header is beyond any honest model.
    #[error("the header asks for {found} {what} (the limit is {limit}); the file is corrupt")]
    LimitExceeded {
        /// What is counted.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A tensor has a type number that no known version of the format defines.
    #[error("tensor {tensor} has the unknown type {id}; a newer version of accel may know it")]
    UnknownTensorType {
        /// Name of the tensor.
        tensor: String,
        /// The number in the file.
        id: u32,
    },
    /// Reading the file failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}
