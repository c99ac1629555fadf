//! Plain Rust: every processor, and what the other instruction sets are compared with.

use super::{Isa, Kernel, LANES};
use half::{bf16, f16};
use std::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Runs a kernel in a function of its own.
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Scalar>()
}

type Floats = [f32; LANES];
type Ints = [i32; LANES];

fn halves(pair: i32) -> (i32, i32) {
    (i32::from(pair as i16), pair >> 16)
}

fn pair(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}

/// Both halves through the same function.
fn on_halves(pairs: Ints, function: impl Fn(i32) -> i32) -> Ints {
    from_fn(|lane| {
        let (low, high) = halves(pairs[lane]);
        pair(function(low), function(high))
    })
}

impl Isa for Scalar {
    type F = Floats;
    type I = Ints;
    type B = [u8; 4 * LANES];
    type Acc = Ints;
    type Tiles = super::NoTiles;

    const SIGNED_OFFSET: i32 = 0;
    const SPLIT_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        run(kernel)
    }

    #[inline(always)]
    fn groups(_: u32) -> usize {
        8
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Floats {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Floats {
        from.cast::<Floats>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Floats) {
        to.cast::<Floats>().write_unaligned(value);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Floats {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        bits.map(|bits| f16::from_bits(bits).to_f32_const())
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Floats {
        let bits = from.cast::<[u16; LANES]>().read_unaligned();
        bits.map(|bits| bf16::from_bits(bits).to_f32_const())
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Floats {
        from.cast::<[i8; LANES]>().read_unaligned().map(f32::from)
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Floats) {
        let bits = value.map(|value| f16::from_f32_const(value).to_bits());
        to.cast::<[u16; LANES]>().write_unaligned(bits);
    }

    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn magnitude_bits(a: Floats) -> Ints {
        a.map(|value| value.abs().to_bits() as i32)
    }

    #[inline(always)]
    unsafe fn to_int(a: Floats) -> Ints {
        a.map(|value| value.round_ties_even() as i32)
    }

    #[inline(always)]
    unsafe fn from_int(a: Ints) -> Floats {
        a.map(|value| value as f32)
    }

    #[inline(always)]
    unsafe fn scale_by_power_of_two(value: Floats, exponent: Ints) -> Floats {
        from_fn(|lane| {
            let power = f32::from_bits(((exponent[lane] + 127) as u32) << 23);
            value[lane] * power
        })
    }

    #[inline(always)]
    unsafe fn splat_i(value: i32) -> Ints {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load_i(from: *const i32) -> Ints {
        from.cast::<Ints>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store_i(to: *mut i32, value: Ints) {
        to.cast::<Ints>().write_unaligned(value);
    }

    #[inline(always)]
    unsafe fn add_i(a: Ints, b: Ints) -> Ints {
        from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    unsafe fn sub_i(a: Ints, b: Ints) -> Ints {
        from_fn(|lane| a[lane].wrapping_sub(b[lane]))
    }

    #[inline(always)]
    unsafe fn max_i(a: Ints, b: Ints) -> Ints {
        from_fn(|lane| a[lane].max(b[lane]))
    }

    #[inline(always)]
    unsafe fn mul_i(a: Ints, b: Ints) -> Ints {
        from_fn(|lane| a[lane].wrapping_mul(b[lane]))
    }

    #[inline(always)]
    unsafe fn and16(a: Ints, mask: i16) -> Ints {
        on_halves(a, |half| half & i32::from(mask))
    }

    #[inline(always)]
    unsafe fn shr16_by_four(a: Ints) -> Ints {
        on_halves(a, |half| (half & 0xffff) >> 4)
    }

    #[inline(always)]
    unsafe fn low_twice(a: Ints) -> Ints {
        a.map(|both| pair(both, both))
    }

    #[inline(always)]
    unsafe fn high_twice(a: Ints) -> Ints {
        a.map(|both| pair(both >> 16, both >> 16))
    }

    #[inline(always)]
    unsafe fn madd16(a: Ints, b: Ints) -> Ints {
        from_fn(|lane| {
            let (a, b) = (halves(a[lane]), halves(b[lane]));
            (a.0 * b.0).wrapping_add(a.1 * b.1)
        })
    }

    #[inline(always)]
    unsafe fn load_u8_pairs(from: *const u8) -> Ints {
        let bytes = from.cast::<[[u8; 2]; LANES]>().read_unaligned();
        bytes.map(|[low, high]| pair(low.into(), high.into()))
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(from: *const u8) -> Ints {
        let bytes = from.cast::<[[i8; 2]; LANES]>().read_unaligned();
        bytes.map(|[low, high]| pair(low.into(), high.into()))
    }

    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, value: Ints) {
        let bytes = value.map(|value| value as i8);
        to.cast::<[i8; LANES]>().write_unaligned(bytes);
    }

    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        from.cast::<Self::B>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store_b(to: *mut u8, value: Self::B) {
        to.cast::<Self::B>().write_unaligned(value);
    }

    #[inline(always)]
    unsafe fn and_b(a: Self::B, mask: u8) -> Self::B {
        a.map(|byte| byte & mask)
    }

    #[inline(always)]
    unsafe fn or_b(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|byte| a[byte] | b[byte])
    }

    #[inline(always)]
    unsafe fn xor_b(a: Self::B, mask: u8) -> Self::B {
        a.map(|byte| byte ^ mask)
    }

    #[inline(always)]
    unsafe fn shr_b<const N: i32>(a: Self::B) -> Self::B {
        a.map(|byte| byte >> N)
    }

    #[inline(always)]
    unsafe fn shl_b<const N: i32>(a: Self::B) -> Self::B {
        a.map(|byte| byte << N)
    }

    #[inline(always)]
    unsafe fn acc_zero() -> Ints {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn acc_begin(halves: i32) -> Ints {
        let (low, high) = self::halves(halves);
        [low + high; LANES]
    }

    // A function of its own: a copy for each group of each kernel would be very large.
    #[inline(never)]
    unsafe fn acc(acc: Ints, weights: Self::B, activations: i32) -> Ints {
        let activations = activations.to_ne_bytes();
        from_fn(|lane| {
            let mut sum = acc[lane];
            for byte in 0..4 {
                sum += i32::from(weights[4 * lane + byte]) * i32::from(activations[byte] as i8);
            }
            sum
        })
    }

    #[inline(always)]
    unsafe fn acc_finish(acc: Ints) -> Ints {
        acc
    }

    #[inline(always)]
    unsafe fn acc_scaled(acc: Ints, scales: Ints) -> Ints {
        from_fn(|lane| acc[lane].wrapping_mul(halves(scales[lane]).0))
    }

    #[inline(never)]
    unsafe fn acc_signed(acc: Ints, weights: Self::B, activations: i32) -> Ints {
        let activations = activations.to_ne_bytes();
        from_fn(|lane| {
            let mut sum = acc[lane];
            for byte in 0..4 {
                let weight = i32::from(weights[4 * lane + byte] as i8);
                sum += weight * i32::from(activations[byte] as i8);
            }
            sum
        })
    }

    #[inline(always)]
    unsafe fn highest_i(a: Ints) -> i32 {
        a.into_iter().fold(i32::MIN, i32::max)
    }

    #[inline(always)]
    unsafe fn sum_i(a: Ints) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    unsafe fn sums_of_pairs(a: Ints) -> (i32, i32) {
        let sum = |sum: i32, pair: &[i32; 2]| sum.wrapping_add(pair[0]).wrapping_add(pair[1]);
        let pairs = a.as_chunks::<2>().0;
        let (first, second) = (pairs.iter().step_by(2), pairs.iter().skip(1).step_by(2));
        (first.fold(0, sum), second.fold(0, sum))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const u8) {}
}
