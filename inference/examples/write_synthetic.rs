//! Writes the models of `tests/golden.rs` into a directory, for `tests/python/golden.py`:
//! `cargo run -p accel-inference --example write_synthetic -- DIR`

use accel_inference::synthetic::{generate, golden};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("say where to write to")?;
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir)?;
    for model in golden::MODELS {
        let path = dir.join(model.name).with_extension("gguf");
        generate(&model.spec, &path)?;
        println!("{}", path.display());
    }
    Ok(())
}
