//! The processor.

/// The variable that forces the kernels of one instruction set.
const ISA_VARIABLE: &str = "ACCEL_ISA";

/// Why the engine cannot run on this processor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The kernels were compiled for instructions that the processor lacks.
    #[error(
        "this build needs a processor with {}, which this one lacks; build from source with \
         RUSTFLAGS=\"-C target-cpu=native\"",
        missing.join(" and ")
    )]
    MissingInstructions {
        /// The instructions, e.g. `avx2`.
        missing: Vec<&'static str>,
    },
    /// Kernels were asked for that this build does not have.
    #[error("ACCEL_ISA={asked} is not available; this build computes with {available}")]
    IsaUnavailable {
        /// What was asked for.
        asked: String,
        /// What there is.
        available: &'static str,
    },
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// The instruction set that the kernels of this build use.
pub fn isa() -> &'static str {
    if cfg!(all(target_arch = "x86_64", target_feature = "avx2")) {
        "avx2"
    } else if cfg!(target_arch = "aarch64") {
        "neon"
    } else {
        "scalar"
    }
}

/// Refuses a processor that the kernels would crash on. Call this first thing in a program.
pub fn check_cpu() -> Result<(), CpuError> {
    let missing = missing_instructions();
    if !missing.is_empty() {
        return Err(CpuError::MissingInstructions { missing });
    }
    match std::env::var(ISA_VARIABLE) {
        Ok(asked) if asked != isa() => Err(CpuError::IsaUnavailable {
            asked,
            available: isa(),
        }),
        _ => Ok(()),
    }
}

#[cfg(target_arch = "x86_64")]
fn missing_instructions() -> Vec<&'static str> {
    let mut missing = Vec::new();
    let mut need = |compiled_in: bool, present: bool, name| {
        if compiled_in && !present {
            missing.push(name);
        }
    };
    // `is_x86_feature_detected!` answers true at once for what the compiler was told to assume,
    // so the processor itself is asked.
    let found = x86_features();
    need(cfg!(target_feature = "avx2"), found.avx2, "avx2");
    need(cfg!(target_feature = "fma"), found.fma, "fma");
    need(cfg!(target_feature = "f16c"), found.f16c, "f16c");
    need(cfg!(target_feature = "bmi2"), found.bmi2, "bmi2");
    missing
}

#[cfg(not(target_arch = "x86_64"))]
fn missing_instructions() -> Vec<&'static str> {
    Vec::new()
}

/// What the processor says of itself.
#[cfg(target_arch = "x86_64")]
struct X86Features {
    avx2: bool,
    avx512: bool,
    fma: bool,
    f16c: bool,
    bmi2: bool,
}

#[cfg(target_arch = "x86_64")]
fn x86_features() -> X86Features {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let bit = |register: u32, bit: u32| register & (1 << bit) != 0;
    let highest = __cpuid(0).eax;
    let basic = __cpuid(1);
    // Leaf 7 must not be asked for where it does not exist.
    let (ebx, ecx) = if highest >= 7 {
        let extended = __cpuid_count(7, 0);
        (extended.ebx, extended.ecx)
    } else {
        (0, 0)
    };
    let (avx_state, avx512_state) = saved_state(bit(basic.ecx, 27));
    let vnni = bit(ecx, 11);
    X86Features {
        avx2: bit(ebx, 5) && avx_state,
        avx512: bit(ebx, 16) && bit(ebx, 30) && vnni && avx512_state,
        fma: bit(basic.ecx, 12) && avx_state,
        f16c: bit(basic.ecx, 29) && avx_state,
        bmi2: bit(ebx, 8),
    }
}

/// Whether the operating system saves the 256- and the 512-bit registers.
#[cfg(target_arch = "x86_64")]
fn saved_state(has_xgetbv: bool) -> (bool, bool) {
    if !has_xgetbv {
        return (false, false);
    }
    let (low, _high): (u32, u32);
    // SAFETY: the instruction exists when the OSXSAVE bit is set, which the caller checked; it
    // reads a register and touches nothing else.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high,
            options(nomem, nostack, preserves_flags));
    }
    (low & 0x06 == 0x06, low & 0xe6 == 0xe6)
}

/// The widest instruction set that the processor has.
#[cfg(target_arch = "x86_64")]
pub(super) fn widest_isa() -> &'static str {
    let found = x86_features();
    match (found.avx512, found.avx2) {
        (true, _) => "avx512",
        (_, true) => "avx2",
        _ => "scalar",
    }
}

/// The widest instruction set that the processor has.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn widest_isa() -> &'static str {
    isa()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_runs_the_tests_can_run_the_engine() {
        assert!(missing_instructions().is_empty());
    }
}
