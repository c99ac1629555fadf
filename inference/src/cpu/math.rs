//! Functions of many values: the same polynomial, operation by operation, on every instruction
//! set. The platform's own would differ in the last bits.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::isa::Isa;

/// `e^x` for finite `x`; below -87 and above 88 the exponent stays at the border.
///
/// The argument is split into `n · ln 2 + r`; `e^r` is Cephes' polynomial (S. L. Moshier), whose
/// error is about one unit in the last place.
///
/// # Safety
/// See [`Isa`].
#[inline(always)]
pub(crate) unsafe fn exp<I: Isa>(x: I::F) -> I::F {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let x = I::min(I::max(x, I::splat(-87.0)), I::splat(88.0));
    let exponent = I::to_int(I::mul(x, I::splat(std::f32::consts::LOG2_E)));
    let n = I::from_int(exponent);
    let r = I::fma(n, I::splat(-LN_2_HIGH), x);
    let r = I::fma(n, I::splat(-LN_2_LOW), r);
    let mut sum = I::splat(POLYNOMIAL[0]);
    for factor in &POLYNOMIAL[1..] {
        sum = I::fma(sum, r, I::splat(*factor));
    }
    let sum = I::add(I::fma(sum, I::mul(r, r), r), I::splat(1.0));
    I::scale_by_power_of_two(sum, exponent)
}

/// `tanh x = 1 - 2 / (e^2x + 1)`
///
/// # Safety
/// See [`Isa`].
#[inline(always)]
pub(crate) unsafe fn tanh<I: Isa>(x: I::F) -> I::F {
    let e = exp::<I>(I::add(x, x));
    let one = I::splat(1.0);
    I::sub(one, I::div(I::splat(2.0), I::add(e, one)))
}

/// The function between the gate and the product of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `x / (1 + e^-x)`
    Silu,
    /// Gaussian error linear unit, in the approximation by a hyperbolic tangent (Hendrycks and
    /// Gimpel, 2016).
    GeluTanh,
}

impl Gate {
    /// # Safety
    /// See [`Isa`].
    #[inline(always)]
    pub(crate) unsafe fn apply<I: Isa>(self, x: I::F) -> I::F {
        match self {
            Self::Silu => {
                let e = exp::<I>(I::sub(I::splat(0.0), x));
                I::div(x, I::add(I::splat(1.0), e))
            }
            Self::GeluTanh => {
                const ROOT_OF_TWO_OVER_PI: f32 = 0.797_884_6;
                const CUBIC: f32 = 0.044_715;
                let square = I::mul(x, x);
                let factor = I::fma(square, I::splat(CUBIC), I::splat(1.0));
                let inner = I::mul(I::mul(x, I::splat(ROOT_OF_TWO_OVER_PI)), factor);
                let half = I::mul(x, I::splat(0.5));
                I::fma(half, tanh::<I>(inner), half)
            }
        }
    }
}

/// `values[i] = cap * tanh(values[i] / cap)`, in place.
///
/// # Safety
/// See [`Isa`].
#[inline(always)]
pub(crate) unsafe fn softcap<I: Isa>(x: I::F, cap: f32) -> I::F {
    let inner = I::div(x, I::splat(cap));
    I::mul(tanh::<I>(inner), I::splat(cap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Kernel, LANES, dispatch};
    use crate::hardware::isas;

    struct Apply<'a>(&'a str, &'a [f32]);

    impl Kernel for Apply<'_> {
        type Output = Vec<f32>;

        unsafe fn run<I: Isa>(self) -> Vec<f32> {
            let mut out = vec![0.0; self.1.len()];
            for (x, out) in self.1.chunks(LANES).zip(out.chunks_mut(LANES)) {
                let x = I::load(x.as_ptr());
                let y = match self.0 {
                    "exp" => exp::<I>(x),
                    "tanh" => tanh::<I>(x),
                    "silu" => Gate::Silu.apply::<I>(x),
                    _ => Gate::GeluTanh.apply::<I>(x),
                };
                I::store(out.as_mut_ptr(), y);
            }
            out
        }
    }

    #[test]
    fn functions_are_close_to_the_true_ones_and_equal_on_every_instruction_set() {
        let x: Vec<f32> = (0..16_000).map(|i| (i as f32 - 8000.0) * 0.01).collect();
        type Case = (&'static str, fn(f64) -> f64, f64);
        let truth: [Case; 4] = [
            ("exp", |x| x.exp(), 2e-7),
            ("tanh", |x| x.tanh(), 1e-6),
            ("silu", |x| x / (1.0 + (-x).exp()), 1e-6),
            (
                "gelu",
                |x| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()),
                1e-5,
            ),
        ];
        for (name, function, tolerance) in truth {
            let reference = dispatch(isas()[0], Apply(name, &x));
            for (x, y) in x.iter().zip(&reference) {
                let expected = function(f64::from(*x));
                let error = (f64::from(*y) - expected).abs();
                let bound = tolerance * expected.abs().max(if name == "exp" { 0.0 } else { 1.0 });
                assert!(error <= bound, "{name}({x}) = {y}, not {expected}");
            }
            for &isa in isas() {
                let other = dispatch(isa, Apply(name, &x));
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&other), bits(&reference), "{name} on {isa}");
            }
        }
    }
}
