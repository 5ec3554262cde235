//! Passes over the rows of a tile, vectorised and each in one go: the op is bound by memory, so nothing is read twice.

use super::FeatureMap;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::Product;
use crate::cpu::{Matrix, Real, Rows, Threads};

/// The most lanes that a vector has.
pub const MAX_LANES: usize = 16;

/// to ← f(to, x), vector by vector; the last ones are padded with zeros, which are not written back. A macro, as a
/// closure is a function of its own, which the instruction set of the kernel around it does not reach.
macro_rules! each {
    ($s:ident, $to:expr, $x:expr, |$a:ident, $b:ident| $f:expr) => {{
        let (to, x): (&mut [R], &[R]) = ($to, $x);
        let mut done = 0;
        while done + S::LANES <= to.len() {
            let ($a, $b) = ($s.load(&to[done..]), $s.load(&x[done..]));
            $s.store($f, &mut to[done..]);
            done += S::LANES;
        }
        if done < to.len() {
            let n = to.len() - done;
            let (mut padded, mut padded_x) = ([R::ZERO; MAX_LANES], [R::ZERO; MAX_LANES]);
            padded[..n].copy_from_slice(&to[done..]);
            padded_x[..n].copy_from_slice(&x[done..done + n]);
            let ($a, $b) = ($s.load(&padded), $s.load(&padded_x));
            $s.store($f, &mut padded);
            to[done..].copy_from_slice(&padded[..n]);
        }
    }};
}

/// φ(x).
#[inline(always)]
fn feature<R: Real, S: Simd<R>>(s: S, map: FeatureMap, x: S::V) -> S::V {
    let zero = s.splat(R::ZERO);
    match map {
        FeatureMap::Elu1 => s.if_less(zero, x, x + s.splat(R::ONE), s.exp_small(x)),
        FeatureMap::Relu => s.if_less(x, zero, zero, x),
    }
}

/// φ′(x) from φ(x).
#[inline(always)]
fn slope<R: Real, S: Simd<R>>(s: S, map: FeatureMap, feature: S::V) -> S::V {
    match map {
        FeatureMap::Elu1 => s.min(s.splat(R::ONE), feature),
        FeatureMap::Relu => s.if_less(s.splat(R::ZERO), feature, s.splat(R::ONE), s.splat(R::ZERO)),
    }
}

/// to ← φ(x) for rows of `dim` elements, those of x at a distance.
pub struct Features<'a, R> {
    pub map: FeatureMap,
    pub dim: usize,
    pub x: &'a [R],
    pub stride: usize,
    pub to: &'a mut [R],
}

impl<R: Real> Kernel<R> for Features<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        for (i, to) in self.to.chunks_exact_mut(self.dim).enumerate() {
            each!(s, to, &self.x[i * self.stride..][..self.dim], |_to, x| feature(s, self.map, x));
        }
    }
}

/// sum += Σ rows of `dim` elements; with `divided`, each row is multiplied by its inverse first (in place) and then
/// summed with its weight.
pub struct SumRows<'a, R> {
    pub rows: &'a mut [R],
    /// 1/d and c.
    pub divided: Option<(&'a [R], &'a [R])>,
    pub sum: &'a mut [R],
}

impl<R: Real> Kernel<R> for SumRows<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        for (i, row) in self.rows.chunks_exact_mut(self.sum.len()).enumerate() {
            match self.divided {
                None => each!(s, self.sum, row, |sum, x| sum + x),
                Some((inverse, c)) => {
                    let (inverse, c) = (s.splat(inverse[i]), s.splat(c[i]));
                    let sum = &mut *self.sum;
                    each!(s, row, sum, |x, _sum| x * inverse);
                    each!(s, sum, row, |sum, x| s.mul_add(c, x, sum));
                }
            }
        }
    }
}

/// Adds x to every row of its length, times a factor a row where any are given.
pub struct AddOuter<'a, R> {
    pub to: &'a mut [R],
    pub factors: Option<&'a [R]>,
    pub x: &'a [R],
}

impl<R: Real> Kernel<R> for AddOuter<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        for (i, to) in self.to.chunks_exact_mut(self.x.len()).enumerate() {
            let factor = s.splat(self.factors.map_or(R::ONE, |f| f[i]));
            each!(s, to, self.x, |to, x| s.mul_add(factor, x, to));
        }
    }
}

/// to ← x/d for each row, 0 where d is; times 1/d where that is finite, as a division costs more than all else that is
/// done to the row.
pub struct Divide<'a, R> {
    /// Rows of `x.len() / d.len()` elements, which nothing else refers to meanwhile.
    pub to: Rows<'a, R>,
    pub x: &'a [R],
    pub d: &'a [R],
}

impl<R: Real> Kernel<R> for Divide<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        for (i, (x, &d)) in self.x.chunks_exact((self.x.len() / self.d.len().max(1)).max(1)).zip(self.d).enumerate() {
            // SAFETY: see `to`.
            let to = unsafe { self.to.row(i) };
            let inverse = R::ONE / d;
            if inverse * R::ZERO == R::ZERO {
                let inverse = s.splat(inverse);
                each!(s, to, x, |_to, x| x * inverse);
            } else if d == R::ZERO {
                to.fill(R::ZERO);
            } else {
                let d = s.splat(d);
                each!(s, to, x, |_to, x| x / d);
            }
        }
    }
}

/// to ← a + b.
pub struct Add<'a, R> {
    pub to: &'a mut [R],
    pub a: &'a [R],
    pub b: &'a [R],
}

impl<R: Real> Kernel<R> for Add<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        self.to.copy_from_slice(self.a);
        each!(s, self.to, self.b, |a, b| a + b);
    }
}

/// xᵢ·yᵢ for rows of `dim` elements at distances; y's distance may be 0.
pub struct Dots<'a, R> {
    pub dim: usize,
    pub x: (&'a [R], usize),
    pub y: (&'a [R], usize),
    pub to: &'a mut [R],
}

impl<R: Real> Kernel<R> for Dots<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Dots { dim, x: (x, x_stride), y: (y, y_stride), to } = self;
        let whole = dim - dim % S::LANES;
        let mut first = 0;
        // As many rows at a time as there are lanes, so that their sums are taken together.
        while first + S::LANES <= to.len() {
            let mut sums = [s.splat(R::ZERO); MAX_LANES];
            for (i, sum) in sums.iter_mut().enumerate().take(S::LANES) {
                let (x, y) = (&x[(first + i) * x_stride..][..whole], &y[(first + i) * y_stride..][..whole]);
                for from in (0..whole).step_by(S::LANES) {
                    *sum = s.mul_add(s.load(&x[from..]), s.load(&y[from..]), *sum);
                }
            }
            s.store(totals(s, sums), &mut to[first..]);
            first += S::LANES;
        }
        to[first..].fill(R::ZERO);
        for (i, to) in to.iter_mut().enumerate() {
            // Elements that fill no vector, and all those of rows that fill no group.
            let from = if i < first { whole } else { 0 };
            for d in from..dim {
                *to += x[i * x_stride + d] * y[i * y_stride + d];
            }
        }
    }
}

/// Of vector i the sum of its lanes, in lane i.
#[inline(always)]
fn totals<R: Real, S: Simd<R>>(s: S, x: [S::V; MAX_LANES]) -> S::V {
    // Each step adds halves: of two vectors half as many partial sums of each are left, by turns. Vectors that are
    // paired last lie next to each other in the end, hence pairs at the distance of half of what is left.
    let (mut x, mut left) = (x, S::LANES);
    while left > 1 {
        left /= 2;
        for i in 0..left {
            let (low, high) = s.zip(x[i], x[i + left]);
            x[i] = low + high;
        }
    }
    x[0]
}

/// Σ of each row of `dim` elements, added to `to`.
pub struct AddRowSums<'a, R> {
    pub dim: usize,
    pub x: &'a [R],
    pub stride: usize,
    pub to: &'a mut [R],
}

impl<R: Real> Kernel<R> for AddRowSums<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let AddRowSums { dim, x, stride, to } = self;
        let whole = dim - dim % S::LANES;
        let mut first = 0;
        while first + S::LANES <= to.len() {
            let mut sums = [s.splat(R::ZERO); MAX_LANES];
            for (i, sum) in sums.iter_mut().enumerate().take(S::LANES) {
                let x = &x[(first + i) * stride..][..whole];
                for from in (0..whole).step_by(S::LANES) {
                    *sum = *sum + s.load(&x[from..]);
                }
            }
            let to = &mut to[first..];
            s.store(s.load(to) + totals(s, sums), to);
            first += S::LANES;
        }
        for (i, to) in to.iter_mut().enumerate() {
            let from = if i < first { whole } else { 0 };
            *to += x[i * stride..][from..dim].iter().copied().sum::<R>();
        }
    }
}

/// to ← x, or to += x, for each row: times its factor where any are given, times φ′ in the rows that have features.
pub struct Finish<'a, R> {
    /// Nothing else refers to these rows meanwhile.
    pub to: Rows<'a, R>,
    pub dim: usize,
    pub accumulate: bool,
    pub x: &'a [R],
    pub factors: Option<&'a [R]>,
    pub slopes: Option<(FeatureMap, &'a [R])>,
}

impl<R: Real> Kernel<R> for Finish<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Finish { to, dim, accumulate, x, factors, slopes } = self;
        for (i, x) in x.chunks_exact(dim).enumerate() {
            // SAFETY: see `to`.
            let to = unsafe { to.row(i) };
            let factor = s.splat(factors.map_or(R::ONE, |f| f[i]));
            match slopes.and_then(|(map, features)| Some((map, features.get(i * dim..(i + 1) * dim)?))) {
                None if accumulate => each!(s, to, x, |to, x| s.mul_add(x, factor, to)),
                None => each!(s, to, x, |_to, x| x * factor),
                Some((map, features)) => {
                    // What is written is what was there times the slope, so the row is made of two passes in L1.
                    let mut row = [R::ZERO; 64];
                    for ((to, x), features) in to.chunks_mut(64).zip(x.chunks(64)).zip(features.chunks(64)) {
                        let row = &mut row[..to.len()];
                        row.copy_from_slice(x);
                        each!(s, row, features, |x, f| x * (factor * slope(s, map, f)));
                        if accumulate {
                            each!(s, to, row, |to, x| to + x);
                        } else {
                            to.copy_from_slice(row);
                        }
                    }
                }
            }
        }
    }
}

/// Lanes of the machine's vectors.
pub fn lanes<R: Real>() -> usize {
    struct Lanes;
    impl<R: Real> Kernel<R> for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd<R>>(self, _: S) -> usize {
            S::LANES
        }
    }
    vectorise::<R, _>(Lanes)
}

/// C ← A·B, or C += A·B, on this thread; C's rows are `c_row` apart.
pub fn product<R: Real>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<R>,
    b: Matrix<R>,
    add: bool,
    c: &mut [R],
    c_row: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        if !add {
            c.chunks_mut(c_row).take(m).for_each(|row| row[..n].fill(R::ZERO));
        }
    } else if fits(n, b) {
        product_into((m, n, k), a, b, add, Rows::of(c, c_row, n));
    } else {
        R::gemm((m, n, k), R::ONE, a, b, if add { R::ONE } else { R::ZERO }, c, c_row, Threads::One);
    }
}

/// Whether B's rows are whole vectors, as [`product_into`] needs them.
pub fn fits<R: Real>(columns: usize, b: Matrix<R>) -> bool {
    b.column == 1 && columns.is_multiple_of(lanes::<R>())
}

/// As [`product`], where it [`fits`], into rows that nothing else refers to meanwhile.
pub fn product_into<R: Real>((m, n, k): (usize, usize, usize), a: Matrix<R>, b: Matrix<R>, add: bool, c: Rows<R>) {
    let (a, a_strides, b, b_row) = (a.data, (a.row, a.column), b.data, b.row);
    vectorise(Product { m, k, columns: n, a, a_strides, b, b_row, c, add });
}

/// to ← xᵀ with rows `width` apart, for `rows` rows of `dim` elements; lanes past the last row keep what they hold.
pub fn transpose<R: Real>(x: Matrix<R>, rows: usize, dim: usize, to: &mut [R], width: usize) {
    // Sixteen rows at a time: what is written stays within a line, what is read within L1.
    for first in (0..rows).step_by(16) {
        let last = (first + 16).min(rows);
        for d in 0..dim {
            for r in first..last {
                to[d * width + r] = x.data[r * x.row + d];
            }
        }
    }
}
