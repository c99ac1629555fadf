//! Instruction sets: the few operations that the kernels are written in.
//!
//! A kernel is generic over [`Isa`] and works on sixteen lanes at a time, whatever the width of
//! the machine's registers. Every operation gives the same bits on every instruction set: the
//! integer ones are exact, the floating-point ones are single IEEE 754 operations (fused
//! multiply-add included). A kernel never adds across lanes except through [`Isa::sum`], whose
//! order is fixed. So a kernel gives the same bits everywhere by construction.
//!
//! [`dispatch`] picks the instruction set once and calls a kernel in a function that is compiled
//! for it; this is how one ordinary build serves every machine. Whatever is generic over [`Isa`]
//! must be `#[inline(always)]` down to there: a function of its own would be compiled for the
//! oldest processor, with a call for every operation. It would be right, and ten times as slow.

// A kernel's operations are all unsafe for one reason, stated at the trait.
#![allow(unsafe_op_in_unsafe_fn, reason = "see the trait's safety section")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
mod tiles;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::permitted as tiles_are_permitted;
pub(crate) use tiles::{NoTiles, TILE_ROWS, TILE_SUMS, TileUnit};

use crate::hardware::IsaName;

/// Lanes of every vector.
pub(crate) const LANES: usize = 16;

/// The operations of one instruction set, on sixteen lanes.
///
/// # Safety
/// Every function may only be called on a processor that has the instruction set, and pointers
/// must be valid for the lanes that are read or written. No alignment is needed.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`; also sixteen pairs of `i16`.
    type I: Copy;
    /// Sixteen groups of four bytes.
    type B: Copy;
    /// Sums of products of unsigned and signed bytes, wide enough for [`Isa::groups`] of them.
    type Acc: Copy;
    /// The unit that multiplies many rows at once, if there is one.
    type Tiles: TileUnit;

    /// Signed weights are multiplied as `weight + SIGNED_OFFSET`; the kernel takes it out again.
    const SIGNED_OFFSET: i32;

    /// Rows of activations that pass over an unpacked tile of a format of 32 values at a time: 4,
    /// or 8 where there are registers for them.
    const ROWS: usize = 4;

    /// Independent sums that keep the processor busy while each waits for its last product.
    const CHAINS: usize = 5;

    /// Whether several rows are multiplied faster with signed weights in two planes of a few bits.
    const SPLIT_SIGNED: bool;

    /// Runs a kernel in a function of its own. What is large and called often in the source is
    /// called so, or every caller would get a copy.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;

    /// How many products of weights of `bits` bits may be added up in one [`Isa::Acc`].
    fn groups(bits: u32) -> usize;

    /// How many, when the sum began with [`Isa::acc_begin`], which makes the weights lie around
    /// zero: what counts is the last sum, not those on the way, which may wrap around.
    #[inline(always)]
    fn groups_around_zero(bits: u32) -> usize {
        Self::groups(bits)
    }

    /// Keeps sums in registers, in the order in which they were written: the compiler may not
    /// move what goes into them beyond this point. Left alone, it turns several rows into one
    /// after the other and runs out of registers.
    #[inline(always)]
    unsafe fn pin<const N: usize>(_sums: &mut [Self::Acc; N]) {}

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    /// Sixteen `f16`, widened.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// Sixteen `bf16`, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Sixteen signed bytes as numbers.
    unsafe fn load_i8(from: *const i8) -> Self::F;
    /// Rounds to `f16`, ties to even.
    unsafe fn store_f16(to: *mut u16, value: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of the two; `b` where they are equal or one is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of the two; `b` where they are equal or one is not a number.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The bits of the magnitudes: as integers they are ordered as the numbers are, with what
    /// is not a number on top.
    unsafe fn magnitude_bits(a: Self::F) -> Self::I;
    /// To the nearest integer, ties to even. The values must fit.
    unsafe fn to_int(a: Self::F) -> Self::I;
    unsafe fn from_int(a: Self::I) -> Self::F;
    /// `value * 2^exponent`, for exponents of normal numbers.
    unsafe fn scale_by_power_of_two(value: Self::F, exponent: Self::I) -> Self::F;

    unsafe fn splat_i(value: i32) -> Self::I;
    unsafe fn load_i(from: *const i32) -> Self::I;
    unsafe fn store_i(to: *mut i32, value: Self::I);
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I;
    /// Keeps the bits of `mask` in every `i16`.
    unsafe fn and16(a: Self::I, mask: i16) -> Self::I;
    /// Shifts every `i16` right by four, zeros coming in.
    unsafe fn shr16_by_four(a: Self::I) -> Self::I;
    /// The lower `i16` of every pair, as both halves of it.
    unsafe fn low_twice(a: Self::I) -> Self::I;
    /// The upper `i16` of every pair, as both halves of it.
    unsafe fn high_twice(a: Self::I) -> Self::I;
    /// `a.low * b.low + a.high * b.high` of pairs of `i16`.
    unsafe fn madd16(a: Self::I, b: Self::I) -> Self::I;
    /// Thirty-two unsigned bytes as sixteen pairs of `i16`.
    unsafe fn load_u8_pairs(from: *const u8) -> Self::I;
    /// Thirty-two signed bytes as sixteen pairs of `i16`.
    unsafe fn load_i8_pairs(from: *const u8) -> Self::I;
    /// The lowest byte of every lane, sixteen bytes in all. The values must fit.
    unsafe fn store_i8(to: *mut i8, value: Self::I);

    unsafe fn load_b(from: *const u8) -> Self::B;
    unsafe fn store_b(to: *mut u8, value: Self::B);
    /// Keeps the bits of `mask` in every byte.
    unsafe fn and_b(a: Self::B, mask: u8) -> Self::B;
    unsafe fn or_b(a: Self::B, b: Self::B) -> Self::B;
    /// Turns over the bits of `mask` in every byte.
    unsafe fn xor_b(a: Self::B, mask: u8) -> Self::B;
    /// Shifts every byte right by `N`, what crosses a byte's border being undefined.
    unsafe fn shr_b<const N: i32>(a: Self::B) -> Self::B;
    /// Shifts every byte left by `N`, what crosses a byte's border being undefined.
    unsafe fn shl_b<const N: i32>(a: Self::B) -> Self::B;

    unsafe fn acc_zero() -> Self::Acc;
    /// A sum that begins, in each lane, with both halves of `halves`: the lower one goes with
    /// values 0 and 1 of every four, the upper one with values 2 and 3.
    unsafe fn acc_begin(halves: i32) -> Self::Acc;
    /// Adds, in each lane, the products of four unsigned bytes with the four signed ones of
    /// `activations`.
    unsafe fn acc(acc: Self::Acc, weights: Self::B, activations: i32) -> Self::Acc;
    unsafe fn acc_finish(acc: Self::Acc) -> Self::I;
    /// [`Isa::acc_finish`], times the scale that both halves of a pair of `i16` hold.
    unsafe fn acc_scaled(acc: Self::Acc, scales: Self::I) -> Self::I;
    /// Adds, in each lane, the products of four signed bytes (plus [`Isa::SIGNED_OFFSET`]) with
    /// the four signed ones of `activations`, which must not hold -128.
    unsafe fn acc_signed(acc: Self::I, weights: Self::B, activations: i32) -> Self::I;

    /// Asks for the cache line at `from`; any address may be given.
    unsafe fn prefetch(from: *const u8);

    /// The same, for what is needed later.
    unsafe fn prefetch_far(from: *const u8);

    /// The sum of all lanes: halves are added to each other until one lane is left.
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        Self::store(lanes.as_mut_ptr(), a);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest of all lanes.
    #[inline(always)]
    unsafe fn highest(a: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        Self::store(lanes.as_mut_ptr(), a);
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    unsafe fn highest_i(a: Self::I) -> i32;
    unsafe fn sum_i(a: Self::I) -> i32;
    /// The sum of lanes 0 and 1 of every four, and that of lanes 2 and 3.
    unsafe fn sums_of_pairs(a: Self::I) -> (i32, i32);
}

/// A kernel that can be run on any instruction set.
pub(crate) trait Kernel {
    /// What it gives.
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// The processor must have the instruction set.
    unsafe fn run<I: Isa>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set, which must be one of [`crate::hardware::isas`].
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: IsaName, kernel: K) -> K::Output {
    // SAFETY: names other than the scalar one are only given out after the processor was asked.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx512 => avx512::run::<K, NoTiles>(kernel),
            #[cfg(target_arch = "x86_64")]
            IsaName::Amx => avx512::run::<K, amx::Amx>(kernel),
            #[cfg(target_arch = "aarch64")]
            IsaName::Neon => neon::run(kernel),
            _ => scalar::run(kernel),
        }
    }
}
