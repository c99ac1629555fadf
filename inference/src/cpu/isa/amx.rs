//! AMX-INT8: eight tile registers of sixteen rows of 64 bytes. Tiles 0 to 3 hold sums, 4 and 5
//! activations, 6 and 7 weights.
//!
//! The instructions are written in assembly, since the compiler has no stable functions for them.
//! It uses none of the tile registers itself, so what [`TileUnit::begin`] sets up lasts.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "see the safety section of `TileUnit`"
)]

use super::tiles::{TILE_ROWS, TILE_SUMS, TileUnit};
use crate::cpu::activations::SUPER;
use crate::cpu::pack::GROUP_BYTES;
use std::arch::asm;
use std::arch::x86_64::*;

/// The unit of this processor.
#[derive(Clone, Copy)]
pub(crate) enum Amx {}

/// Tile registers.
const TILES: usize = 8;

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of the rows of each tile.
    bytes: [u16; 16],
    /// Rows of each tile.
    rows: [u8; 16],
}

/// Asks the system whether this process may use the unit, which it may then until it ends.
#[cfg(target_os = "linux")]
pub(crate) fn permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` and `XFEATURE_XTILEDATA` of Linux.
    const REQUEST: (libc::c_long, libc::c_long) = (0x1023, 18);
    // SAFETY: the call only sets a bit for this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST.0, REQUEST.1) == 0 }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn permitted() -> bool {
    false
}

impl TileUnit for Amx {
    const THERE: bool = true;

    #[inline(always)]
    unsafe fn begin() {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..TILES {
            config.bytes[tile] = GROUP_BYTES as u16;
            config.rows[tile] = TILE_ROWS as u8;
        }
        asm!(
            "ldtilecfg [{config}]",
            config = in(reg) &raw const config,
            options(nostack, readonly, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn end() {
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }

    #[inline(always)]
    unsafe fn scale(group: *const u8, offset: i16, scales: *const i32, to: [*mut u8; 2]) {
        let (bytes, scales) = (
            _mm512_loadu_si512(group.cast()),
            _mm512_loadu_si512(scales.cast()),
        );
        let offset = _mm512_set1_epi16(offset);
        let even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
        let odd = _mm512_srli_epi16::<8>(bytes);
        let even = _mm512_mullo_epi16(_mm512_sub_epi16(even, offset), scales);
        let odd = _mm512_mullo_epi16(_mm512_sub_epi16(odd, offset), scales);
        let seven = _mm512_set1_epi16(0x7f);
        let lower = _mm512_or_si512(
            _mm512_and_si512(even, seven),
            _mm512_slli_epi16::<8>(_mm512_and_si512(odd, seven)),
        );
        let upper = _mm512_or_si512(
            _mm512_and_si512(_mm512_srai_epi16::<7>(even), _mm512_set1_epi16(0xff)),
            _mm512_slli_epi16::<8>(_mm512_srai_epi16::<7>(odd)),
        );
        _mm512_storeu_si512(to[0].cast(), lower);
        _mm512_storeu_si512(to[1].cast(), upper);
    }

    #[inline(always)]
    unsafe fn supers(planes: [*const u8; 2], values: *const i8, sums: *mut i32) {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{values} + {row}]",
            "tileloadd tmm6, [{lower} + {group}]",
            "tileloadd tmm7, [{upper} + {group}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{values} + {row} + 64]",
            "tileloadd tmm6, [{lower} + {group} + 1024]",
            "tileloadd tmm7, [{upper} + {group} + 1024]",
            "tdpbssd tmm0, tmm5, tmm6",
            "tdpbssd tmm1, tmm5, tmm7",
            "tileloadd tmm4, [{values} + {row} + 128]",
            "tileloadd tmm6, [{lower} + {group} + 2048]",
            "tileloadd tmm7, [{upper} + {group} + 2048]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{values} + {row} + 192]",
            "tileloadd tmm6, [{lower} + {group} + 3072]",
            "tileloadd tmm7, [{upper} + {group} + 3072]",
            "tdpbssd tmm0, tmm5, tmm6",
            "tdpbssd tmm1, tmm5, tmm7",
            "tilestored [{sums} + {group}], tmm0",
            "tilestored [{sums} + {group} + 1024], tmm1",
            values = in(reg) values,
            lower = in(reg) planes[0],
            upper = in(reg) planes[1],
            sums = in(reg) sums,
            row = in(reg) SUPER,
            group = in(reg) GROUP_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }

    #[inline(always)]
    unsafe fn work(turns: usize) -> usize {
        for _ in 0..turns {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
        turns * 4 * TILE_SUMS * GROUP_BYTES
    }
}
