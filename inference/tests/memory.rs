//! What a stage takes of the memory, on a real model.

#[path = "real_models/file.rs"]
mod file;

use accel_inference::{
    Gguf, KvFormat, LayerRange, LoadOptions, Logits, ModelShape, StageInput, load_stage,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what all threads hold together, and the most that they held, but for the pieces that
/// weights lie in: these are larger than what is written to.
struct Counting;

/// Alignment of pieces for weights, and of nothing else.
const HUGE_PAGE: usize = 2 << 20;
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged. Growing is counted as the default
// does it: the new block is taken before the old one is given back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() < HUGE_PAGE {
            let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
            PEAK.fetch_max(held, Ordering::Relaxed);
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if layout.align() < HUGE_PAGE {
            HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 512;
/// Tokens of a block of the cache.
const BLOCK: usize = 64;

/// Loads the model, reads a prompt, and gives the bytes of the weights and of the cache's blocks.
fn read_a_prompt(path: &Path, kv: KvFormat) -> (u64, u64) {
    let gguf = Gguf::open(path).expect("the model has a header");
    let shape = ModelShape::from_gguf(&gguf).expect("the engine knows the model");
    let options = LoadOptions {
        threads: Some(2),
        kv,
        ..LoadOptions::default()
    };
    let range = LayerRange::whole(shape.layers);
    let mut stage = load_stage(path, &gguf, range, &options).expect("the model can be loaded");
    drop(gguf);
    stage.open(1, TOKENS).expect("there is room");
    let prompt = StageInput::Tokens((0..TOKENS as u32).collect());
    stage
        .step(1, 0, prompt, Logits::Last)
        .expect("the prompt is read");
    let per_token = shape.kv_bytes_per_token_layer(kv) * u64::from(shape.layers);
    let tokens = TOKENS.next_multiple_of(BLOCK) as u64;
    (stage.weights_bytes(), tokens * per_token)
}

/// The description of the file, the buffers of reading and of a prompt in one step, and all else.
#[test]
fn a_tenth_of_weights_and_cache_is_enough_for_all_else() {
    let Some(path) = file::SMOLLM2.find_or_tell(file::needs_smollm2()) else {
        return;
    };
    for kv in KvFormat::ALL {
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let (weights, cache) = read_a_prompt(&path, kv);
        let held = (PEAK.load(Ordering::Relaxed) - before) as u64;
        let allowed = cache + (weights + cache) / 10;
        eprintln!("cache in {kv}: {held} bytes beside {weights} of weights, {cache} of cache");
        assert!(held <= allowed, "{held} of {allowed} bytes, cache in {kv}");
    }
}
