//! AVX-512 with VNNI: one register of sixteen lanes. The same, with a unit for tiles beside it
//! where the processor has one.

use super::{Isa, Kernel, TileUnit};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// `T` is the unit for tiles.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<T>(PhantomData<T>);

/// Runs a kernel in a function that is compiled for this instruction set.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel, T: TileUnit>(kernel: K) -> K::Output {
    kernel.run::<Avx512<T>>()
}

impl<T: TileUnit> Isa for Avx512<T> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type Acc = __m512i;
    type Tiles = T;

    const SIGNED_OFFSET: i32 = 128;
    const ROWS: usize = 8;
    const CHAINS: usize = 10;
    const SPLIT_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        run::<K, T>(kernel)
    }

    #[inline(always)]
    fn groups(_: u32) -> usize {
        8
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        _mm512_storeu_ps(to, value);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m512 {
        Self::from_int(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: __m512) {
        let rounded = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
        _mm256_storeu_si256(to.cast(), rounded);
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn magnitude_bits(a: __m512) -> __m512i {
        _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(i32::MAX))
    }

    #[inline(always)]
    unsafe fn to_int(a: __m512) -> __m512i {
        _mm512_cvtps_epi32(a)
    }

    #[inline(always)]
    unsafe fn from_int(a: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(a)
    }

    #[inline(always)]
    unsafe fn scale_by_power_of_two(value: __m512, exponent: __m512i) -> __m512 {
        let biased = _mm512_add_epi32(exponent, _mm512_set1_epi32(127));
        let power = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased));
        _mm512_mul_ps(value, power)
    }

    #[inline(always)]
    unsafe fn splat_i(value: i32) -> __m512i {
        _mm512_set1_epi32(value)
    }

    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn store_i(to: *mut i32, value: __m512i) {
        _mm512_storeu_si512(to.cast(), value);
    }

    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_add_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn sub_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_sub_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn max_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_max_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn mul_i(a: __m512i, b: __m512i) -> __m512i {
        _mm512_mullo_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn and16(a: __m512i, mask: i16) -> __m512i {
        _mm512_and_si512(a, _mm512_set1_epi16(mask))
    }

    #[inline(always)]
    unsafe fn shr16_by_four(a: __m512i) -> __m512i {
        _mm512_srli_epi16::<4>(a)
    }

    #[inline(always)]
    unsafe fn low_twice(a: __m512i) -> __m512i {
        let low = _mm512_and_si512(a, _mm512_set1_epi32(0xffff));
        _mm512_or_si512(low, _mm512_slli_epi32::<16>(a))
    }

    #[inline(always)]
    unsafe fn high_twice(a: __m512i) -> __m512i {
        let high = _mm512_srli_epi32::<16>(a);
        _mm512_or_si512(high, _mm512_slli_epi32::<16>(high))
    }

    #[inline(always)]
    unsafe fn madd16(a: __m512i, b: __m512i) -> __m512i {
        _mm512_madd_epi16(a, b)
    }

    #[inline(always)]
    unsafe fn load_u8_pairs(from: *const u8) -> __m512i {
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(from: *const u8) -> __m512i {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, value: __m512i) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(value));
    }

    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn store_b(to: *mut u8, value: __m512i) {
        _mm512_storeu_si512(to.cast(), value);
    }

    #[inline(always)]
    unsafe fn and_b(a: __m512i, mask: u8) -> __m512i {
        _mm512_and_si512(a, _mm512_set1_epi8(mask as i8))
    }

    #[inline(always)]
    unsafe fn or_b(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }

    #[inline(always)]
    unsafe fn xor_b(a: __m512i, mask: u8) -> __m512i {
        _mm512_xor_si512(a, _mm512_set1_epi8(mask as i8))
    }

    #[inline(always)]
    unsafe fn shr_b<const N: i32>(a: __m512i) -> __m512i {
        // This intrinsic takes its count as an unsigned constant.
        match N {
            1 => _mm512_srli_epi16::<1>(a),
            2 => _mm512_srli_epi16::<2>(a),
            3 => _mm512_srli_epi16::<3>(a),
            4 => _mm512_srli_epi16::<4>(a),
            5 => _mm512_srli_epi16::<5>(a),
            6 => _mm512_srli_epi16::<6>(a),
            7 => _mm512_srli_epi16::<7>(a),
            _ => a,
        }
    }

    #[inline(always)]
    unsafe fn shl_b<const N: i32>(a: __m512i) -> __m512i {
        match N {
            1 => _mm512_slli_epi16::<1>(a),
            2 => _mm512_slli_epi16::<2>(a),
            3 => _mm512_slli_epi16::<3>(a),
            4 => _mm512_slli_epi16::<4>(a),
            5 => _mm512_slli_epi16::<5>(a),
            6 => _mm512_slli_epi16::<6>(a),
            7 => _mm512_slli_epi16::<7>(a),
            _ => a,
        }
    }

    #[inline(always)]
    unsafe fn acc_zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn acc_begin(halves: i32) -> __m512i {
        _mm512_madd_epi16(_mm512_set1_epi32(halves), _mm512_set1_epi16(1))
    }

    #[inline(always)]
    unsafe fn acc(acc: __m512i, weights: __m512i, activations: i32) -> __m512i {
        _mm512_dpbusd_epi32(acc, weights, _mm512_set1_epi32(activations))
    }

    #[inline(always)]
    unsafe fn acc_finish(acc: __m512i) -> __m512i {
        acc
    }

    #[inline(always)]
    unsafe fn acc_scaled(acc: __m512i, scales: __m512i) -> __m512i {
        _mm512_mullo_epi32(acc, _mm512_srai_epi32::<16>(scales))
    }

    #[inline(always)]
    unsafe fn acc_signed(acc: __m512i, weights: __m512i, activations: i32) -> __m512i {
        let unsigned = _mm512_xor_si512(weights, _mm512_set1_epi8(i8::MIN));
        Self::acc(acc, unsigned, activations)
    }

    #[inline(always)]
    unsafe fn highest_i(a: __m512i) -> i32 {
        _mm512_reduce_max_epi32(a)
    }

    #[inline(always)]
    unsafe fn sum_i(a: __m512i) -> i32 {
        _mm512_reduce_add_epi32(a)
    }

    #[inline(always)]
    unsafe fn sums_of_pairs(a: __m512i) -> (i32, i32) {
        let eight = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64::<1>(a));
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
