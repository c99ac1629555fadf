//! Where the parts of a tile lie, and products of the integers of a chunk.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::unroll_groups;
use crate::cpu::format::Format;
use crate::cpu::isa::{Isa, Kernel, LANES};
use crate::cpu::pack::{Bytes, GROUP_BYTES, GROUPS, Pack};
use std::marker::PhantomData;

/// Bytes of unpacked integers that are multiplied before the next are unpacked: half of the
/// smallest cache that we know of.
const UNPACKED: usize = 16 << 10;
/// Bytes of a vector of `f32` or `i32`.
pub(super) const VECTOR: usize = size_of::<[f32; LANES]>();
/// Bits of a signed byte that [`Split`] puts into the first plane, and into the second one.
const LOWER: u32 = 3;
const UPPER: u32 = 8 - LOWER;
/// Bytes of an unpacked chunk.
pub(super) const CHUNK_BYTES: usize = GROUPS * GROUP_BYTES;
/// Bytes of a line of the caches.
const LINE: usize = 64;
/// How far ahead of the multiplication packed weights are asked for.
const AHEAD: usize = 4096;

/// Where the parts of a tile's blocks lie: packed or unpacked.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub meta: *const u8,
    pub meta_step: usize,
    pub quants: *const u8,
    /// From one block to the next.
    pub quants_step: usize,
    /// From one chunk of a block to the next.
    pub chunk_step: usize,
    /// The first block, counted from the beginning of the rows.
    pub first: usize,
    pub blocks: usize,
}

impl Layout {
    /// The tile as it lies in memory.
    pub(super) fn packed<F: Format>(tile: *const u8, columns: usize) -> Self {
        Self {
            meta: tile,
            meta_step: F::TILE_BLOCK,
            quants: tile.wrapping_add(F::META),
            quants_step: F::TILE_BLOCK,
            chunk_step: F::Packing::BYTES,
            first: 0,
            blocks: columns / F::BLOCK,
        }
    }

    /// The parts of a packed tile that are unpacked one after the other.
    pub(super) fn parts<F: Format>(self, planes: usize) -> impl Iterator<Item = Self> {
        let most = UNPACKED / (F::CHUNKS * planes * CHUNK_BYTES);
        (0..self.blocks).step_by(most).map(move |first| Self {
            meta: self.meta.wrapping_add(first * self.meta_step),
            quants: self.quants.wrapping_add(first * self.quants_step),
            first,
            blocks: most.min(self.blocks - first),
            ..self
        })
    }

    /// The same, but with the integers, unpacked, and the scales, wide, in `scratch`.
    pub(super) fn in_scratch<F: Format, S: Scales<F>>(
        self,
        planes: usize,
        scratch: &mut Vec<u8>,
    ) -> Self {
        let integers = F::CHUNKS * planes * CHUNK_BYTES;
        let step = integers + S::BYTES;
        let needed = self.blocks * step + LINE;
        if scratch.len() < needed {
            scratch.resize(needed, 0);
        }
        // A load that crosses lines of the cache counts twice.
        let start = scratch.as_mut_ptr();
        let start = start.wrapping_add(start.align_offset(LINE));
        Self {
            meta: start.wrapping_add(integers),
            meta_step: step,
            quants: start,
            quants_step: step,
            chunk_step: planes * CHUNK_BYTES,
            ..self
        }
    }

    /// A share of the packed bytes that follow this part: while rows `from..to` of `all` pass, as
    /// much of them, in `turns` turns.
    #[inline(always)]
    pub(super) fn next(self, from: usize, to: usize, all: usize, turns: usize) -> Next {
        let bytes = self.blocks * self.meta_step;
        let lines = bytes.div_ceil(LINE);
        let first = lines * from / all;
        Next {
            line: self.meta.wrapping_add(bytes + LINE * first),
            lines: lines * to / all - first,
            turns,
            due: 0,
        }
    }
}

/// Lines of the memory that are asked for while others are multiplied, evenly: a processor that is
/// asked for more than it can remember waits.
#[derive(Clone, Copy)]
pub(super) struct Next {
    line: *const u8,
    lines: usize,
    turns: usize,
    /// Lines that are due, in parts of `turns`.
    due: usize,
}

impl Next {
    /// None at all.
    pub(super) const NOTHING: Self = Self {
        line: std::ptr::null(),
        lines: 0,
        turns: 1,
        due: 0,
    };

    /// Asks for those of one turn.
    #[inline(always)]
    pub(super) unsafe fn ask<I: Isa>(&mut self) {
        self.due += self.lines;
        while self.due >= self.turns {
            I::prefetch_far(self.line);
            self.line = self.line.wrapping_add(LINE);
            self.due -= self.turns;
        }
    }
}

/// Asks for the lines of the block that lies [`AHEAD`] bytes on.
#[inline(always)]
pub(super) unsafe fn ask_ahead<I: Isa>(block: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(LINE) {
        I::prefetch(block.wrapping_add(AHEAD + LINE * line));
    }
}

/// How the scales of a format lie when several rows use them: as the multiplication takes them, so
/// that they are made once and not for every few rows.
pub(super) trait Scales<F> {
    /// Bytes of the wide scales of a block.
    const BYTES: usize;

    /// Makes them from the scales of a packed block.
    unsafe fn widen<I: Isa>(meta: *const u8, to: *mut u8);
}

/// The scales of a block, or the minima that come next: `f32` if they are wide, else `f16`.
#[inline(always)]
pub(super) unsafe fn numbers<I: Isa, const WIDE: bool>(meta: *const u8, index: usize) -> I::F {
    if WIDE {
        I::load(meta.cast::<f32>().add(index * LANES))
    } else {
        I::load_f16(meta.cast::<u16>().add(index * LANES))
    }
}

/// Makes the wide form of all that [`numbers`] reads.
#[inline(always)]
pub(super) unsafe fn widen_numbers<I: Isa, F: Format>(meta: *const u8, to: *mut u8) {
    for index in 0..F::SCALES {
        let scales = numbers::<I, false>(meta, index);
        I::store(to.cast::<f32>().add(index * LANES), scales);
    }
}

/// Unpacks a part of a tile into bytes and wide scales.
pub(super) struct Unpack<'a, F, S>(pub Layout, pub &'a mut Vec<u8>, pub PhantomData<(F, S)>);

impl<F: Format, S: Scales<F>> Kernel for Unpack<'_, F, S> {
    type Output = Layout;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Layout {
        let Self(packed, scratch, _) = self;
        let layout = packed.in_scratch::<F, S>(1, scratch);
        let mut to = layout.quants.cast_mut();
        for block in 0..packed.blocks {
            for part in 0..F::CHUNKS {
                let from = packed
                    .quants
                    .add(block * packed.quants_step + part * packed.chunk_step);
                unroll_groups!(G, {
                    I::store_b(to.add(G * GROUP_BYTES), F::Packing::group::<I>(from, G));
                });
                to = to.add(CHUNK_BYTES);
            }
            S::widen::<I>(packed.meta.add(block * packed.meta_step), to);
            to = to.add(S::BYTES);
        }
        layout
    }
}

/// Splits a part of a tile of signed bytes into two planes: the [`LOWER`] bits, and the [`UPPER`]
/// ones plus 16. So the sums of either fit into sixteen bits.
pub(super) struct Split<'a, F, S>(pub Layout, pub &'a mut Vec<u8>, pub PhantomData<(F, S)>);

impl<F: Format, S: Scales<F>> Kernel for Split<'_, F, S> {
    type Output = Layout;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Layout {
        let Self(packed, scratch, _) = self;
        let layout = packed.in_scratch::<F, S>(2, scratch);
        let mut to = layout.quants.cast_mut();
        for block in 0..packed.blocks {
            let from = packed.quants.add(block * packed.quants_step);
            unroll_groups!(G, {
                let signed = F::Packing::group::<I>(from, G);
                let upper = I::and_b(I::shr_b::<3>(signed), 0x1f);
                let at = to.add(G * GROUP_BYTES);
                I::store_b(at, I::and_b(signed, 0x07));
                I::store_b(at.add(CHUNK_BYTES), I::xor_b(upper, 0x10));
            });
            to = to.add(2 * CHUNK_BYTES);
            S::widen::<I>(packed.meta.add(block * packed.meta_step), to);
            to = to.add(S::BYTES);
        }
        layout
    }
}

/// Four bytes of a row.
#[inline(always)]
unsafe fn four(values: *const i8) -> i32 {
    values.cast::<i32>().read_unaligned()
}

/// The products of groups `FROM..TO` of a chunk with the values of `N` rows, which lie `BLOCK`
/// bytes apart; `values` are those of the first row that go with the chunk. The sums begin with
/// `starts`; after every `limit` groups `finish` turns what was added up into whole numbers.
#[inline(always)]
pub(super) unsafe fn dot<
    I: Isa,
    P: Pack,
    const FROM: usize,
    const TO: usize,
    const BLOCK: usize,
    const N: usize,
>(
    chunk: *const u8,
    values: *const i8,
    starts: [I::Acc; N],
    limit: usize,
    finish: impl Fn(I::Acc) -> I::I,
) -> [I::I; N] {
    let mut sums = [I::splat_i(0); N];
    let mut parts = starts;
    unroll_groups!(G, {
        if (FROM..TO).contains(&G) {
            let weights = P::group::<I>(chunk, G);
            for row in 0..N {
                let own = four(values.add(row * BLOCK + 4 * G));
                parts[row] = I::acc(parts[row], weights, own);
            }
            if N > 1 {
                I::pin(&mut parts);
            }
            if (G - FROM) % limit == limit - 1 || G == TO - 1 {
                for row in 0..N {
                    sums[row] = I::add_i(sums[row], finish(parts[row]));
                    parts[row] = I::acc_zero();
                }
            }
        }
    });
    sums
}

/// The same for a whole chunk of signed bytes.
#[inline(always)]
pub(super) unsafe fn dot_signed<I: Isa, P: Pack, const BLOCK: usize, const N: usize>(
    chunk: *const u8,
    values: *const i8,
) -> [I::I; N] {
    let mut sums = [I::splat_i(0); N];
    unroll_groups!(G, {
        let weights = P::group::<I>(chunk, G);
        for row in 0..N {
            let own = four(values.add(row * BLOCK + 4 * G));
            sums[row] = I::acc_signed(sums[row], weights, own);
        }
    });
    sums
}

/// The same for a whole chunk of signed bytes that was taken apart by [`Split`]. `starts` take off
/// what the upper bits count too much.
#[inline(always)]
pub(super) unsafe fn dot_split<I: Isa, const BLOCK: usize, const N: usize>(
    chunk: *const u8,
    values: *const i8,
    starts: [I::Acc; N],
) -> [I::I; N] {
    let eight = I::splat_i(8 << 16 | 8);
    let upper = chunk.add(CHUNK_BYTES);
    let mut sums = dot::<I, Bytes<LOWER>, 0, 8, BLOCK, N>(
        chunk,
        values,
        [I::acc_zero(); N],
        I::groups(LOWER),
        |part| unsafe { I::acc_finish(part) },
    );
    let others = dot::<I, Bytes<UPPER>, 0, 8, BLOCK, N>(
        upper,
        values,
        starts,
        I::groups_around_zero(UPPER),
        |part| unsafe { I::acc_scaled(part, eight) },
    );
    for row in 0..N {
        sums[row] = I::add_i(sums[row], others[row]);
    }
    sums
}
