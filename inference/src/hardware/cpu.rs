//! The processor: its cores, and which of the kernels' instruction sets it has.

use std::sync::OnceLock;

/// The variable that forces the kernels of one instruction set.
const ISA_VARIABLE: &str = "ACCEL_ISA";

/// An instruction set that the kernels are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IsaName {
    /// Plain instructions of the architecture.
    Scalar,
    /// x86-64: AVX2, FMA and F16C.
    Avx2,
    /// x86-64: AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// x86-64: the same, and AMX-INT8 for several rows. On Linux, which has to permit it.
    Amx,
    /// AArch64: NEON, and the dot products of ARMv8.2 where the processor has them.
    Neon,
}

impl IsaName {
    const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Amx,
        Self::Neon,
    ];

    /// The name in `ACCEL_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }
}

impl std::fmt::Display for IsaName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the engine cannot run as asked on this processor.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// Kernels were asked for that this processor cannot run, or that do not exist.
    #[error(
        "the instruction set {asked} (ACCEL_ISA) is not available; this machine has {}",
        available.join(", ")
    )]
    IsaUnavailable {
        /// What was asked for.
        asked: String,
        /// What there is.
        available: Vec<&'static str>,
    },
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// The instruction sets that this machine has kernels for, the best last.
pub fn isas() -> &'static [IsaName] {
    static FOUND: OnceLock<Vec<IsaName>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let all = IsaName::ALL.into_iter();
        all.filter(|isa| machine_has(*isa)).collect()
    })
}

#[cfg(target_arch = "x86_64")]
fn machine_has(isa: IsaName) -> bool {
    match isa {
        IsaName::Scalar => true,
        IsaName::Avx2 => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
        IsaName::Avx512 => {
            machine_has(IsaName::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
        }
        IsaName::Amx => machine_has(IsaName::Avx512) && has_tiles(),
        IsaName::Neon => false,
    }
}

/// Whether the processor has AMX-INT8, which the standard library has no stable name for, and the
/// system lets this process use it.
#[cfg(target_arch = "x86_64")]
fn has_tiles() -> bool {
    /// `AMX-TILE` and `AMX-INT8` in `EDX` of leaf 7.
    const TILES: u32 = 1 << 24 | 1 << 25;
    let leaves = std::arch::x86_64::__cpuid(0).eax;
    leaves >= 7
        && std::arch::x86_64::__cpuid_count(7, 0).edx & TILES == TILES
        && crate::cpu::tiles_are_permitted()
}

#[cfg(target_arch = "aarch64")]
fn machine_has(isa: IsaName) -> bool {
    match isa {
        IsaName::Scalar => true,
        IsaName::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        IsaName::Avx2 | IsaName::Avx512 | IsaName::Amx => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn machine_has(isa: IsaName) -> bool {
    isa == IsaName::Scalar
}

/// The instruction set that `ACCEL_ISA` asks for, or the best that the machine has.
pub fn chosen_isa() -> Result<IsaName, CpuError> {
    match std::env::var_os(ISA_VARIABLE) {
        Some(asked) => available(&asked.to_string_lossy()),
        None => Ok(isas().last().copied().unwrap_or(IsaName::Scalar)),
    }
}

/// The instruction set of this name, if the machine has it.
pub(crate) fn available(asked: &str) -> Result<IsaName, CpuError> {
    let found = isas().iter().find(|isa| asked == isa.name());
    found.copied().ok_or_else(|| CpuError::IsaUnavailable {
        asked: asked.to_owned(),
        available: isas().iter().map(|isa| isa.name()).collect(),
    })
}

/// The name of the instruction set that stages loaded now compute with.
pub fn isa() -> &'static str {
    chosen_isa().unwrap_or(IsaName::Scalar).name()
}

/// Refuses an `ACCEL_ISA` that this processor cannot run. Call this first thing in a program.
pub fn check_cpu() -> Result<(), CpuError> {
    chosen_isa().map(|_| ())
}

/// The widest instruction set that the processor has.
pub(super) fn widest_isa() -> &'static str {
    isas().last().map_or("scalar", |isa| isa.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_the_plain_kernels_and_the_best_come_last() {
        assert_eq!(isas().first(), Some(&IsaName::Scalar));
        assert_eq!(isas().last().map(|isa| isa.name()), Some(widest_isa()));
    }
}
