//! Graphics adapters.

use serde::{Deserialize, Serialize};
use std::sync::mpsc;
use std::time::Duration;

/// Drivers have been seen to hang when they are asked; nobody waits longer than this for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A graphics adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// The interface it is reached by, e.g. `vulkan`.
    pub backend: String,
    /// What kind of adapter it is.
    pub kind: GpuKind,
}

/// Kinds of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares the memory of the processor.
    Integrated,
    /// Passed into a virtual machine.
    Virtual,
    /// No hardware at all: the processor imitates one.
    Software,
    /// The driver does not say.
    Other,
}

/// Every adapter that wgpu sees. A driver that crashes the call or hangs counts as none.
pub(super) fn enumerate() -> Vec<Gpu> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let asked = std::thread::Builder::new()
        .name("accel-gpu-probe".to_owned())
        .spawn(move || {
            // The receiver is gone only when patience has run out.
            sender.send(ask_wgpu()).ok();
        });
    if let Err(error) = asked {
        tracing::warn!(%error, "cannot look for graphics adapters");
        return Vec::new();
    }
    // A panic in the thread drops the sender, which ends the wait as well.
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| {
        tracing::warn!(%error, "the graphics drivers did not answer; going on without adapters");
        Vec::new()
    })
}

fn ask_wgpu() -> Vec<Gpu> {
    let description = wgpu::InstanceDescriptor::new_without_display_handle();
    let instance = wgpu::Instance::new(description);
    let adapters = instance.enumerate_adapters(wgpu::Backends::all());
    let adapters = futures::executor::block_on(adapters);
    adapters.iter().map(describe).collect()
}

fn describe(adapter: &wgpu::Adapter) -> Gpu {
    let info = adapter.get_info();
    Gpu {
        name: info.name,
        backend: info.backend.to_str().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => GpuKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => GpuKind::Integrated,
            wgpu::DeviceType::VirtualGpu => GpuKind::Virtual,
            wgpu::DeviceType::Cpu => GpuKind::Software,
            wgpu::DeviceType::Other => GpuKind::Other,
        },
    }
}
