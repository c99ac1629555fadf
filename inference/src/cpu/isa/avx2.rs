//! AVX2 with FMA and F16C: two registers of eight lanes.

use super::{Isa, Kernel};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Runs a kernel in a function that is compiled for this instruction set.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

type Floats = [__m256; 2];
type Ints = [__m256i; 2];

/// Applies an intrinsic to both registers.
macro_rules! both {
    ($f:ident($a:expr)) => {{
        let a = $a;
        [$f(a[0]), $f(a[1])]
    }};
    ($f:ident($a:expr, $b:expr)) => {{
        let (a, b) = ($a, $b);
        [$f(a[0], b[0]), $f(a[1], b[1])]
    }};
    ($f:ident::<$n:tt>($a:expr, $b:expr)) => {{
        let (a, b) = ($a, $b);
        [$f::<$n>(a[0], b[0]), $f::<$n>(a[1], b[1])]
    }};
    ($f:ident::<$n:tt>($a:expr)) => {{
        let a = $a;
        [$f::<$n>(a[0]), $f::<$n>(a[1])]
    }};
}

impl Isa for Avx2 {
    type F = Floats;
    type I = Ints;
    type B = Ints;
    /// Sums of pairs of products in sixteen bits.
    type Acc = Ints;
    type Tiles = super::NoTiles;

    const SIGNED_OFFSET: i32 = 0;
    const SPLIT_SIGNED: bool = true;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        run(kernel)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pin<const N: usize>(sums: &mut [Ints; N]) {
        for [low, high] in sums {
            // SAFETY: no instruction at all.
            unsafe {
                std::arch::asm!(
                    "/* {0} {1} */",
                    inout(ymm_reg) * low,
                    inout(ymm_reg) * high,
                    options(nomem, nostack, preserves_flags)
                );
            }
        }
    }

    /// A pair of products is at most 2 · 127 · (2^bits - 1); sixteen bits hold 32767.
    #[inline(always)]
    fn groups(bits: u32) -> usize {
        match bits {
            0..=4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        }
    }

    /// A sum of pairs is at most 2 · 127 · 2^(bits - 1) for each group.
    #[inline(always)]
    fn groups_around_zero(bits: u32) -> usize {
        match bits {
            0..=5 => 8,
            6 => 4,
            7 => 2,
            _ => 1,
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Floats {
        [_mm256_set1_ps(value); 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Floats {
        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Floats) {
        _mm256_storeu_ps(to, value[0]);
        _mm256_storeu_ps(to.add(8), value[1]);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Floats {
        let from = from.cast::<__m128i>();
        [
            _mm256_cvtph_ps(_mm_loadu_si128(from)),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))),
        ]
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Floats {
        let from = from.cast::<__m128i>();
        let wide = [
            _mm256_cvtepu16_epi32(_mm_loadu_si128(from)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1))),
        ];
        both!(_mm256_castsi256_ps(both!(_mm256_slli_epi32::<16>(wide))))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Floats {
        let from = from.cast::<__m128i>();
        Self::from_int([
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(from)),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.byte_add(8))),
        ])
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Floats) {
        let to = to.cast::<__m128i>();
        let rounded = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value));
        _mm_storeu_si128(to, rounded[0]);
        _mm_storeu_si128(to.add(1), rounded[1]);
    }

    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        both!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        both!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        both!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        both!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        [
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ]
    }

    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        both!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        both!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    unsafe fn magnitude_bits(a: Floats) -> Ints {
        let magnitude = [_mm256_set1_epi32(i32::MAX); 2];
        both!(_mm256_and_si256(both!(_mm256_castps_si256(a)), magnitude))
    }

    #[inline(always)]
    unsafe fn to_int(a: Floats) -> Ints {
        both!(_mm256_cvtps_epi32(a))
    }

    #[inline(always)]
    unsafe fn from_int(a: Ints) -> Floats {
        both!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    unsafe fn scale_by_power_of_two(value: Floats, exponent: Ints) -> Floats {
        let biased = Self::add_i(exponent, Self::splat_i(127));
        let power = both!(_mm256_castsi256_ps(both!(_mm256_slli_epi32::<23>(biased))));
        Self::mul(value, power)
    }

    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Ints {
        [_mm256_set1_epi32(value); 2]
    }

    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> Ints {
        Self::load_b(from.cast())
    }

    #[inline(always)]
    unsafe fn store_i(to: *mut i32, value: Ints) {
        Self::store_b(to.cast(), value);
    }

    #[inline(always)]
    unsafe fn add_i(a: Ints, b: Ints) -> Ints {
        both!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    unsafe fn sub_i(a: Ints, b: Ints) -> Ints {
        both!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    unsafe fn max_i(a: Ints, b: Ints) -> Ints {
        both!(_mm256_max_epi32(a, b))
    }

    #[inline(always)]
    unsafe fn mul_i(a: Ints, b: Ints) -> Ints {
        both!(_mm256_mullo_epi32(a, b))
    }

    #[inline(always)]
    unsafe fn and16(a: Ints, mask: i16) -> Ints {
        both!(_mm256_and_si256(a, [_mm256_set1_epi16(mask); 2]))
    }

    #[inline(always)]
    unsafe fn shr16_by_four(a: Ints) -> Ints {
        both!(_mm256_srli_epi16::<4>(a))
    }

    #[inline(always)]
    unsafe fn low_twice(a: Ints) -> Ints {
        both!(_mm256_blend_epi16::<0b1010_1010>(
            a,
            both!(_mm256_slli_epi32::<16>(a))
        ))
    }

    #[inline(always)]
    unsafe fn high_twice(a: Ints) -> Ints {
        both!(_mm256_blend_epi16::<0b0101_0101>(
            a,
            both!(_mm256_srli_epi32::<16>(a))
        ))
    }

    #[inline(always)]
    unsafe fn madd16(a: Ints, b: Ints) -> Ints {
        both!(_mm256_madd_epi16(a, b))
    }

    #[inline(always)]
    unsafe fn load_u8_pairs(from: *const u8) -> Ints {
        let from = from.cast::<__m128i>();
        [
            _mm256_cvtepu8_epi16(_mm_loadu_si128(from)),
            _mm256_cvtepu8_epi16(_mm_loadu_si128(from.add(1))),
        ]
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(from: *const u8) -> Ints {
        let from = from.cast::<__m128i>();
        [
            _mm256_cvtepi8_epi16(_mm_loadu_si128(from)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(1))),
        ]
    }

    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, value: Ints) {
        // Packing works within halves of a register; the permutation puts the lanes in order.
        let words =
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(value[0], value[1]));
        let (low, high) = (
            _mm256_castsi256_si128(words),
            _mm256_extracti128_si256::<1>(words),
        );
        _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
    }

    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Ints {
        let from = from.cast::<__m256i>();
        [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
    }

    #[inline(always)]
    unsafe fn store_b(to: *mut u8, value: Ints) {
        let to = to.cast::<__m256i>();
        _mm256_storeu_si256(to, value[0]);
        _mm256_storeu_si256(to.add(1), value[1]);
    }

    #[inline(always)]
    unsafe fn and_b(a: Ints, mask: u8) -> Ints {
        both!(_mm256_and_si256(a, [_mm256_set1_epi8(mask as i8); 2]))
    }

    #[inline(always)]
    unsafe fn or_b(a: Ints, b: Ints) -> Ints {
        both!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    unsafe fn xor_b(a: Ints, mask: u8) -> Ints {
        both!(_mm256_xor_si256(a, [_mm256_set1_epi8(mask as i8); 2]))
    }

    #[inline(always)]
    unsafe fn shr_b<const N: i32>(a: Ints) -> Ints {
        both!(_mm256_srli_epi16::<N>(a))
    }

    #[inline(always)]
    unsafe fn shl_b<const N: i32>(a: Ints) -> Ints {
        both!(_mm256_slli_epi16::<N>(a))
    }

    #[inline(always)]
    unsafe fn acc_zero() -> Ints {
        [_mm256_setzero_si256(); 2]
    }

    #[inline(always)]
    unsafe fn acc_begin(halves: i32) -> Ints {
        Self::splat_i(halves)
    }

    #[inline(always)]
    unsafe fn acc(acc: Ints, weights: Ints, activations: i32) -> Ints {
        let activations = [_mm256_set1_epi32(activations); 2];
        both!(_mm256_add_epi16(
            acc,
            both!(_mm256_maddubs_epi16(weights, activations))
        ))
    }

    #[inline(always)]
    unsafe fn acc_finish(acc: Ints) -> Ints {
        both!(_mm256_madd_epi16(acc, [_mm256_set1_epi16(1); 2]))
    }

    #[inline(always)]
    unsafe fn acc_scaled(acc: Ints, scales: Ints) -> Ints {
        both!(_mm256_madd_epi16(acc, scales))
    }

    #[inline(always)]
    unsafe fn acc_signed(acc: Ints, weights: Ints, activations: i32) -> Ints {
        let activations = [_mm256_set1_epi32(activations); 2];
        let signed = both!(_mm256_sign_epi8(activations, weights));
        let products = both!(_mm256_maddubs_epi16(
            both!(_mm256_abs_epi8(weights)),
            signed
        ));
        Self::add_i(acc, Self::acc_finish(products))
    }

    #[inline(always)]
    unsafe fn highest_i(a: Ints) -> i32 {
        let eight = _mm256_max_epi32(a[0], a[1]);
        let (low, high) = (
            _mm256_castsi256_si128(eight),
            _mm256_extracti128_si256::<1>(eight),
        );
        let four = _mm_max_epi32(low, high);
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        _mm_cvtsi128_si32(one)
    }

    #[inline(always)]
    unsafe fn sum_i(a: Ints) -> i32 {
        let eight = _mm256_add_epi32(a[0], a[1]);
        let (low, high) = (
            _mm256_castsi256_si128(eight),
            _mm256_extracti128_si256::<1>(eight),
        );
        let four = _mm_add_epi32(low, high);
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        _mm_cvtsi128_si32(one)
    }

    #[inline(always)]
    unsafe fn sums_of_pairs(a: Ints) -> (i32, i32) {
        let eight = _mm256_add_epi32(a[0], a[1]);
        let four = _mm_add_epi32(
            _mm256_castsi256_si128(eight),
            _mm256_extracti128_si256::<1>(eight),
        );
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b10_11_00_01>(four));
        (_mm_cvtsi128_si32(two), _mm_extract_epi32::<2>(two))
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }

    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
}
