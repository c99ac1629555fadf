//! How much a request survives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Fault-tolerance levels, each with what the one before survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum FaultTolerance {
    /// Nothing: the first fault ends the request with an error.
    None,
    /// A broken connection: the same peers are asked again.
    Low,
    /// The loss of any peer but the coordinator, any number of times.
    #[default]
    Medium,
    /// The loss of the coordinator as well: other peers keep the journal of a stream too.
    High,
    /// A peer that lies: everything is computed twice, on different peers, and compared.
    Critical,
}

/// Why a text names no level that this build has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ToleranceError {
    /// No level at all.
    #[error(
        "`{0}` is not a fault-tolerance level; the levels are none, low, medium, high and critical"
    )]
    Unknown(String),
}

impl ToleranceError {
    /// For programs, stable.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "invalid_value",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown(_) => {
                "use `none`, `low`, `medium`, `high` or `critical`, or leave it out"
            }
        }
    }
}

impl FaultTolerance {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for FaultTolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FaultTolerance {
    type Err = ToleranceError;

    fn from_str(text: &str) -> Result<Self, ToleranceError> {
        match text {
            "none" => Ok(Self::None),
            "low" => Ok(Self::Low),
            "medium" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            "critical" => Ok(Self::Critical),
            _ => Err(ToleranceError::Unknown(text.chars().take(32).collect())),
        }
    }
}

impl TryFrom<String> for FaultTolerance {
    type Error = ToleranceError;

    fn try_from(text: String) -> Result<Self, ToleranceError> {
        text.parse()
    }
}

impl From<FaultTolerance> for &'static str {
    fn from(level: FaultTolerance) -> Self {
        level.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_as_they_are_written_and_nonsense_is_none() {
        for level in [
            FaultTolerance::None,
            FaultTolerance::Low,
            FaultTolerance::Medium,
            FaultTolerance::High,
            FaultTolerance::Critical,
        ] {
            assert_eq!(level.name().parse(), Ok(level));
        }
        let cases = [
            ("Critical", "invalid_value"),
            ("Medium", "invalid_value"),
            ("", "invalid_value"),
        ];
        for (text, code) in cases {
            let error = text.parse::<FaultTolerance>().unwrap_err();
            assert_eq!(error.code(), code, "{text}");
            assert!(!error.hint().is_empty(), "{text}");
        }
    }
}
