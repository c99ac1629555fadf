//! Whole models on every instruction set that the machine has.

use crate::model::{Model, QUANTISATIONS, answer};
use accel_inference::hardware::{CpuError, IsaName, isas};
use accel_inference::synthetic::SyntheticArch;
use accel_inference::{LayerRange, LoadError, LoadOptions};

fn options(isa: IsaName, model: &Model) -> LoadOptions {
    LoadOptions {
        threads: Some(2),
        kv: model.kv,
        isa: Some(isa),
        ..LoadOptions::default()
    }
}

/// Compares a model's logits under the plain kernels with those under all others.
fn assert_equal_on_all(model: &Model, name: &str) {
    let whole = LayerRange::whole(model.shape.layers);
    let on = |isa| answer(&mut [model.load_with(whole, &options(isa, model)).unwrap()]);
    let expected = on(IsaName::Scalar);
    for &isa in isas().iter().filter(|isa| **isa != IsaName::Scalar) {
        assert!(on(isa) == expected, "{name} differs on {isa}");
    }
}

#[test]
fn every_instruction_set_gives_the_same_logits() {
    for model in Model::all() {
        assert_equal_on_all(&model, &model.label());
    }
}

#[test]
fn every_instruction_set_gives_the_same_logits_with_every_quantisation() {
    for quantisation in QUANTISATIONS {
        let model = Model::quantised(quantisation);
        assert_equal_on_all(&model, &quantisation.to_string());
    }
}

#[test]
fn an_instruction_set_that_the_machine_lacks_is_refused() {
    let model = Model::small(SyntheticArch::Llama);
    let all = [IsaName::Avx2, IsaName::Avx512, IsaName::Amx, IsaName::Neon];
    let missing = all.into_iter().filter(|isa| !isas().contains(isa));
    for isa in missing {
        let error = model
            .load_with(LayerRange::whole(8), &options(isa, &model))
            .err();
        let is_refused = matches!(error, Some(LoadError::Cpu(CpuError::IsaUnavailable { .. })));
        assert!(is_refused, "{isa}");
    }
}
