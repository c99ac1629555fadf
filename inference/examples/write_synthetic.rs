//! Writes the models of `tests/golden.rs` into a directory, for `tests/python/golden.py`:
//! `cargo run -p accel-inference --example write_synthetic -- DIR`

use accel_inference::synthetic::{SyntheticSpec, generate, golden};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("say where to write to")?;
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir)?;
    let mut specs = Map::new();
    for model in golden::MODELS {
        let path = dir.join(format!("{}.gguf", model.name));
        generate(&model.spec, &path)?;
        specs.insert(model.name.to_owned(), describe(&model.spec));
        println!("{}", path.display());
    }
    let specs = serde_json::to_string_pretty(&specs)?;
    std::fs::write(dir.join("specs.json"), specs)?;
    Ok(())
}

fn describe(spec: &SyntheticSpec) -> Value {
    json!({
        "arch": spec.arch.label(),
        "layers": spec.layers,
        "hidden": spec.hidden,
        "vocab": spec.vocab,
        "context": spec.context,
        "quantisation": spec.quantisation.name,
        "seed": spec.seed,
    })
}
