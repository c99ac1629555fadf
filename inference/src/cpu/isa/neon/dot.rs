//! Sums of products of bytes: with the dot product of ARMv8.2, and with what every NEON has.
//!
//! Both take the weights as signed. Those of unsigned formats have six bits at most, so nothing
//! is lost; the sums are exact and therefore equal.

use super::{Ints, each};
use crate::cpu::isa::Kernel;
use std::arch::{aarch64::*, asm};

/// Four registers of signed bytes.
type Weights = [int8x16_t; 4];

/// The part of [`crate::cpu::isa::Isa`] that differs between processors with NEON.
///
/// # Safety
/// As of [`crate::cpu::isa::Isa`].
pub(crate) trait Dot: Copy + Send + Sync + 'static {
    type Acc: Copy;

    unsafe fn run<K: Kernel>(kernel: K) -> K::Output;

    fn groups(bits: u32) -> usize;

    unsafe fn zero() -> Self::Acc;
    /// See [`crate::cpu::isa::Isa::acc_begin`].
    unsafe fn begin(halves: i32) -> Self::Acc;
    /// Adds, in each lane, four products; the weights are those of an unsigned format.
    unsafe fn add(acc: Self::Acc, weights: Weights, activations: int8x16_t) -> Self::Acc;
    unsafe fn finish(acc: Self::Acc) -> Ints;
    /// Adds, in each lane, four products; the weights are any.
    unsafe fn add_signed(acc: Ints, weights: Weights, activations: int8x16_t) -> Ints;
}

/// `sdot`: four products at once, added up in thirty-two bits.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod;

/// The intrinsic is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    asm!(
        "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
        acc = inout(vreg) acc,
        a = in(vreg) a,
        b = in(vreg) b,
        options(pure, nomem, nostack, preserves_flags),
    );
    acc
}

impl Dot for Dotprod {
    type Acc = Ints;

    #[inline(always)]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        super::run_dotprod(kernel)
    }

    #[inline(always)]
    fn groups(_: u32) -> usize {
        8
    }

    #[inline(always)]
    unsafe fn zero() -> Ints {
        [vdupq_n_s32(0); 4]
    }

    #[inline(always)]
    unsafe fn begin(halves: i32) -> Ints {
        [vdupq_n_s32((halves << 16 >> 16) + (halves >> 16)); 4]
    }

    #[inline(always)]
    unsafe fn add(acc: Ints, weights: Weights, activations: int8x16_t) -> Ints {
        each!(sdot(acc, weights, [activations; 4]))
    }

    #[inline(always)]
    unsafe fn finish(acc: Ints) -> Ints {
        acc
    }

    #[inline(always)]
    unsafe fn add_signed(acc: Ints, weights: Weights, activations: int8x16_t) -> Ints {
        each!(sdot(acc, weights, [activations; 4]))
    }
}

/// Every product on its own, in sixteen bits.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

impl Dot for Widening {
    /// The products of the lower and of the upper halves of the registers.
    type Acc = [[int16x8_t; 4]; 2];

    #[inline(always)]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        super::run_widening(kernel)
    }

    /// A product is at most 128 · (2^bits - 1); sixteen bits hold 32767.
    #[inline(always)]
    fn groups(bits: u32) -> usize {
        match bits {
            0..=5 => 8,
            6 => 4,
            _ => 2,
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Acc {
        [[vdupq_n_s16(0); 4]; 2]
    }

    /// The sum of value 0 begins with what goes with 0 and 1, that of value 2 likewise: in the end
    /// it is at most 2 · 127 · 2^(bits - 1) for each group, so [`Self::groups`] holds here too.
    #[inline(always)]
    unsafe fn begin(halves: i32) -> Self::Acc {
        let spread = i64::from(halves & 0xffff) | i64::from(halves >> 16 & 0xffff) << 32;
        [[vreinterpretq_s16_s64(vdupq_n_s64(spread)); 4]; 2]
    }

    #[inline(always)]
    unsafe fn add(acc: Self::Acc, weights: Weights, activations: int8x16_t) -> Self::Acc {
        let (lows, low) = (each!(vget_low_s8(weights)), vget_low_s8(activations));
        [
            each!(vmlal_s8(acc[0], lows, [low; 4])),
            each!(vmlal_high_s8(acc[1], weights, [activations; 4])),
        ]
    }

    #[inline(always)]
    unsafe fn finish(acc: Self::Acc) -> Ints {
        // (registers, two sums for each lane)
        let (low, high) = (each!(vpaddlq_s16(acc[0])), each!(vpaddlq_s16(acc[1])));
        each!(vpaddq_s32(low, high))
    }

    /// Pairs of products still fit in sixteen bits: activations are never -128.
    #[inline(always)]
    unsafe fn add_signed(acc: Ints, weights: Weights, activations: int8x16_t) -> Ints {
        let (lows, low) = (each!(vget_low_s8(weights)), vget_low_s8(activations));
        let pairs = each!(vpaddq_s16(
            each!(vmull_s8(lows, [low; 4])),
            each!(vmull_high_s8(weights, [activations; 4]))
        ));
        each!(vpadalq_s16(acc, pairs))
    }
}
