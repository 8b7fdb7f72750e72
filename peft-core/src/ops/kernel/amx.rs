//! Products by the tiles of AMX: `TDPBF16PS` of pairs in bf16, `TDPBSSD` of fours in int8 (Sapphire Rapids and later).
//!
//! A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 rows of 16 words with 16 rows of words of 16 columns, and
//! adds up 16 rows of 16 sums: eight times the work of a vector instruction in the same time. A word is a pair or a four; the panels
//! are those of [`super::bf16`] and [`super::int8`].
//!
//! The instructions are written as assembly, since the compiler does not offer them yet. Tiles are private to a thread; a program
//! has to ask Linux for them, once.

use super::words::{Rows, WIDTH, Write};
use super::{Block, Start};

/// Rows of the output that are computed at once: two tiles.
pub(super) const ROWS: usize = 32;
/// Words of a row of a tile.
pub(super) const PAIRS: usize = 16;

/// Whether the processor has tiles of bf16, and the system lets the program use them.
pub(super) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *FOUND.get_or_init(linux::request)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// The tiles of packed panels, over all rows of the output, which has the columns of these panels only.
///
/// The left side has rows for whole tiles, and its runs are multiples of [`PAIRS`].
pub(super) fn tiles(output: &mut Block<'_>, left: Rows<'_>, right: &[u32], start: Start<'_>) {
    check(output.rows(), left);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[allow(unsafe_code)]
    // SAFETY: `request` has asked whether the processor has these instructions.
    unsafe {
        linux::tiles(output, left, right, start)
    };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    unreachable!("no tiles here: {} {start:?} {WIDTH}", right.len());
}

fn check(rows: usize, left: Rows<'_>) {
    assert!(is_available(), "the processor has tiles");
    assert!(left.depth.is_multiple_of(PAIRS) && left.depth <= left.stride, "whole tiles along a run");
    let rows = rows.next_multiple_of(ROWS);
    assert!(left.pairs.len() >= (rows - 1) * left.stride + left.depth, "whole tiles down the rows");
}

/// The sums of fours in int8, as [`tiles`] has them.
pub(super) fn tiles_of_int8(rows: usize, left: Rows<'_>, right: &[u32], write: Write<'_>) {
    check(rows, left);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[allow(unsafe_code)]
    // SAFETY: `request` has asked whether the processor has these instructions.
    unsafe {
        linux::tiles_of_int8(rows, left, right, write)
    };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    unreachable!("no tiles here: {}", right.len() + usize::from(std::mem::size_of_val(write) > 0));
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use super::{Block, PAIRS, ROWS, Rows, Start, WIDTH, Write};
    use crate::ops::kernel::product::write_row;

    /// Rows of a tile.
    const TILE: usize = 16;

    /// Asks for the use of tiles.
    #[allow(unsafe_code)]
    pub(super) fn request() -> bool {
        /// `TDPBF16PS`, `TDPBSSD`, and tiles at all, in EDX of leaf 7.
        const FEATURES: u32 = 1 << 22 | 1 << 25 | 1 << 24;
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        /// The state of tile registers.
        const TILE_DATA: i64 = 18;
        // Results are written by vector instructions of this kind.
        if !std::arch::is_x86_feature_detected!("avx512f") || __cpuid(0).eax < 7 {
            return false;
        }
        if __cpuid_count(7, 0).edx & FEATURES != FEATURES {
            return false;
        }
        let result: i64;
        // SAFETY: a call that changes nothing but what the program may use; older systems do not know it and say so.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") TILE_DATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    /// What all eight tiles look like: palette 1, 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const WHOLE: Configuration = Configuration {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// Two tiles of rows by three of columns: tiles 0 to 5 are the sums, 6 the left side, 7 the right one.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    pub(super) fn tiles(output: &mut Block<'_>, left: Rows<'_>, right: &[u32], start: Start<'_>) {
        let height = output.rows();
        // SAFETY: `request` has found the instructions, and `WHOLE` is a valid configuration. The compiler uses no tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, readonly)) };
        let mut sums = [[0f32; WIDTH]; ROWS];
        for at in (0..height).step_by(ROWS) {
            let last = (at + ROWS).min(height);
            for (panel, right) in right.chunks_exact(left.depth * WIDTH).enumerate() {
                let columns = panel * WIDTH..((panel + 1) * WIDTH).min(output.columns());
                output.fetch(at..last, columns.clone());
                let rows = &left.pairs[at * left.stride..][..(ROWS - 1) * left.stride + left.depth];
                // SAFETY: as above. The left side is read 32 rows down and `depth` pairs along, which the slice is long enough
                // for; the right side is read as `depth` rows of `WIDTH` pairs, which is its length; `sums` has 32 rows of
                // `WIDTH` numbers.
                unsafe {
                    multiply(rows.as_ptr(), left.stride, right.as_ptr(), left.depth);
                    store(sums.as_mut_ptr().cast());
                }
                for (row, sums) in (at..last).zip(&mut sums) {
                    write_row(sums, output, row, columns.clone(), start);
                }
            }
        }
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    pub(super) fn tiles_of_int8(height: usize, left: Rows<'_>, right: &[u32], write: Write<'_>) {
        // SAFETY: as in `tiles`, here and below.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, readonly)) };
        let mut sums = [[0i32; WIDTH]; ROWS];
        for at in (0..height).step_by(ROWS) {
            let rows = &left.pairs[at * left.stride..][..(ROWS - 1) * left.stride + left.depth];
            for (panel, right) in right.chunks_exact(left.depth * WIDTH).enumerate() {
                // SAFETY: see above.
                unsafe {
                    multiply_int8(rows.as_ptr(), left.stride, right.as_ptr(), left.depth);
                    store(sums.as_mut_ptr().cast());
                }
                write(at, panel, &sums[..ROWS.min(height - at)]);
            }
        }
        // SAFETY: see above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// A function that multiplies by an instruction.
    macro_rules! multiply {
        ($name:ident, $instruction:literal) => {
    /// # Safety
    /// Tiles must be configured; `left` must have 32 rows of `depth` pairs, `stride` apart, and `right` `depth` rows of `WIDTH`
    /// pairs.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn $name(left: *const u32, stride: usize, right: *const u32, depth: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "2:",
                "tileloadd tmm7, [{b} + {row}]",
                "tileloadd tmm6, [{upper} + {stride}]",
                concat!($instruction, " tmm0, tmm6, tmm7"),
                "tileloadd tmm6, [{lower} + {stride}]",
                concat!($instruction, " tmm3, tmm6, tmm7"),
                "tileloadd tmm7, [{b} + {row} + 64]",
                concat!($instruction, " tmm4, tmm6, tmm7"),
                "tileloadd tmm6, [{upper} + {stride}]",
                concat!($instruction, " tmm1, tmm6, tmm7"),
                "tileloadd tmm7, [{b} + {row} + 128]",
                concat!($instruction, " tmm2, tmm6, tmm7"),
                "tileloadd tmm6, [{lower} + {stride}]",
                concat!($instruction, " tmm5, tmm6, tmm7"),
                "add {upper}, 64",
                "add {lower}, 64",
                "add {b}, {panel}",
                "dec {count}",
                "jnz 2b",
                upper = inout(reg) left => _,
                lower = inout(reg) left.add(TILE * stride) => _,
                b = inout(reg) right => _,
                stride = in(reg) stride * 4,
                row = in(reg) WIDTH * 4,
                panel = const PAIRS * WIDTH * 4,
                count = inout(reg) depth / PAIRS => _,
                options(nostack, readonly),
            );
        }
    }
        };
    }
    multiply!(multiply, "tdpbf16ps");
    multiply!(multiply_int8, "tdpbssd");

    /// # Safety
    /// `to` must have room for 32 rows of `WIDTH` numbers.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn store(to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            asm!(
                "tilestored [{upper} + {row}], tmm0",
                "tilestored [{upper} + {row} + 64], tmm1",
                "tilestored [{upper} + {row} + 128], tmm2",
                "tilestored [{lower} + {row}], tmm3",
                "tilestored [{lower} + {row} + 64], tmm4",
                "tilestored [{lower} + {row} + 128], tmm5",
                upper = in(reg) to,
                lower = in(reg) to.add(TILE * WIDTH),
                row = in(reg) WIDTH * 4,
                options(nostack),
            );
        }
    }
}
