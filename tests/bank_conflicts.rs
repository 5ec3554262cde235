//! Which row pitches make the accesses of the tensor-core kernels free of bank conflicts: by arithmetic, for neither the
//! emulator nor the kernel gate can see them.

/// A warp's byte addresses in shared memory, lane by lane.
type Addresses = [u32; 32];

/// How many passes more than without conflicts a warp's access takes. Shared memory has 32 banks of 4 bytes (CUDA C++
/// Programming Guide, "Shared Memory"). Accesses of 16 bytes are served eight lanes at a time: so are ldmatrix's rows.
/// Lanes that name the same word do not conflict.
fn conflicts(addresses: &Addresses, width: u32) -> usize {
    let together = 128 / width as usize;
    addresses.chunks(together.min(32)).map(extra_passes(width)).sum()
}

fn extra_passes(width: u32) -> impl Fn(&[u32]) -> usize {
    move |lanes| {
        let mut words: Vec<u32> = lanes.iter().flat_map(|a| (a / 4)..(a + width) / 4).collect();
        words.sort_unstable();
        words.dedup();
        let most = (0..32).map(|bank| words.iter().filter(|&word| word % 32 == bank).count()).max();
        most.unwrap_or(0) - 1
    }
}

const UNIT: u32 = 16;

/// Bytes from row to row of a tile whose rows hold this many: an odd number of 16-byte units.
fn padded(row_bytes: u32) -> u32 {
    row_bytes + UNIT
}

/// Tiles of 16-bit numbers and of f32: (bytes a row, bytes a number), for every head size 16, 32 … 256.
fn tiles() -> impl Iterator<Item = (u32, u32)> {
    (1..=16).flat_map(|d| [2, 4].map(|bytes| (16 * d * bytes, bytes)))
}

/// The rows of the four matrices, two by two, that a warp loads at once, from 16 rows of a tile and columns `unit` and
/// the next; first those below each other, as the registers of A have them, or those side by side. Transposed or not,
/// the addresses are the same.
fn ldmatrix(pitch: u32, unit: u32, side_by_side: bool) -> Addresses {
    std::array::from_fn(|lane| {
        let (matrix, row) = (lane as u32 / 8, lane as u32 % 8);
        let (down, right) = if side_by_side { (matrix / 2, matrix % 2) } else { (matrix % 2, matrix / 2) };
        (down * 8 + row) * pitch + (unit + right) * UNIT
    })
}

/// Lane l writes the 16 bytes number `first + l` of the tile, counted along the rows.
fn writes_along_rows(pitch: u32, row_bytes: u32, first: u32) -> Addresses {
    let units = row_bytes / UNIT;
    std::array::from_fn(|lane| (first + lane as u32) / units * pitch + (first + lane as u32) % units * UNIT)
}

/// Eight lanes write eight rows of one column of units; the next eight the next column, of at most four, and then the
/// next eight rows.
fn writes_down_columns(pitch: u32, row_bytes: u32) -> Addresses {
    let columns = (row_bytes / UNIT).min(4);
    std::array::from_fn(|lane| {
        let (row, group) = (lane as u32 % 8, lane as u32 / 8);
        (group / columns * 8 + row) * pitch + group % columns * UNIT
    })
}

/// Lane (g, t) reads a 4-byte number: row 2t + `odd`, column `column` + g.
fn value_reads(pitch: u32, column: u32, odd: u32) -> Addresses {
    std::array::from_fn(|lane| {
        let (g, t) = (lane as u32 / 4, lane as u32 % 4);
        (2 * t + odd) * pitch + (column + g) * 4
    })
}

#[test]
fn counting_by_hand() {
    let strided = |stride: u32| std::array::from_fn(|lane| lane as u32 * stride);
    assert_eq!(conflicts(&strided(4), 4), 0);
    assert_eq!(conflicts(&strided(8), 4), 1);
    assert_eq!(conflicts(&strided(128), 4), 31);
    assert_eq!(conflicts(&strided(0), 4), 0, "one word for all");
    assert_eq!(conflicts(&strided(16), 16), 0);
    // Four passes of eight lanes in the same four banks.
    assert_eq!(conflicts(&strided(128), 16), 4 * 7);
}

#[test]
fn ldmatrix_with_padded_rows_has_none() {
    for (row_bytes, _) in tiles() {
        for unit in 0..row_bytes / UNIT - 1 {
            for side_by_side in [false, true] {
                let at = ldmatrix(padded(row_bytes), unit, side_by_side);
                assert_eq!(conflicts(&at, 16), 0, "{row_bytes} bytes a row, column {unit}");
            }
        }
    }
}

#[test]
fn f32_values_in_pairs_of_rows_have_none() {
    for (row_bytes, _) in tiles().filter(|&(_, bytes)| bytes == 4) {
        for column in (0..row_bytes / 4).step_by(8) {
            for odd in [0, 1] {
                assert_eq!(conflicts(&value_reads(padded(row_bytes), column, odd), 4), 0, "{row_bytes} bytes a row");
            }
        }
    }
}

#[test]
fn copies_down_columns_have_none_and_along_rows_where_eight_lanes_stay_in_a_row() {
    for (row_bytes, _) in tiles() {
        let pitch = padded(row_bytes);
        assert_eq!(conflicts(&writes_down_columns(pitch, row_bytes), 16), 0, "{row_bytes} bytes a row");
        // Along rows the padding is stepped over, and after it the first bank comes again.
        let warps = (0..16 * row_bytes / UNIT).step_by(32);
        let each: Vec<usize> = warps.map(|first| conflicts(&writes_along_rows(pitch, row_bytes, first), 16)).collect();
        assert_eq!(each.iter().all(|&n| n == 0), row_bytes % 128 == 0, "{row_bytes} bytes a row: {each:?}");
        assert!(each.iter().all(|&n| n <= 4), "at most one more pass for eight lanes: {each:?}");
    }
}

#[test]
fn a_recurrence_reads_its_tile_without_any() {
    // As `pitch` of recurrent.cu: in floats, whole turns of 16 by an odd number.
    let pitch = |n: u32| 16 * (n.div_ceil(16) | 1);
    for hidden in 1..300u32 {
        for turn in 0..hidden.div_ceil(16) {
            // Lane (row, part) reads 16 bytes.
            let at = std::array::from_fn(|lane| {
                let (row, part) = (lane as u32 / 4, lane as u32 % 4);
                4 * (row * pitch(hidden) + 16 * turn + 4 * part)
            });
            assert_eq!(conflicts(&at, 16), 0, "{hidden} units, turn {turn}");
        }
    }
}

#[test]
fn a_recurrence_on_tensor_cores_has_none() {
    // recurrent_mma.cu: `row_pitch` in bytes, and `SUMS` floats from one sequence's sums to the next's.
    let sums = 16 + 4;
    for width in (16..1024u32).step_by(16) {
        let pitch = padded(2 * width);
        let a: Addresses = std::array::from_fn(|lane| lane as u32 % 16 * pitch + lane as u32 / 16 * UNIT);
        // ldmatrix.x2 reads by the first 16 lanes' addresses; the others repeat them.
        let b: Addresses = std::array::from_fn(|lane| lane as u32 % 8 * pitch + lane as u32 / 8 % 2 * UNIT);
        assert_eq!((conflicts(&a, 16), conflicts(&b, 16)), (0, 0), "{width} columns");
    }
    for i in 0..4 {
        let written = std::array::from_fn(|lane| {
            let (unit, row) = (lane as u32 / 4 + i / 2 * 8, lane as u32 % 4 * 2 + i % 2);
            4 * (row * sums + unit)
        });
        assert_eq!(conflicts(&written, 4), 0, "the products' register {i}");
    }
    for warp in 0..4 {
        let read = std::array::from_fn(|lane| 4 * ((warp + lane as u32 / 16 * 4) % 8 * sums + lane as u32 % 16));
        assert_eq!(conflicts(&read, 4), 0, "warp {warp}");
    }
}

#[test]
fn rows_of_a_power_of_two_have_conflicts() {
    for row_bytes in [32, 64, 128, 256, 512, 1024] {
        for side_by_side in [false, true] {
            assert!(conflicts(&ldmatrix(row_bytes, 0, side_by_side), 16) > 0, "{row_bytes} bytes a row");
        }
        assert!(conflicts(&writes_down_columns(row_bytes, row_bytes), 16) > 0, "{row_bytes} bytes a row");
        if row_bytes >= 64 {
            assert!(conflicts(&value_reads(row_bytes, 0, 0), 4) > 0, "{row_bytes} bytes a row");
        }
    }
    // The worst: every row of a matrix in the same four banks.
    assert_eq!(conflicts(&ldmatrix(128, 0, false), 16), 4 * 7);
}

#[test]
fn handing_weights_over_has_none_in_16_bits() {
    // Lane (g, t) writes columns 2t and 2t + 1 of row g, 4 bytes; tiles have 16, 32 or 64 columns.
    for columns in [16, 32, 64] {
        for first in (0..columns).step_by(8) {
            let at = std::array::from_fn(|lane| {
                let (g, t) = (lane as u32 / 4, lane as u32 % 4);
                g * padded(2 * columns) + 2 * (first + 2 * t)
            });
            assert_eq!(conflicts(&at, 4), 0, "{columns} columns, from {first}");
        }
    }
}
