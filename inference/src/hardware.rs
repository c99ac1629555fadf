//! What this machine has, and how fast the engine runs on it.

mod cpu;
mod gpu;
mod speed;

pub(crate) use cpu::available;
pub use cpu::{CpuError, IsaName, check_cpu, chosen_isa, cores, isa, isas};
pub use gpu::{Gpu, GpuKind};
pub use speed::{Limits, Measured, measure, measure_limits};

use serde::{Deserialize, Serialize};

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// Cores that this process may use.
    pub cores: usize,
    /// The widest instruction set of the processor that matters to the kernels: `amx`, `avx512`,
    /// `avx2`, `neon` or `scalar`.
    pub isa: String,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Memory that is free or can be freed, in bytes, when this was asked.
    pub memory_available_bytes: u64,
    /// Graphics adapters as wgpu sees them; software ones are marked.
    pub gpus: Vec<Gpu>,
}

/// Looks at the machine. Takes at most a few seconds, whatever the graphics drivers do.
pub fn probe() -> Hardware {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    Hardware {
        cores: cores(),
        isa: cpu::widest_isa().to_owned(),
        memory_bytes: system.total_memory(),
        memory_available_bytes: system.available_memory(),
        gpus: gpu::enumerate(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_finds_cores_and_memory_and_survives_missing_graphics_drivers() {
        let hardware = probe();
        assert!(hardware.cores >= 1);
        assert!(hardware.memory_bytes >= hardware.memory_available_bytes);
        assert!(["amx", "avx512", "avx2", "neon", "scalar"].contains(&hardware.isa.as_str()));
    }
}
