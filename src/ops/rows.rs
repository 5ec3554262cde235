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
            wide::<R, _>(|| add(i * block..((i + 1) * block).min(rows), &mut sum));
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

/// Runs plain loops compiled for the widest vectors of the machine, which the compiler then uses by itself. The
/// results are the same bits as without: it neither reorders nor fuses.
pub(crate) fn wide<R: Real, T>(loops: impl FnOnce() -> T) -> T {
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
