//! What the layer ops share: the last axis as columns and all others as rows, and fixed partitions of the rows.
//!
//! Partitions depend on shapes alone, never on the number of threads: so do the results.

use crate::cpu::Real;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::error::{Error, Result};
use crate::op::{Kind, Spec};
use rayon::prelude::*;

/// Checks that a tensor is floating point with at least one column, and counts its rows and columns.
pub(crate) fn rows_and_columns(op: &str, argument: &str, spec: &Spec) -> Result<(usize, usize)> {
    match spec.shape.last() {
        Some(&columns) if columns > 0 && spec.kind == Kind::Real => {
            Ok((spec.shape[..spec.shape.len() - 1].iter().product(), columns))
        }
        _ => Err(Error::shape(op, argument, "real (…, C) with at least one column", spec.to_string())),
    }
}

/// Checks a tensor's kind and sizes.
pub(crate) fn expect(op: &str, argument: &str, got: &Spec, wanted: Spec) -> Result<()> {
    if *got == wanted { Ok(()) } else { Err(Error::shape(op, argument, wanted.to_string(), got.to_string())) }
}

/// Checks the number of inputs.
pub(crate) fn expect_inputs(op: &str, inputs: &[&Spec], count: usize, names: &str) -> Result<()> {
    if inputs.len() == count {
        return Ok(());
    }
    Err(Error::shape(op, "inputs", names, format!("{} tensors", inputs.len())))
}

/// Rows of a block: about 16,384 elements, so that a second thread gains more than it costs.
pub(crate) fn block_rows(columns: usize) -> usize {
    (16384 / columns.max(1)).max(1)
}

/// Sums over the rows: each block's into a vector of its own, those in order. `add` adds one block to a vector.
pub(crate) fn block_sums<R: Real>(
    rows: usize,
    columns: usize,
    width: usize,
    add: impl Fn(std::ops::Range<usize>, &mut [R]) + Sync,
) -> Vec<R> {
    let block = block_rows(columns);
    let sums: Vec<Vec<R>> = (0..rows.div_ceil(block))
        .into_par_iter()
        .map(|i| {
            let mut sum = vec![R::ZERO; width];
            wide!(R, || add(i * block..((i + 1) * block).min(rows), &mut sum));
            sum
        })
        .collect();
    let mut total = vec![R::ZERO; width];
    sums.iter().for_each(|sum| add_to(&mut total, sum, true));
    total
}

/// `to` ← `from`, or `to` += `from`.
#[inline(always)]
pub(crate) fn add_to<R: Real>(to: &mut [R], from: &[R], accumulate: bool) {
    if accumulate {
        to.iter_mut().zip(from).for_each(|(to, &x)| *to += x);
    } else {
        to.copy_from_slice(from);
    }
}

/// Runs plain loops, `wide!(R, || …)`, compiled for the widest vectors of the machine, which the compiler then uses by
/// itself. The results are the same bits as without: it neither reorders nor fuses. Inlined by force: a closure of some
/// length would else be compiled once, for the oldest machine, and called. What it calls must be inlined likewise.
macro_rules! wide {
    ($real:ty, || $loops:expr) => {
        $crate::ops::rows::widely::<$real, _>(
            #[inline(always)]
            || $loops,
        )
    };
}
pub(crate) use wide;

/// What [`wide!`] calls.
pub(crate) fn widely<R: Real, T>(loops: impl FnOnce() -> T) -> T {
    struct Wide<F>(F);
    impl<R, T, F: FnOnce() -> T> Kernel<R> for Wide<F> {
        type Output = T;
        #[inline(always)]
        fn run<S: Simd<R>>(self, _: S) -> T {
            (self.0)()
        }
    }
    vectorise::<R, _>(Wide(loops))
}

/// Σ xᵢ·yᵢ of short rows, in code that has vectors already.
#[inline(always)]
pub(crate) fn lane_dot<R: Real, S: Simd<R>>(s: S, x: &[R], y: &[R]) -> R {
    let whole = x.len() / S::LANES * S::LANES;
    let mut sum = s.splat(R::ZERO);
    for (x, y) in x[..whole].chunks_exact(S::LANES).zip(y[..whole].chunks_exact(S::LANES)) {
        sum = s.mul_add(s.load(x), s.load(y), sum);
    }
    let rest: R = x[whole..].iter().zip(&y[whole..x.len()]).map(|(&x, &y)| x * y).sum();
    let mut lanes = [R::ZERO; 16];
    s.store(sum, &mut lanes);
    // By halves: one after another, the additions would wait for each other.
    let eight: [R; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [R; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3]) + rest
}

/// y ← y + a·x likewise.
#[inline(always)]
pub(crate) fn lane_axpy<R: Real, S: Simd<R>>(s: S, a: R, x: &[R], y: &mut [R]) {
    let whole = x.len() / S::LANES * S::LANES;
    let factor = s.splat(a);
    for (x, y) in x[..whole].chunks_exact(S::LANES).zip(y[..whole].chunks_exact_mut(S::LANES)) {
        s.store(s.mul_add(factor, s.load(x), s.load(y)), y);
    }
    x[whole..].iter().zip(&mut y[whole..]).for_each(|(&x, y)| *y += a * x);
}

/// Σ xᵢ in sixteen sums, so that [`wide`] code adds vectors. Inlined, unlike the functions of `cpu::simd`: for short rows
/// a call would cost more than the sum.
#[inline(always)]
pub(crate) fn short_sum<R: Real>(x: &[R]) -> R {
    let mut sums = [R::ZERO; 16];
    let chunks = x.chunks_exact(16);
    let rest: R = chunks.remainder().iter().copied().sum();
    chunks.for_each(|x| sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x));
    sums.into_iter().sum::<R>() + rest
}

/// Σ xᵢ·yᵢ likewise.
#[inline(always)]
pub(crate) fn short_dot<R: Real>(x: &[R], y: &[R]) -> R {
    let mut sums = [R::ZERO; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest: R = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (&x, &y))| *sum += x * y);
    }
    sums.into_iter().sum::<R>() + rest
}
