//! On the CPU: a sequence at a time, its scores and weights in the cache.

use super::{HeadPooling, Sizes};
use crate::cpu::Real;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::op::*;
use crate::ops::rows::*;
use crate::ops::table::{self, add_rows, sequences, valid};
use rayon::prelude::*;
use std::ops::Range;

/// What forward and backward read, and H with a head's column in a row.
struct Inputs<'a, R> {
    s: Sizes,
    tokens: &'a [i32],
    lengths: &'a [i32],
    table: &'a [R],
    columns_of_heads: Vec<R>,
    positions: Option<&'a [R]>,
}

impl<'a, R: Real> Inputs<'a, R> {
    fn of(inputs: &[Input<'a, R>]) -> Self {
        let heads = inputs[3].all();
        let s = Sizes::of(inputs[0].int_tensor().shape, inputs[3].real().shape);
        let mut columns_of_heads = vec![R::ZERO; heads.len()];
        for (e, row) in heads.chunks_exact(s.heads).enumerate() {
            row.iter().enumerate().for_each(|(i, &x)| columns_of_heads[i * s.width + e] = x);
        }
        Inputs {
            s,
            tokens: inputs[0].ints(),
            lengths: inputs[1].ints(),
            table: inputs[2].all(),
            columns_of_heads,
            positions: inputs.get(4).map(|p| p.all()),
        }
    }

    #[inline(always)]
    fn length(&self, b: usize) -> usize {
        valid(self.lengths[b], self.s.length)
    }

    #[inline(always)]
    fn head(&self, i: usize) -> &[R] {
        &self.columns_of_heads[i * self.s.width..][..self.s.width]
    }

    /// x of a token: the table's row itself, or in `sum` that and the position's.
    #[inline(always)]
    fn x<'b>(&'b self, b: usize, t: usize, sum: &'b mut [R]) -> &'b [R] {
        let width = self.s.width;
        let row = &self.table[self.tokens[b * self.s.length + t] as usize * width..][..width];
        let Some(positions) = self.positions else { return row };
        sum.iter_mut().zip(row.iter().zip(&positions[t * width..])).for_each(|(s, (&x, &p))| *s = x + p);
        sum
    }

    /// Weights (h,T) and averages (h·E) of a sequence.
    #[inline(always)]
    fn forward<S: Simd<R>>(&self, simd: S, b: usize, y: &mut [R], weights: &mut [R], sum: &mut [R], mode: Mode) {
        let (s, length) = (self.s, self.length(b));
        weights.fill(R::ZERO);
        y.fill(R::ZERO);
        for t in 0..length {
            let x = self.x(b, t, sum);
            for i in 0..s.heads {
                weights[i * s.length + t] = lane_dot(simd, x, self.head(i));
            }
        }
        for weights in weights.chunks_exact_mut(s.length.max(1)) {
            softmax(&mut weights[..length], mode);
        }
        for t in 0..length {
            let x = self.x(b, t, sum);
            for (i, y) in y.chunks_exact_mut(s.width).enumerate() {
                lane_axpy(simd, weights[i * s.length + t], x, y);
            }
        }
    }
}

/// Some sequences' forward.
struct ForwardOf<'a, R> {
    inputs: &'a Inputs<'a, R>,
    /// The first of them.
    first: usize,
    y: &'a mut [R],
    weights: &'a mut [R],
    mode: Mode,
}

impl<R: Real> Kernel<R> for ForwardOf<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, simd: S) {
        let s = self.inputs.s;
        let mut sum = vec![R::ZERO; s.width];
        let y = self.y.chunks_exact_mut(s.heads * s.width);
        for (i, (y, weights)) in y.zip(self.weights.chunks_exact_mut(s.heads * s.length)).enumerate() {
            self.inputs.forward(simd, self.first + i, y, weights, &mut sum, self.mode);
        }
    }
}

/// Some sequences' backward.
struct BackwardOf<'a, R> {
    inputs: &'a Inputs<'a, R>,
    sequences: Range<usize>,
    /// Of all sequences: dy and y (B,h·E), weights (B,h,T).
    dy: &'a [R],
    y: &'a [R],
    weights: &'a [R],
    /// Their sum of dH, a head after another.
    d_h: &'a mut [R],
    /// Their dx (·,T,E), or nothing.
    dx: &'a mut [R],
}

impl<R: Real> Kernel<R> for BackwardOf<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, simd: S) {
        let BackwardOf { inputs, sequences, dy, y, weights, d_h, dx } = self;
        let s = inputs.s;
        let (y_width, a_width, x_width) = (s.heads * s.width, s.heads * s.length, s.length * s.width);
        let (mut sum, mut mean) = (vec![R::ZERO; s.width], vec![R::ZERO; s.heads]);
        for (i, b) in sequences.enumerate() {
            let (dy, y) = (&dy[b * y_width..][..y_width], &y[b * y_width..][..y_width]);
            let weights = &weights[b * a_width..][..a_width];
            let of_heads = dy.chunks_exact(s.width).zip(y.chunks_exact(s.width));
            mean.iter_mut().zip(of_heads).for_each(|(mean, (g, y))| *mean = lane_dot(simd, g, y));
            for t in 0..inputs.length(b) {
                let x = inputs.x(b, t, &mut sum);
                for (h, (d_h, g)) in d_h.chunks_exact_mut(s.width).zip(dy.chunks_exact(s.width)).enumerate() {
                    let a = weights[h * s.length + t];
                    let ds = a * (lane_dot(simd, g, x) - mean[h]);
                    lane_axpy(simd, ds, x, d_h);
                    if !dx.is_empty() {
                        let dx = &mut dx[i * x_width + t * s.width..][..s.width];
                        lane_axpy(simd, a, g, dx);
                        lane_axpy(simd, ds, inputs.head(h), dx);
                    }
                }
            }
        }
    }
}

/// x ← softmax(x); nothing of nothing.
#[inline(always)]
fn softmax<R: Real>(x: &mut [R], mode: Mode) {
    let highest = x.iter().copied().fold(R::NEG_INFINITY, R::maximum);
    x.iter_mut().for_each(|x| *x -= highest);
    if mode == Mode::Definition {
        x.iter_mut().for_each(|x| *x = x.exp());
    } else {
        R::exp_in_place(x);
    }
    let scale = R::ONE / x.iter().copied().sum::<R>();
    x.iter_mut().for_each(|x| *x *= scale);
}

impl<R: Real> CpuOp<R> for HeadPooling {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let inputs = Inputs::of(&io.inputs);
        let s = inputs.s;
        let block = sequences(s.length * s.width);
        let (y_width, a_width) = (s.heads * s.width, s.heads * s.length);
        if s.length == 0 {
            return io.outputs[0].fill(R::ZERO);
        }
        let y = io.outputs[0].contiguous().par_chunks_mut(block * y_width);
        y.zip(io.outputs[1].contiguous().par_chunks_mut(block * a_width)).enumerate().for_each(|(i, (y, weights))| {
            vectorise(ForwardOf { inputs: &inputs, first: i * block, y, weights, mode });
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let inputs = Inputs::of(&io.inputs);
        let (s, dy, y, weights) = (inputs.s, dy.all(), io.outputs[0].all(), io.outputs[1].all());
        let d_table = io.d_inputs[2].take();
        let d_heads = io.d_inputs[3].take();
        let d_positions = io.d_inputs.get_mut(4).and_then(Option::take);
        let with_x = d_table.is_some() || d_positions.is_some();
        let (y_width, x_width) = (s.heads * s.width, s.length * s.width);
        let block = sequences(x_width);
        // dx where the table is trained, and each block's dH, a head after another.
        let mut dx = vec![R::ZERO; if with_x { s.batch * x_width } else { 0 }];
        let mut d_h = vec![R::ZERO; s.batch.div_ceil(block) * y_width];
        let of_block = |i: usize, d_h: &mut [R], dx: &mut [R]| {
            let sequences = i * block..((i + 1) * block).min(s.batch);
            vectorise(BackwardOf { inputs: &inputs, sequences, dy, y, weights, d_h, dx });
        };
        let blocks = d_h.par_chunks_mut(y_width).enumerate();
        if with_x && x_width > 0 {
            blocks.zip(dx.par_chunks_mut(block * x_width)).for_each(|((i, d_h), dx)| of_block(i, d_h, dx));
        } else {
            blocks.for_each(|(i, d_h)| of_block(i, d_h, &mut []));
        }
        if let Some(d) = d_heads {
            let d = d.added();
            for d_h in d_h.chunks_exact(y_width) {
                for (i, d_h) in d_h.chunks_exact(s.width).enumerate() {
                    d.iter_mut().skip(i).step_by(s.heads).zip(d_h).for_each(|(d, &x)| *d += x);
                }
            }
        }
        if let Some(d) = d_positions {
            let d = d.added();
            for b in 0..s.batch {
                let n = inputs.length(b) * s.width;
                add_to(&mut d[..n], &dx[b * x_width..][..n], true);
            }
        }
        if let Some(d) = d_table {
            let sizes = table::Sizes { batch: s.batch, length: s.length, columns: s.width };
            add_rows(d, sizes, (inputs.tokens, inputs.lengths), |b, t, row| {
                add_to(row, &dx[b * x_width + t * s.width..][..s.width], true);
            });
        }
    }
}
