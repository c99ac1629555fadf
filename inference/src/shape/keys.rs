//! Access to the metadata keys of one architecture.

use super::ModelError;
use crate::gguf::Gguf;

/// Reads `ARCHITECTURE.key`, with typed errors.
pub(crate) struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(gguf: &'a Gguf, architecture: &'a str) -> Self {
        Self { gguf, architecture }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn bad(&self, key: &str) -> ModelError {
        ModelError::BadKey {
            key: self.full(key),
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.gguf.metadata.get(&self.full(key)).is_some()
    }

    pub(crate) fn u32(&self, key: &str) -> Result<u32, ModelError> {
        let value = self.gguf.metadata.u32(&self.full(key));
        value.ok_or_else(|| self.bad(key))
    }

    pub(crate) fn optional_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.has(key).then(|| self.u32(key)).transpose()
    }

    pub(crate) fn u32_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.optional_u32(key)?.unwrap_or(default))
    }

    /// A finite float above zero: every float that the architectures read is one.
    pub(crate) fn positive(&self, key: &str) -> Result<f32, ModelError> {
        let value = self.gguf.metadata.f32(&self.full(key));
        value
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| self.bad(key))
    }

    pub(crate) fn positive_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        if self.has(key) {
            self.positive(key)
        } else {
            Ok(default)
        }
    }

    pub(crate) fn str(&self, key: &str) -> Option<&'a str> {
        self.gguf.metadata.str(&self.full(key))
    }
}
