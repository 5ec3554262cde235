//! Small matrix products inside a fused kernel: operands lie in cache, and are read where they are.

use super::Rows;
use super::lanes::{Kernel, Simd};

/// C ← A·B, or C ← C + A·B. A is m×k with any strides; rows of B and C are whole vectors, `columns` long.
#[derive(Debug)]
pub struct Product<'a, R> {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of A and rows of B.
    pub k: usize,
    /// Columns of B and C: a multiple of the vector's lanes.
    pub columns: usize,
    /// A, from its first element on.
    pub a: &'a [R],
    /// Elements from one row of A to the next, and from one column to the next.
    pub a_strides: (usize, usize),
    /// B, from its first element on.
    pub b: &'a [R],
    /// Elements from one row of B to the next.
    pub b_row: usize,
    /// C. Nothing else refers to these rows meanwhile.
    pub c: Rows<'a, R>,
    /// Whether to add to C; otherwise C is not read.
    pub add: bool,
}

/// Pointers of one block.
struct Block<R> {
    k: usize,
    a: *const R,
    a_strides: (usize, usize),
    b: *const R,
    b_row: usize,
    c: *mut R,
    c_row: usize,
    add: bool,
}

/// MR rows by NV vectors of C, held in registers.
///
/// # Safety
/// All that the strides reach lies in the operands.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Over both, iterators read worse.
unsafe fn block<R: Copy, S: Simd<R>, const MR: usize, const NV: usize>(s: S, zero: R, p: &Block<R>) {
    // SAFETY: by the caller's word.
    unsafe {
        let mut sum = [[s.splat(zero); NV]; MR];
        // A pointer for each row: computed one from the other, they would be a chain longer than the products.
        let mut rows = [p.a; MR];
        for i in 0..MR {
            rows[i] = p.a.wrapping_add(i * p.a_strides.0);
        }
        let (mut at, mut b) = (0, p.b);
        for _ in 0..p.k {
            let mut row = [s.splat(zero); NV];
            for j in 0..NV {
                row[j] = s.read(b.add(j * S::LANES));
            }
            for i in 0..MR {
                let x = s.splat(*rows[i].add(at));
                for j in 0..NV {
                    sum[i][j] = s.mul_add(x, row[j], sum[i][j]);
                }
            }
            b = b.wrapping_add(p.b_row);
            at += p.a_strides.1;
        }
        for i in 0..MR {
            for j in 0..NV {
                let c = p.c.add(i * p.c_row + j * S::LANES);
                s.write(if p.add { s.read(c) + sum[i][j] } else { sum[i][j] }, c);
            }
        }
    }
}

/// A strip of C, NV vectors wide: blocks of MAIN rows, then of 4, 2, 1.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn strip<R: Copy, S: Simd<R>, const MAIN: usize, const NV: usize>(s: S, zero: R, mut m: usize, mut p: Block<R>) {
    macro_rules! rows {
        ($n:expr) => {
            while m >= $n {
                // SAFETY: by the caller's word, for the m rows that are left.
                unsafe {
                    block::<R, S, { $n }, NV>(s, zero, &p);
                    p.a = p.a.wrapping_add($n * p.a_strides.0);
                    p.c = p.c.wrapping_add($n * p.c_row);
                }
                m -= $n;
            }
        };
    }
    rows!(MAIN);
    rows!(4);
    rows!(2);
    rows!(1);
}

/// Vectors of the next strip where this many are left, and the rows of its blocks: as many sums as registers hold
/// beside a row of B, and enough to hide the latency of their additions.
#[inline(always)]
const fn shape(wide: bool, left: usize) -> (usize, usize) {
    match (wide, left) {
        (true, 4 | 6..) => (4, 6),
        (true, 3 | 5) => (3, 8),
        (true, 2) => (2, 12),
        (false, 2..) => (2, 6),
        _ => (1, 8),
    }
}

/// Rows of C that a product of so many columns takes at once: fewer cost as much.
#[inline(always)]
pub fn rows_at_once<R, S: Simd<R>>(columns: usize) -> usize {
    shape(S::WIDE, columns / S::LANES).1
}

impl<R: Copy + Default> Kernel<R> for Product<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Product { m, k, columns, a, a_strides, b, b_row, c, add } = self;
        if m == 0 || columns == 0 {
            return;
        }
        assert!(columns % S::LANES == 0, "rows of whole vectors");
        let (c, c_row) = c.block(m, columns);
        if k > 0 {
            assert!(a.len() > (m - 1) * a_strides.0 + (k - 1) * a_strides.1, "A is too short");
            assert!(b.len() >= (k - 1) * b_row + columns, "B is too short");
        }
        let mut done = 0;
        while done < columns {
            let left = (columns - done) / S::LANES;
            // SAFETY: the assertions above hold for every strip, and `c` is this product's alone; pointers
            // pass the ends only after the last access, hence `wrapping_add`.
            unsafe {
                let p = Block {
                    k,
                    a: a.as_ptr(),
                    a_strides,
                    b: b.as_ptr().wrapping_add(done),
                    b_row,
                    c: c.wrapping_add(done),
                    c_row,
                    add,
                };
                let zero = R::default();
                let (vectors, _) = shape(S::WIDE, left);
                match vectors {
                    4 => strip::<R, S, 6, 4>(s, zero, m, p),
                    3 => strip::<R, S, 8, 3>(s, zero, m, p),
                    2 if S::WIDE => strip::<R, S, 12, 2>(s, zero, m, p),
                    2 => strip::<R, S, 6, 2>(s, zero, m, p),
                    _ => strip::<R, S, 8, 1>(s, zero, m, p),
                }
                done += vectors * S::LANES;
            }
        }
    }
}
