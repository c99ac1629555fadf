//! placeholder
pub mod membership;
pub mod wire;
