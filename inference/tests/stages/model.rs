//! Generated models, and what is fed to them.

use accel_inference::gguf::TensorType;
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate};
use accel_inference::{
    Gguf, KvFormat, LayerRange, LoadError, LoadOptions, Logits, ModelShape, Stage, StageInput,
    StageOutput, load_stage,
};
use std::path::PathBuf;
use tempfile::TempDir;

pub const SEQ: u64 = 7;

/// Every quantisation that the engine computes with.
pub const QUANTISATIONS: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// A generated model file, removed at the end of the test.
pub struct Model {
    _dir: TempDir,
    pub path: PathBuf,
    pub gguf: Gguf,
    pub shape: ModelShape,
    /// How its stages keep keys and values.
    pub kv: KvFormat,
}

impl Model {
    pub fn generate(spec: &SyntheticSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        generate(spec, &path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let shape = ModelShape::from_gguf(&gguf).unwrap();
        Self {
            _dir: dir,
            path,
            gguf,
            shape,
            kv: KvFormat::default(),
        }
    }

    /// One of each kind with each form of the cache.
    pub fn all() -> impl Iterator<Item = Self> {
        SyntheticArch::ALL
            .into_iter()
            .flat_map(|arch| KvFormat::ALL.map(|kv| Self::small(arch).with_kv(kv)))
    }

    /// The same model, whose stages keep keys and values so.
    pub fn with_kv(self, kv: KvFormat) -> Self {
        Self { kv, ..self }
    }

    /// For messages.
    pub fn label(&self) -> String {
        format!("{} with a cache in {}", self.shape.architecture, self.kv)
    }

    pub fn small(arch: SyntheticArch) -> Self {
        Self::generate(&SyntheticSpec::small(arch))
    }

    /// Large enough for blocks of 256.
    pub fn quantised(quantisation: TensorType) -> Self {
        Self::generate(&SyntheticSpec {
            hidden: 256,
            layers: 2,
            quantisation,
            ..SyntheticSpec::small(SyntheticArch::Qwen2)
        })
    }

    pub fn load(&self, range: LayerRange, threads: usize) -> Box<dyn Stage> {
        let options = LoadOptions {
            threads: Some(threads),
            kv: self.kv,
            ..LoadOptions::default()
        };
        self.load_with(range, &options).unwrap()
    }

    pub fn load_with(
        &self,
        range: LayerRange,
        options: &LoadOptions,
    ) -> Result<Box<dyn Stage>, LoadError> {
        load_stage(&self.path, &self.gguf, range, options)
    }

    pub fn whole(&self) -> Box<dyn Stage> {
        self.load(LayerRange::whole(self.shape.layers), 2)
    }
}

/// Tokens that cover the vocabulary unevenly.
pub fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 31 + 7) % 512).collect()
}

/// Feeds `chunk` through stages that together are the whole model; gives the logits' bits.
pub fn feed(stages: &mut [Box<dyn Stage>], position: usize, chunk: &[u32]) -> Vec<u32> {
    let mut input = StageInput::Tokens(chunk.to_vec());
    for stage in stages {
        match stage.step(SEQ, position, input, Logits::All).unwrap() {
            StageOutput::Hidden { rows, data } => input = StageInput::Hidden { rows, data },
            StageOutput::Logits { rows, data } => {
                assert_eq!(rows, chunk.len());
                return data.iter().map(|logit| logit.to_bits()).collect();
            }
            StageOutput::Nothing => panic!("logits were asked for"),
        }
    }
    panic!("the last stage gives logits");
}

/// A prompt in two chunks and then single tokens, as a session feeds them.
pub fn answer(stages: &mut [Box<dyn Stage>]) -> Vec<u32> {
    for stage in stages.iter_mut() {
        stage.open(SEQ, 64).unwrap();
    }
    let all = tokens(32);
    let mut logits = feed(stages, 0, &all[..20]);
    logits.extend(feed(stages, 20, &all[20..29]));
    for position in 29..32 {
        logits.extend(feed(stages, position, &all[position..position + 1]));
    }
    for stage in stages.iter_mut() {
        stage.close(SEQ);
    }
    logits
}

/// Every way of cutting `total` layers into one to four parts.
pub fn cuts(total: u32) -> Vec<Vec<LayerRange>> {
    let mut all = vec![vec![LayerRange::whole(total)]];
    for a in 1..total {
        all.push(parts(&[0, a, total]));
        for b in a + 1..total {
            all.push(parts(&[0, a, b, total]));
            for c in b + 1..total {
                all.push(parts(&[0, a, b, c, total]));
            }
        }
    }
    all
}

pub fn parts(borders: &[u32]) -> Vec<LayerRange> {
    let pairs = borders.windows(2);
    pairs
        .map(|pair| LayerRange::new(pair[0], pair[1]))
        .collect()
}
