//! How the integers of quantised weights lie in memory.
//!
//! A **chunk** is sixteen rows (one per lane) by 32 inner values. Its values are taken in eight
//! groups of four: group `g` is one vector in which lane `r` holds the values `4g..4g+4` of row
//! `r`, a byte each. Narrow values share bytes: the vector of a group is taken out of the chunk
//! with a shift and a mask, and the values of a row never leave their lane.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::isa::{Isa, LANES};

/// Inner values of a chunk.
pub(crate) const CHUNK: usize = 32;
/// Groups of a chunk.
pub(crate) const GROUPS: usize = 8;
/// Bytes of one group of bytes.
pub(crate) const GROUP_BYTES: usize = 4 * LANES;

/// A form of packing.
pub(crate) trait Pack {
    /// The same values, a byte each.
    type Unpacked: Pack;

    /// Every value is below two to the power of this.
    const BITS: u32;
    /// Bytes of a chunk.
    const BYTES: usize;

    /// Adds the values of one row to a chunk that is zero in its lane.
    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]);

    /// One value.
    fn get(chunk: &[u8], lane: usize, index: usize) -> u8;

    /// The bytes of group `group`, which is known when this is compiled.
    ///
    /// # Safety
    /// See [`Isa`]; `chunk` must point to [`Pack::BYTES`].
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B;
}

/// Where byte `byte` of a row's lane lies in vector `vector`.
const fn at(vector: usize, lane: usize, byte: usize) -> usize {
    vector * GROUP_BYTES + 4 * lane + byte
}

/// A byte for each value.
pub(crate) struct Bytes<const BITS: u32>;

impl<const BITS: u32> Pack for Bytes<BITS> {
    type Unpacked = Self;

    const BITS: u32 = BITS;
    const BYTES: usize = GROUPS * GROUP_BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        for (index, value) in values.iter().enumerate() {
            chunk[at(index / 4, lane, index % 4)] = *value;
        }
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        chunk[at(index / 4, lane, index % 4)]
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        I::load_b(chunk.add(group * GROUP_BYTES))
    }
}

/// Two bits: groups 0..4 share the first vector, the others the second.
pub(crate) struct Two;

impl Pack for Two {
    type Unpacked = Bytes<2>;

    const BITS: u32 = 2;
    const BYTES: usize = 2 * GROUP_BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        for (index, value) in values.iter().enumerate() {
            let group = index / 4;
            chunk[at(group / 4, lane, index % 4)] |= (value & 3) << (2 * (group % 4));
        }
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        let group = index / 4;
        chunk[at(group / 4, lane, index % 4)] >> (2 * (group % 4)) & 3
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        let shared = I::load_b(chunk.add(group / 4 * GROUP_BYTES));
        let moved = match group % 4 {
            0 => shared,
            1 => I::shr_b::<2>(shared),
            2 => I::shr_b::<4>(shared),
            _ => I::shr_b::<6>(shared),
        };
        I::and_b(moved, 0x03)
    }
}

/// Four bits: groups `g` and `g + 4` share a vector.
pub(crate) struct Four;

impl Pack for Four {
    type Unpacked = Bytes<4>;

    const BITS: u32 = 4;
    const BYTES: usize = 4 * GROUP_BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        for index in 0..CHUNK / 2 {
            let byte = values[index] & 0x0f | values[index + CHUNK / 2] << 4;
            chunk[at(index / 4, lane, index % 4)] |= byte;
        }
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        let group = index / 4;
        chunk[at(group % 4, lane, index % 4)] >> (4 * (group / 4)) & 0x0f
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        let shared = I::load_b(chunk.add(group % 4 * GROUP_BYTES));
        if group < 4 {
            I::and_b(shared, 0x0f)
        } else {
            I::and_b(I::shr_b::<4>(shared), 0x0f)
        }
    }
}

/// A plane of single bits, eight groups in one vector, and another form for the bits below.
struct Plane;

impl Plane {
    const BYTES: usize = GROUP_BYTES;

    fn put(bit: u8, lane: usize, index: usize, plane: &mut [u8]) {
        plane[at(0, lane, index % 4)] |= (bit & 1) << (index / 4);
    }

    fn get(plane: &[u8], lane: usize, index: usize) -> u8 {
        plane[at(0, lane, index % 4)] >> (index / 4) & 1
    }

    /// The bit of group `group`, at bit `TO` of every byte; `TO` is 2 or 4.
    #[inline(always)]
    unsafe fn group<I: Isa, const TO: usize>(plane: *const u8, group: usize) -> I::B {
        let shared = I::load_b(plane);
        let moved = match group as i32 - TO as i32 {
            -4 => I::shl_b::<4>(shared),
            -3 => I::shl_b::<3>(shared),
            -2 => I::shl_b::<2>(shared),
            -1 => I::shl_b::<1>(shared),
            0 => shared,
            1 => I::shr_b::<1>(shared),
            2 => I::shr_b::<2>(shared),
            3 => I::shr_b::<3>(shared),
            4 => I::shr_b::<4>(shared),
            _ => I::shr_b::<5>(shared),
        };
        I::and_b(moved, 1 << TO)
    }
}

/// Three bits: two below, one in a plane.
pub(crate) struct Three;

impl Pack for Three {
    type Unpacked = Bytes<3>;

    const BITS: u32 = 3;
    const BYTES: usize = Two::BYTES + Plane::BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        Two::put(values, lane, chunk);
        for (index, value) in values.iter().enumerate() {
            Plane::put(value >> 2, lane, index, &mut chunk[Two::BYTES..]);
        }
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        Two::get(chunk, lane, index) | Plane::get(&chunk[Two::BYTES..], lane, index) << 2
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        let high = Plane::group::<I, 2>(chunk.add(Two::BYTES), group);
        I::or_b(Two::group::<I>(chunk, group), high)
    }
}

/// Five bits: four below, one in a plane.
pub(crate) struct Five;

impl Pack for Five {
    type Unpacked = Bytes<5>;

    const BITS: u32 = 5;
    const BYTES: usize = Four::BYTES + Plane::BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        Four::put(values, lane, chunk);
        for (index, value) in values.iter().enumerate() {
            Plane::put(value >> 4, lane, index, &mut chunk[Four::BYTES..]);
        }
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        Four::get(chunk, lane, index) | Plane::get(&chunk[Four::BYTES..], lane, index) << 4
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        let high = Plane::group::<I, 4>(chunk.add(Four::BYTES), group);
        I::or_b(Four::group::<I>(chunk, group), high)
    }
}

/// Six bits: four below, two in the form of [`Two`].
pub(crate) struct Six;

impl Pack for Six {
    type Unpacked = Bytes<6>;

    const BITS: u32 = 6;
    const BYTES: usize = Four::BYTES + Two::BYTES;

    fn put(values: &[u8; CHUNK], lane: usize, chunk: &mut [u8]) {
        Four::put(values, lane, chunk);
        Two::put(
            &values.map(|value| value >> 4),
            lane,
            &mut chunk[Four::BYTES..],
        );
    }

    fn get(chunk: &[u8], lane: usize, index: usize) -> u8 {
        Four::get(chunk, lane, index) | Two::get(&chunk[Four::BYTES..], lane, index) << 4
    }

    #[inline(always)]
    unsafe fn group<I: Isa>(chunk: *const u8, group: usize) -> I::B {
        let shared = I::load_b(chunk.add(Four::BYTES + group / 4 * GROUP_BYTES));
        let moved = match group % 4 {
            0 => I::shl_b::<4>(shared),
            1 => I::shl_b::<2>(shared),
            2 => shared,
            _ => I::shr_b::<2>(shared),
        };
        I::or_b(Four::group::<I>(chunk, group), I::and_b(moved, 0x30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Kernel, dispatch};
    use crate::hardware::isas;

    struct Unpack<'a, P>(&'a [u8], std::marker::PhantomData<P>);

    impl<P: Pack> Kernel for Unpack<'_, P> {
        type Output = Vec<u8>;

        unsafe fn run<I: Isa>(self) -> Vec<u8> {
            let mut out = vec![0; GROUPS * GROUP_BYTES];
            for group in 0..GROUPS {
                let bytes = P::group::<I>(self.0.as_ptr(), group);
                I::store_b(out.as_mut_ptr().add(group * GROUP_BYTES), bytes);
            }
            out
        }
    }

    fn every_value_comes_out_as_it_went_in<P: Pack>() {
        let mask = ((1u32 << P::BITS) - 1) as u8;
        let value = |lane: usize, index: usize| (lane * 31 + index * 7 + index / 5) as u8 & mask;
        let mut chunk = vec![0; P::BYTES];
        for lane in 0..LANES {
            let values = std::array::from_fn(|index| value(lane, index));
            P::put(&values, lane, &mut chunk);
        }
        for &isa in isas() {
            let bytes = dispatch(isa, Unpack::<P>(&chunk, std::marker::PhantomData));
            for lane in 0..LANES {
                for index in 0..CHUNK {
                    let expected = value(lane, index);
                    assert_eq!(P::get(&chunk, lane, index), expected);
                    assert_eq!(Bytes::<8>::get(&bytes, lane, index), expected, "{isa}");
                }
            }
        }
    }

    #[test]
    fn packing_loses_nothing() {
        every_value_comes_out_as_it_went_in::<Two>();
        every_value_comes_out_as_it_went_in::<Three>();
        every_value_comes_out_as_it_went_in::<Four>();
        every_value_comes_out_as_it_went_in::<Five>();
        every_value_comes_out_as_it_went_in::<Six>();
        every_value_comes_out_as_it_went_in::<Bytes<8>>();
    }
}
