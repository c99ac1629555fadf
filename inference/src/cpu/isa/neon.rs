//! NEON: four registers of four lanes. Sums of products of bytes are [`dot`]'s.
//!
//! What the compiler's intrinsics lack in the oldest Rust that we build with is inline assembly:
//! conversions of `f16`, prefetching, and the dot product.

mod dot;

use super::{Isa, Kernel};
use dot::{Dot, Dotprod, Widening};
use std::arch::{aarch64::*, asm};
use std::marker::PhantomData;

/// `D` is how products of bytes are added up.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D>(PhantomData<D>);

/// Runs a kernel in a function that is compiled for what this processor has.
#[inline]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    if has_dotprod() {
        run_dotprod(kernel)
    } else {
        run_widening(kernel)
    }
}

/// Only an extension: ARMv8.0 lacks it.
pub(super) fn has_dotprod() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn run_dotprod<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon<Dotprod>>()
}

#[inline(never)]
#[target_feature(enable = "neon")]
pub(super) unsafe fn run_widening<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon<Widening>>()
}

type Floats = [float32x4_t; 4];
type Ints = [int32x4_t; 4];
type Bytes = [uint8x16_t; 4];

/// Applies an intrinsic to all four registers.
macro_rules! each {
    ($f:ident $(::<$n:tt>)? ($a:expr)) => {{
        let a = $a;
        [
            $f$(::<$n>)?(a[0]),
            $f$(::<$n>)?(a[1]),
            $f$(::<$n>)?(a[2]),
            $f$(::<$n>)?(a[3]),
        ]
    }};
    ($f:ident $(::<$n:tt>)? ($a:expr, $b:expr)) => {{
        let (a, b) = ($a, $b);
        [
            $f$(::<$n>)?(a[0], b[0]),
            $f$(::<$n>)?(a[1], b[1]),
            $f$(::<$n>)?(a[2], b[2]),
            $f$(::<$n>)?(a[3], b[3]),
        ]
    }};
    ($f:ident($a:expr, $b:expr, $c:expr)) => {{
        let (a, b, c) = ($a, $b, $c);
        [
            $f(a[0], b[0], c[0]),
            $f(a[1], b[1], c[1]),
            $f(a[2], b[2], c[2]),
            $f(a[3], b[3], c[3]),
        ]
    }};
}
use each;

/// Eight `f16`, widened.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn widen_f16(half: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    asm!(
        "fcvtl {low:v}.4s, {half:v}.4h",
        "fcvtl2 {high:v}.4s, {half:v}.8h",
        low = out(vreg) low,
        high = lateout(vreg) high,
        half = in(vreg) half,
        options(pure, nomem, nostack),
    );
    [low, high]
}

/// Rounds to `f16`, ties to even.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn narrow_f16(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    let half: uint16x8_t;
    asm!(
        "fcvtn {half:v}.4h, {low:v}.4s",
        "fcvtn2 {half:v}.8h, {high:v}.4s",
        half = out(vreg) half,
        low = in(vreg) low,
        high = in(vreg) high,
        options(pure, nomem, nostack),
    );
    half
}

impl<D: Dot> Isa for Neon<D> {
    type F = Floats;
    type I = Ints;
    type B = Bytes;
    type Acc = D::Acc;
    type Tiles = super::NoTiles;

    const SIGNED_OFFSET: i32 = 0;
    const SPLIT_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        D::run(kernel)
    }

    #[inline(always)]
    fn groups(bits: u32) -> usize {
        D::groups(bits)
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Floats {
        [vdupq_n_f32(value); 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Floats {
        each!(vld1q_f32([from, from.add(4), from.add(8), from.add(12)]))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Floats) {
        each!(vst1q_f32([to, to.add(4), to.add(8), to.add(12)], value));
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Floats {
        let [a, b] = widen_f16(vld1q_u16(from));
        let [c, d] = widen_f16(vld1q_u16(from.add(8)));
        [a, b, c, d]
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Floats {
        let (low, high) = (vld1q_u16(from), vld1q_u16(from.add(8)));
        let wide = [
            vmovl_u16(vget_low_u16(low)),
            vmovl_high_u16(low),
            vmovl_u16(vget_low_u16(high)),
            vmovl_high_u16(high),
        ];
        each!(vreinterpretq_f32_u32(each!(vshlq_n_u32::<16>(wide))))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Floats {
        let bytes = vld1q_s8(from);
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        Self::from_int([
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ])
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Floats) {
        vst1q_u16(to, narrow_f16(value[0], value[1]));
        vst1q_u16(to.add(8), narrow_f16(value[2], value[3]));
    }

    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        each!(vsubq_f32(a, b))
    }

    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        each!(vdivq_f32(a, b))
    }

    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        each!(vfmaq_f32(c, a, b))
    }

    // NEON's own maximum and minimum give what is not a number, and +0 of two zeros.

    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        each!(vbslq_f32(each!(vcgtq_f32(a, b)), a, b))
    }

    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        each!(vbslq_f32(each!(vcltq_f32(a, b)), a, b))
    }

    #[inline(always)]
    unsafe fn magnitude_bits(a: Floats) -> Ints {
        each!(vreinterpretq_s32_f32(each!(vabsq_f32(a))))
    }

    #[inline(always)]
    unsafe fn to_int(a: Floats) -> Ints {
        each!(vcvtnq_s32_f32(a))
    }

    #[inline(always)]
    unsafe fn from_int(a: Ints) -> Floats {
        each!(vcvtq_f32_s32(a))
    }

    #[inline(always)]
    unsafe fn scale_by_power_of_two(value: Floats, exponent: Ints) -> Floats {
        let biased = Self::add_i(exponent, Self::splat_i(127));
        let power = each!(vreinterpretq_f32_s32(each!(vshlq_n_s32::<23>(biased))));
        Self::mul(value, power)
    }

    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Ints {
        [vdupq_n_s32(value); 4]
    }

    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> Ints {
        each!(vld1q_s32([from, from.add(4), from.add(8), from.add(12)]))
    }

    #[inline(always)]
    unsafe fn store_i(to: *mut i32, value: Ints) {
        each!(vst1q_s32([to, to.add(4), to.add(8), to.add(12)], value));
    }

    #[inline(always)]
    unsafe fn add_i(a: Ints, b: Ints) -> Ints {
        each!(vaddq_s32(a, b))
    }

    #[inline(always)]
    unsafe fn sub_i(a: Ints, b: Ints) -> Ints {
        each!(vsubq_s32(a, b))
    }

    #[inline(always)]
    unsafe fn max_i(a: Ints, b: Ints) -> Ints {
        each!(vmaxq_s32(a, b))
    }

    #[inline(always)]
    unsafe fn mul_i(a: Ints, b: Ints) -> Ints {
        each!(vmulq_s32(a, b))
    }

    #[inline(always)]
    unsafe fn and16(a: Ints, mask: i16) -> Ints {
        let mask = vreinterpretq_s32_s16(vdupq_n_s16(mask));
        each!(vandq_s32(a, [mask; 4]))
    }

    #[inline(always)]
    unsafe fn shr16_by_four(a: Ints) -> Ints {
        let halves = each!(vreinterpretq_u16_s32(a));
        each!(vreinterpretq_s32_u16(each!(vshrq_n_u16::<4>(halves))))
    }

    #[inline(always)]
    unsafe fn low_twice(a: Ints) -> Ints {
        each!(vsliq_n_s32::<16>(a, a))
    }

    #[inline(always)]
    unsafe fn high_twice(a: Ints) -> Ints {
        each!(vsriq_n_s32::<16>(a, a))
    }

    #[inline(always)]
    unsafe fn madd16(a: Ints, b: Ints) -> Ints {
        let (a, b) = (
            each!(vreinterpretq_s16_s32(a)),
            each!(vreinterpretq_s16_s32(b)),
        );
        let low = each!(vmull_s16(each!(vget_low_s16(a)), each!(vget_low_s16(b))));
        each!(vpaddq_s32(low, each!(vmull_high_s16(a, b))))
    }

    #[inline(always)]
    unsafe fn load_u8_pairs(from: *const u8) -> Ints {
        let (low, high) = (vld1q_u8(from), vld1q_u8(from.add(16)));
        each!(vreinterpretq_s32_u16([
            vmovl_u8(vget_low_u8(low)),
            vmovl_high_u8(low),
            vmovl_u8(vget_low_u8(high)),
            vmovl_high_u8(high),
        ]))
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(from: *const u8) -> Ints {
        let from = from.cast::<i8>();
        let (low, high) = (vld1q_s8(from), vld1q_s8(from.add(16)));
        each!(vreinterpretq_s32_s16([
            vmovl_s8(vget_low_s8(low)),
            vmovl_high_s8(low),
            vmovl_s8(vget_low_s8(high)),
            vmovl_high_s8(high),
        ]))
    }

    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, value: Ints) {
        let low = vmovn_high_s32(vmovn_s32(value[0]), value[1]);
        let high = vmovn_high_s32(vmovn_s32(value[2]), value[3]);
        vst1q_s8(to, vmovn_high_s16(vmovn_s16(low), high));
    }

    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Bytes {
        each!(vld1q_u8([from, from.add(16), from.add(32), from.add(48)]))
    }

    #[inline(always)]
    unsafe fn store_b(to: *mut u8, value: Bytes) {
        each!(vst1q_u8([to, to.add(16), to.add(32), to.add(48)], value));
    }

    #[inline(always)]
    unsafe fn and_b(a: Bytes, mask: u8) -> Bytes {
        each!(vandq_u8(a, [vdupq_n_u8(mask); 4]))
    }

    #[inline(always)]
    unsafe fn or_b(a: Bytes, b: Bytes) -> Bytes {
        each!(vorrq_u8(a, b))
    }

    #[inline(always)]
    unsafe fn xor_b(a: Bytes, mask: u8) -> Bytes {
        each!(veorq_u8(a, [vdupq_n_u8(mask); 4]))
    }

    #[inline(always)]
    unsafe fn shr_b<const N: i32>(a: Bytes) -> Bytes {
        each!(vshrq_n_u8::<N>(a))
    }

    #[inline(always)]
    unsafe fn shl_b<const N: i32>(a: Bytes) -> Bytes {
        each!(vshlq_n_u8::<N>(a))
    }

    #[inline(always)]
    unsafe fn acc_zero() -> D::Acc {
        D::zero()
    }

    #[inline(always)]
    unsafe fn acc_begin(halves: i32) -> D::Acc {
        D::begin(halves)
    }

    #[inline(always)]
    unsafe fn acc(acc: D::Acc, weights: Bytes, activations: i32) -> D::Acc {
        let activations = vreinterpretq_s8_s32(vdupq_n_s32(activations));
        D::add(acc, each!(vreinterpretq_s8_u8(weights)), activations)
    }

    #[inline(always)]
    unsafe fn acc_finish(acc: D::Acc) -> Ints {
        D::finish(acc)
    }

    #[inline(always)]
    unsafe fn acc_scaled(acc: D::Acc, scales: Ints) -> Ints {
        Self::mul_i(D::finish(acc), each!(vshrq_n_s32::<16>(scales)))
    }

    #[inline(always)]
    unsafe fn acc_signed(acc: Ints, weights: Bytes, activations: i32) -> Ints {
        let activations = vreinterpretq_s8_s32(vdupq_n_s32(activations));
        D::add_signed(acc, each!(vreinterpretq_s8_u8(weights)), activations)
    }

    #[inline(always)]
    unsafe fn highest_i(a: Ints) -> i32 {
        vmaxvq_s32(vmaxq_s32(vmaxq_s32(a[0], a[1]), vmaxq_s32(a[2], a[3])))
    }

    #[inline(always)]
    unsafe fn sum_i(a: Ints) -> i32 {
        vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3])))
    }

    #[inline(always)]
    unsafe fn sums_of_pairs(a: Ints) -> (i32, i32) {
        let four = vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]));
        let two = vpaddq_s32(four, four);
        (vgetq_lane_s32::<0>(two), vgetq_lane_s32::<1>(two))
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        asm!(
            "prfm pldl1keep, [{from}]",
            from = in(reg) from.addr(),
            options(nomem, nostack, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
        asm!(
            "prfm pldl2keep, [{from}]",
            from = in(reg) from.addr(),
            options(nomem, nostack, preserves_flags),
        );
    }
}
