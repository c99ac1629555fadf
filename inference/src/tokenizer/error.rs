//! What can be wrong with a vocabulary, or with a text.

/// Why a tokenizer could not be made or could not take a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file lacks a key that every tokenizer needs.
    #[error(
        "the model file has no {key}; it was converted without its tokenizer, convert it again"
    )]
    Missing {
        /// The metadata key.
        key: &'static str,
    },
    /// A family of tokenizers that is not built.
    #[error("the tokenizer model {name:?} is not supported (known: {known}); use another model")]
    UnknownModel {
        /// `tokenizer.ggml.model` of the file.
        name: String,
        /// The supported families.
        known: String,
    },
    /// A pre-tokenizer that is not built: guessing one would give wrong tokens.
    #[error("the pre-tokenizer {name:?} is not supported (known: {known}); use another model")]
    UnknownPreTokenizer {
        /// `tokenizer.ggml.pre` of the file.
        name: String,
        /// The supported ones.
        known: String,
    },
    /// The vocabulary contradicts itself.
    #[error("the model's tokenizer is corrupt: {reason}; download or convert the model again")]
    Corrupt {
        /// What is wrong.
        reason: String,
    },
    /// The text is longer than any context.
    #[error("the text has {bytes} bytes (the limit is {limit}); send a shorter one")]
    TooLong {
        /// Length of the text.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The vocabulary can neither spell a character nor name it unknown.
    #[error("the model's vocabulary cannot spell {character:?}; leave it out of the text")]
    Unspeakable {
        /// The character.
        character: String,
    },
    /// The pre-tokenizer's pattern gave up on the text.
    #[error("the pre-tokenizer cannot split the text: {0}; break up its longest runs")]
    Split(#[source] Box<fancy_regex::Error>),
}
