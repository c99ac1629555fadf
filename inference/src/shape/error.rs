//! Why a model cannot be run.

/// A model whose header is sound but which the engine cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The engine does not know the architecture.
    #[error("the architecture {name:?} is not supported; known are {}", known.join(", "))]
    UnknownArchitecture {
        /// `general.architecture` of the file, empty when it has none.
        name: String,
        /// What the engine knows.
        known: Vec<&'static str>,
    },
    /// The engine cannot compute with the quantisation of a tensor.
    #[error(
        "tensor {tensor} is quantised as {name}, which is not supported; use a file quantised as \
         one of {}",
        known.join(", ")
    )]
    UnsupportedQuantisation {
        /// The tensor.
        tensor: String,
        /// Its quantisation.
        name: String,
        /// What the engine knows.
        known: Vec<&'static str>,
    },
    /// A known architecture with something unusual in it.
    #[error("the model needs {feature}, which is not supported; choose another model")]
    UnsupportedFeature {
        /// What the model needs.
        feature: String,
    },
    /// A metadata key is missing or has another type than it must have.
    #[error("the metadata key {key} is missing or of the wrong type; convert the model again")]
    BadKey {
        /// The key.
        key: String,
    },
    /// A size is zero or absurdly large.
    #[error("{key} is {found}, but must lie between 1 and {limit}; the file is corrupt")]
    SizeOutOfRange {
        /// The key, without the name of the architecture.
        key: &'static str,
        /// The value.
        found: u32,
        /// The largest that is accepted.
        limit: u32,
    },
    /// A tensor that the architecture needs is not there.
    #[error("the tensor {tensor} is missing; the file is incomplete or converted wrongly")]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the architecture does not use.
    #[error(
        "the tensor {tensor} is not part of the architecture {architecture} as it is known here; \
         the model is a variant that is not supported"
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The architecture that the file claims.
        architecture: String,
    },
    /// A tensor has other sizes than the metadata says.
    #[error(
        "the tensor {tensor} has the sizes {found:?} where {expected:?} are expected; convert the \
         model again"
    )]
    WrongSizes {
        /// The tensor.
        tensor: String,
        /// Its sizes.
        found: Vec<u64>,
        /// What the metadata asks for.
        expected: Vec<u64>,
    },
}
