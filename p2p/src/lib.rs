//! placeholder
pub mod membership;
pub mod tensor;
pub mod wire;
