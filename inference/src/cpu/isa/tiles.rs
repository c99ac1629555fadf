//! What a unit for tiles does: the integer sums of sixteen rows of activations with sixteen lanes.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the trait's safety section")]

use super::LANES;

/// Rows of activations that are multiplied at once.
pub(crate) const TILE_ROWS: usize = 16;
/// Sums of one tile.
pub(crate) const TILE_SUMS: usize = TILE_ROWS * LANES;

/// A unit that multiplies tiles of signed bytes, exactly. It works on what lies in memory: groups
/// of four bytes for each of sixteen lanes, as [`pack`] has them, and rows of activations.
///
/// # Safety
/// The processor must have the unit and, but for [`TileUnit::scale`], [`TileUnit::begin`] must have
/// been called on this thread. Pointers must be valid for what is read and written.
///
/// [`pack`]: crate::cpu::pack
pub(crate) trait TileUnit: Copy + Send + Sync + 'static {
    /// Whether there is one. Without it nothing of this may be called.
    const THERE: bool;

    /// Prepares the unit.
    unsafe fn begin();

    /// Gives the unit's state up, so that nobody has to save it.
    unsafe fn end();

    /// Multiplies the bytes of a group, less `offset`, with the scale that both halves of the
    /// lane's word hold. The products, of thirteen bits and a sign, are split into seven bits
    /// without a sign, which go to `lower`, and the others.
    unsafe fn scale(group: *const u8, offset: i16, scales: *const i32, to: [*mut u8; 2]);

    /// The sums of 256 values of both `planes` that [`TileUnit::scale`] made: those of the first
    /// plane to `sums`, row after row, then those of the second. Rows follow each other.
    unsafe fn supers(planes: [*const u8; 2], values: *const i8, sums: *mut i32);

    /// `turns` times some products of whole tiles with everything in registers, and how many
    /// products of bytes that is.
    unsafe fn work(turns: usize) -> usize;
}

/// No such unit.
#[derive(Clone, Copy)]
pub(crate) enum NoTiles {}

impl TileUnit for NoTiles {
    const THERE: bool = false;

    unsafe fn begin() {}

    unsafe fn end() {}

    unsafe fn scale(_: *const u8, _: i16, _: *const i32, _: [*mut u8; 2]) {}

    unsafe fn supers(_: [*const u8; 2], _: *const i8, _: *mut i32) {}

    unsafe fn work(_: usize) -> usize {
        0
    }
}
