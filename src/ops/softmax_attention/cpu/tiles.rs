//! What forward and backward share. A tile's scores are kept transposed, a row a key and a lane a query: maxima and
//! sums over keys are then plain vector operations, and k and v are read in place.

use super::Problem;
use crate::cpu::Real;
use crate::cpu::Rows;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::{Product, rows_at_once};

/// Queries of a tile.
pub const QUERIES: usize = 64;
/// Keys of a tile.
pub const KEYS: usize = 128;
/// Multiply-adds that are worth a task of their own.
pub const TASK: usize = 1 << 19;

/// A tile of the score matrix: some keys by some queries.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Lanes of a row: queries, rounded up to whole vectors.
    pub width: usize,
    /// The first query that sees the tile's first key, counted from the tile's first query; negative where
    /// earlier ones would see it too.
    diagonal: isize,
}

impl Tile {
    /// Queries from `t` on, keys from `s` on.
    #[inline(always)]
    pub fn new<R>(p: &Problem<R>, (t, queries): (usize, usize), (s, keys): (usize, usize), width: usize) -> Tile {
        let diagonal = (s + p.sizes.queries) as isize - (p.sizes.keys + t) as isize;
        // Far enough for every key of a tile to be seen by all. With features, the tile is cut by what they hide.
        let causal = p.sizes.causal && p.features.is_none();
        Tile { queries, keys, width, diagonal: if causal { diagonal } else { -(KEYS as isize) } }
    }

    /// The first query that sees this key.
    #[inline(always)]
    pub fn first_query(&self, key: usize) -> usize {
        (self.diagonal + key as isize).max(0) as usize
    }

    /// How many keys this query sees.
    #[inline(always)]
    pub fn visible(&self, query: usize) -> usize {
        (query as isize + 1 - self.diagonal).clamp(0, self.keys as isize) as usize
    }

    /// Whether some query does not see some key.
    #[inline(always)]
    pub fn is_cut(&self) -> bool {
        self.first_query(self.keys - 1) > 0
    }

    /// C (keys × width) ← A·B with A (keys × k) a row per key and B (k × width) a lane per query, leaving out
    /// whole vectors that no key is visible in.
    #[inline(always)]
    pub fn scores<R: Real, S: Simd<R>>(&self, s: S, (a, a_row): (&[R], usize), k: usize, b: &[R], c: &mut [R]) {
        let whole = self.visible(0);
        let mut start = 0;
        while start < self.keys {
            let (keys, from) = if start < whole {
                (whole - start, 0)
            } else {
                (S::LANES.min(self.keys - start), self.first_query(start) / S::LANES * S::LANES)
            };
            s.call(Product {
                m: keys,
                k,
                columns: self.width - from,
                a: &a[start * a_row..],
                a_strides: (a_row, 1),
                b: &b[from..],
                b_row: self.width,
                c: Rows::of(&mut c[start * self.width + from..], self.width, self.width - from),
                add: false,
            });
            start += keys;
        }
    }

    /// C (queries × columns) += Wᵀ·B with W (keys × width) and B (keys × columns). `exact`: no invisible key is
    /// touched at all, as 0·NaN would be NaN; otherwise a few are, with weight 0.
    #[inline(always)]
    pub fn add_to_queries<R: Real, S: Simd<R>>(
        &self,
        s: S,
        w: &[R],
        (b, b_row): (&[R], usize),
        c: &mut [R],
        columns: usize,
        exact: bool,
    ) {
        let group = self.group::<R, S>(self.queries, columns, exact);
        for start in (0..self.queries).step_by(group) {
            let m = group.min(self.queries - start);
            s.call(Product {
                m,
                k: self.visible(start + m - 1),
                columns,
                a: &w[start..],
                a_strides: (1, self.width),
                b,
                b_row,
                c: Rows::of(&mut c[start * columns..], columns, columns),
                add: true,
            });
        }
    }

    /// C (keys × columns) += W·B with W (keys × width) and B (queries × columns); `exact` as above.
    #[inline(always)]
    pub fn add_to_keys<R: Real, S: Simd<R>>(
        &self,
        s: S,
        w: &[R],
        (b, b_row): (&[R], usize),
        c: &mut [R],
        columns: usize,
        exact: bool,
    ) {
        let group = self.group::<R, S>(self.keys, columns, exact);
        for start in (0..self.keys).step_by(group) {
            let from = self.first_query(start);
            if from >= self.queries {
                break;
            }
            s.call(Product {
                m: group.min(self.keys - start),
                k: self.queries - from,
                columns,
                a: &w[start * self.width + from..],
                a_strides: (self.width, 1),
                b: &b[from * b_row..],
                b_row,
                c: Rows::of(&mut c[start * columns..], columns, columns),
                add: true,
            });
        }
    }

    /// Rows that one step of a product takes: where the mask cuts the tile, each step has its own limit.
    #[inline(always)]
    fn group<R, S: Simd<R>>(&self, all: usize, columns: usize, exact: bool) -> usize {
        match (self.is_cut(), exact) {
            (false, _) => all,
            (true, false) => rows_at_once::<R, S>(columns),
            (true, true) => 1,
        }
    }
}

/// `dim` × `width`, from `rows` rows at distance `row`, times `factor`; zeros in the lanes past the last row.
pub fn transpose<R: Real>(from: (&[R], usize), rows: usize, dim: usize, factor: R, to: &mut [R], width: usize) {
    vectorise(Transpose { from, rows, dim, factor, to, width });
}

struct Transpose<'a, R> {
    from: (&'a [R], usize),
    rows: usize,
    dim: usize,
    factor: R,
    to: &'a mut [R],
    width: usize,
}

impl<R: Real> Kernel<R> for Transpose<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Transpose { from: (from, row), rows, dim, factor, to, width } = self;
        let (zero, scale) = (s.splat(R::ZERO), s.splat(factor));
        let whole = dim / S::LANES * S::LANES;
        for q in (0..width).step_by(S::LANES) {
            for d in (0..whole).step_by(S::LANES) {
                // Square blocks: zipping row i with row i + LANES/2, log₂ LANES times, is a transposition.
                let mut block = [zero; 16];
                for i in 0..S::LANES {
                    if q + i < rows {
                        block[i] = s.load(&from[(q + i) * row + d..]) * scale;
                    }
                }
                for _ in 0..S::LANES.ilog2() {
                    let before = block;
                    for i in 0..S::LANES / 2 {
                        (block[2 * i], block[2 * i + 1]) = s.zip(before[i], before[i + S::LANES / 2]);
                    }
                }
                for i in 0..S::LANES {
                    s.store(block[i], &mut to[(d + i) * width + q..]);
                }
            }
            for d in whole..dim {
                for (i, to) in to[d * width + q..][..S::LANES].iter_mut().enumerate() {
                    *to = if q + i < rows { from[(q + i) * row + d] * factor } else { R::ZERO };
                }
            }
        }
    }
}

/// Rows of whole vectors: the given ones, if they are, else a copy with zeros after each.
pub fn whole<'a, R: Real>(
    (from, row): (&'a [R], usize),
    rows: usize,
    dim: usize,
    padded: usize,
    copy: &'a mut [R],
) -> (&'a [R], usize) {
    if dim == padded {
        return (from, row);
    }
    for (r, to) in copy.chunks_exact_mut(padded).take(rows).enumerate() {
        to[..dim].copy_from_slice(&from[r * row..][..dim]);
        to[dim..].fill(R::ZERO);
    }
    (copy, padded)
}

/// Whether all elements of these rows are finite.
#[inline(always)]
pub fn finite<R: Real, S: Simd<R>>(s: S, (from, row): (&[R], usize), rows: usize, dim: usize) -> bool {
    let zero = s.splat(R::ZERO);
    let mut sums = [zero; 4];
    let mut rest = R::ZERO;
    let whole = dim / S::LANES * S::LANES;
    for first in (0..rows).step_by(4) {
        // Four rows at a time hide the latency of an addition; the last may be looked at twice.
        for (i, sum) in sums.iter_mut().enumerate() {
            let line = &from[(first + i).min(rows - 1) * row..][..dim];
            // 0·x is 0, or NaN where x is not finite.
            for at in (0..whole).step_by(S::LANES) {
                *sum = s.mul_add(zero, s.load(&line[at..]), *sum);
            }
            line[whole..].iter().for_each(|&x| rest += x * R::ZERO);
        }
    }
    s.all_equal((sums[0] + sums[1]) + (sums[2] + sums[3]), zero) && rest == R::ZERO
}

/// Elements of a vector of the widest kind at hand: what rows are padded to.
pub fn lanes<R: Real>() -> usize {
    struct Lanes;
    impl<R> Kernel<R> for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd<R>>(self, _: S) -> usize {
            S::LANES
        }
    }
    vectorise::<R, _>(Lanes)
}

/// C (queries × columns) += Wᵀ·B, leaving out what is not seen; W and `seen` are (keys × width), B has `dim` columns.
/// Slow, and only for tiles that hide a NaN or an infinity from some query.
pub fn add_seen_to_queries<R: Real>(
    (w, seen, width): (&[R], &[R], usize),
    (b, b_row): (&[R], usize),
    (queries, keys, dim): (usize, usize, usize),
    c: &mut [R],
    columns: usize,
) {
    for (key, i) in (0..keys).flat_map(|key| (0..queries).map(move |i| (key, i))) {
        if seen[key * width + i] != R::ZERO {
            super::add(&mut c[i * columns..][..dim], w[key * width + i], &b[key * b_row..]);
        }
    }
}

/// C (keys × columns) += W·B, likewise.
pub fn add_seen_to_keys<R: Real>(
    (w, seen, width): (&[R], &[R], usize),
    (b, b_row): (&[R], usize),
    (queries, keys, dim): (usize, usize, usize),
    c: &mut [R],
    columns: usize,
) {
    for (key, i) in (0..keys).flat_map(|key| (0..queries).map(move |i| (key, i))) {
        if seen[key * width + i] != R::ZERO {
            super::add(&mut c[key * columns..][..dim], w[key * width + i], &b[i * b_row..]);
        }
    }
}
