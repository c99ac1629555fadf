//! Products of one tile of weights with rows of activations.
//!
//! Each lane is one output, and its blocks are added in order: first the exact integer sum of a
//! block, then one fused multiply-add with the scales. That order is the numerics class: it is
//! the same for one row and for many, and on every instruction set.
//!
//! One row is multiplied straight out of the packed chunks. For more, a part of the tile is
//! unpacked at a time and stays in the nearest cache while the rows pass, four at a time; the
//! results wait in between, which changes nothing of the order.

mod blocks;
mod floats;
mod layout;
mod supers;
mod tiled;

pub(crate) use tiled::LEAST as LEAST_TILED;

use super::activations::Activations;
use super::format::{Kind, with_format};
use super::isa::{Isa, Kernel};

/// Rows that pass over an unpacked tile at a time, or more ([`Isa::ROWS`]).
const ROWS: usize = super::activations::SIDE_BY_SIDE;

/// Repeats a block for each of the eight groups, whose number is a constant in it.
macro_rules! unroll_groups {
    ($group:ident, $body:block) => {{
        unroll_groups!(@each $group, $body, 0 1 2 3 4 5 6 7);
    }};
    (@each $group:ident, $body:block, $($number:literal)*) => {
        $({
            #[allow(non_upper_case_globals, reason = "a constant that reads as a variable")]
            const $group: usize = $number;
            $body
        })*
    };
}
use unroll_groups;

/// Rows of the activations that a tile is multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The activations.
    pub activations: &'a Activations,
    /// The first row.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Rows<'_> {
    /// Takes the rows apart into steps of `most`, [`ROWS`], two or one, and calls `step` with the
    /// place and the number of the rows of each. No step goes beyond the rows that lie side by side.
    #[inline(always)]
    fn steps(self, most: usize, mut step: impl FnMut(usize, usize)) {
        let mut done = 0;
        while done < self.count {
            let (first, left) = (self.first + done, self.count - done);
            let fits = |rows: &usize| *rows <= left && first.is_multiple_of(*rows);
            let rows = [most, ROWS, 2].into_iter().find(fits).unwrap_or(1);
            step(done, rows);
            done += rows;
        }
    }
}

/// Multiplies a tile with rows: one vector of [`LANES`] per row.
///
/// [`LANES`]: super::isa::LANES
pub(crate) struct TileProduct<'a> {
    pub kind: Kind,
    /// A whole tile of the kind, as wide as the rows, which have been brought into its form.
    pub tile: *const u8,
    pub rows: Rows<'a>,
    /// Room for the results.
    pub out: *mut f32,
    pub scratch: &'a mut Vec<u8>,
}

impl Kernel for TileProduct<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        use blocks::multiply as of_blocks;
        use supers::multiply as of_supers;
        let (tile, rows, out, scratch) = (self.tile, self.rows, self.out, self.scratch);
        // SAFETY: promised by whoever made this.
        unsafe {
            match self.kind {
                Kind::Quantised(dtype) => {
                    with_format!(dtype, of_blocks, of_supers, [I], tile, rows, out, scratch);
                }
                Kind::Float(dtype) => floats::multiply::<I>(dtype, tile, rows, out),
            }
        }
    }
}
