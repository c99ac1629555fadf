//! A short measurement of the engine's own arithmetic.

use super::{chosen_isa, cores};
use crate::cpu::Probe;
use crate::stage::MAX_THREADS;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Bytes of quantised weights per second, in units of 10⁹, that a matrix–vector product gets
    /// through: what bounds the decoding of one sequence.
    pub matvec_gb_s: f32,
}

/// Multiplies a matrix in `Q4_0` with a vector for a fifth of a second. `threads` as for loading
/// a stage.
pub fn measure(threads: Option<usize>) -> Measured {
    let threads = threads.unwrap_or_else(cores).clamp(1, MAX_THREADS);
    let probe = chosen_isa().ok().and_then(|isa| Probe::new(threads, isa));
    Measured {
        matvec_gb_s: probe.map_or(0.0, |mut probe| probe.matvec_gb_s() as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_gives_a_positive_number() {
        let measured = measure(Some(2));
        assert!(measured.matvec_gb_s.is_finite() && measured.matvec_gb_s > 0.0);
    }
}
