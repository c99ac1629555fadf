//! What a stage takes of the memory, on a real model.

#[path = "real_models/file.rs"]
mod file;

use accel_inference::{
    Gguf, KvFormat, LayerRange, LoadOptions, Logits, ModelShape, StageInput, load_stage,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what all threads hold together, and the most that they held: the pieces that weights lie
/// in, which are larger than what is written to, and all else.
struct Counting;

/// Alignment of pieces for weights, and of nothing else.
const HUGE_PAGE: usize = 2 << 20;

struct Count {
    held: AtomicUsize,
    most: AtomicUsize,
}

static PIECES: Count = Count::new();
static REST: Count = Count::new();

impl Count {
    const fn new() -> Self {
        Self {
            held: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }
    }

    fn of(layout: Layout) -> &'static Self {
        match layout.align() < HUGE_PAGE {
            true => &REST,
            false => &PIECES,
        }
    }

    fn add(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(held, Ordering::Relaxed);
    }

    /// Begins anew; gives what is held.
    fn begin(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        self.most.store(held, Ordering::Relaxed);
        held
    }

    /// The most that was held since, beyond what was held then.
    fn since(&self, begin: usize) -> u64 {
        (self.most.load(Ordering::Relaxed) - begin) as u64
    }
}

// SAFETY: every call goes to the system's allocator unchanged. Growing is counted as the default
// does it: the new block is taken before the old one is given back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Count::of(layout).add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let held = &Count::of(layout).held;
        held.fetch_sub(layout.size(), Ordering::Relaxed);
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
        let (pieces, rest) = (PIECES.begin(), REST.begin());
        let (weights, cache) = read_a_prompt(&path, kv);
        let (pieces, held) = (PIECES.since(pieces), REST.since(rest));
        let tenth = (weights + cache) / 10;
        eprintln!(
            "cache in {kv}: {held} bytes beside {weights} of weights, {cache} of cache; weights \
             lie in {pieces}"
        );
        // The end of the last piece is not touched.
        assert!(pieces >= weights && pieces <= weights + tenth, "{pieces}");
        assert!(held <= cache + tenth, "{held} of {}", cache + tenth);
    }
}
