//! Why a model cannot be had or cannot be run.

use thiserror::Error;

use crate::error::ErrorKind;

/// Why a model cannot be had or cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelsError {
    /// Neither here nor at any peer.
    #[error("there is no model {0}: not on this node, and no peer offers it")]
    Unknown(String),
    /// A CID whose blocks nobody has, within the time limit.
    #[error("nobody in the swarm has {cid} (asked {peers} peers for up to {seconds} s)")]
    NotFound {
        /// The CID.
        cid: String,
        /// How many peers are connected.
        peers: usize,
        /// The time limit.
        seconds: u64,
    },
    /// A path that holds no file.
    #[error("there is no file at {0}")]
    NoFile(String),
    /// The file is no sound GGUF.
    #[error("{model} is not a usable GGUF file: {reason}")]
    BadFile {
        /// The model.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A sound file that the engine cannot run.
    #[error("{model}: {source}")]
    Unsupported {
        /// The model.
        model: String,
        /// What is unsupported.
        source: Box<accel_inference::ModelError>,
    },
    /// The file's tokenizer or chat template cannot be used.
    #[error("{model} cannot be used for text: {reason}")]
    NoText {
        /// The model.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(Box<accel_storage::StorageError>),
    /// A fault of the node.
    #[error("{0}")]
    Internal(String),
}

impl ModelsError {
    /// How a client must react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) | Self::NotFound { .. } | Self::NoFile(_) => ErrorKind::NotFound,
            Self::BadFile { .. } | Self::Unsupported { .. } | Self::NoText { .. } => {
                ErrorKind::BadRequest
            }
            Self::Storage(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// For programs, stable.
    pub fn code(&self) -> &str {
        match self {
            Self::Unknown(_) => "model_not_found",
            Self::NotFound { .. } => "content_not_found",
            Self::NoFile(_) => "file_not_found",
            Self::BadFile { .. } => "bad_model_file",
            Self::Unsupported { .. } => "unsupported_model",
            Self::NoText { .. } => "no_tokenizer",
            Self::Storage(_) => "storage",
            Self::Internal(_) => "internal",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::Unknown(_) => {
                "`accel model ls` lists what can be had; `accel model add PATH` adds a file"
            }
            Self::NotFound { .. } => {
                "start a node that has the model, or add its file with `accel model add PATH`"
            }
            Self::NoFile(_) => "check the path; it is read on the machine of the node",
            Self::BadFile { .. } => "get the file again and compare its sha256",
            Self::Unsupported { .. } => "choose another file of the model",
            Self::NoText { .. } => "convert the model again, with its tokenizer",
            Self::Storage(_) => "check the data directory and the space on its disk",
            Self::Internal(_) => "the log of the node says more",
        };
        text.to_owned()
    }
}

// Boxed, because an error as large as this would make every result large.
impl From<accel_storage::StorageError> for ModelsError {
    fn from(error: accel_storage::StorageError) -> Self {
        Self::Storage(Box::new(error))
    }
}
