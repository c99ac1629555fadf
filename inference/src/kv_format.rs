//! How keys and values are kept in the cache.

use crate::cpu;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The form of the numbers in a KV cache. Stages of different forms give different bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// Half precision.
    #[default]
    F16,
    /// Eight bits, and a scale for every [`KvFormat::GROUP`] numbers of a head.
    Q8,
}

/// No form of the cache has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not one of f16, q8")]
pub struct UnknownKvFormat {
    /// What was asked for.
    pub name: String,
}

impl KvFormat {
    /// Every form.
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8];

    /// Numbers of a head that share a scale; the last of a head may be fewer.
    pub const GROUP: usize = 32;

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// The numerics class of the stages that keep their cache so.
    pub fn numerics(self) -> &'static str {
        cpu::numerics(self)
    }

    /// The form that stages of a numerics class keep, where the class is one of this build's.
    pub fn of_numerics(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kv| kv.numerics() == class)
    }

    /// Bytes that the keys and values of one token take in one layer.
    pub fn token_bytes(self, kv_heads: usize, head_dim: usize) -> usize {
        let head = match self {
            Self::F16 => head_dim * size_of::<u16>(),
            Self::Q8 => head_dim + head_dim.div_ceil(Self::GROUP) * size_of::<u16>(),
        };
        2 * kv_heads * head
    }

    /// What exported rows begin with. Codes are never used again for another form.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::F16 => 1,
            Self::Q8 => 2,
        }
    }

    pub(crate) fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kv| kv.code() == code)
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, UnknownKvFormat> {
        let found = Self::ALL.into_iter().find(|kv| kv.name() == name);
        found.ok_or_else(|| UnknownKvFormat {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_classes_and_codes_lead_back_to_the_form() {
        for kv in KvFormat::ALL {
            assert_eq!(kv.name().parse(), Ok(kv));
            assert_eq!(KvFormat::of_numerics(kv.numerics()), Some(kv));
            assert_eq!(KvFormat::of_code(kv.code()), Some(kv));
        }
        assert!("q4".parse::<KvFormat>().is_err());
        assert_eq!(KvFormat::of_numerics("candle-1"), None);
        assert_eq!(KvFormat::of_code(0), None);
    }

    #[test]
    fn eight_bits_take_little_more_than_half_of_sixteen() {
        assert_eq!(KvFormat::F16.token_bytes(3, 64), 768);
        assert_eq!(KvFormat::Q8.token_bytes(3, 64), 2 * 3 * (64 + 4));
        assert_eq!(KvFormat::Q8.token_bytes(1, 80), 2 * (80 + 6));
    }
}
