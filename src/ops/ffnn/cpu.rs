//! The feed-forward layer on the CPU: parts of the rows, each with all its products while its hidden layer is hot in the cache.

use super::{Ffnn, Sizes};
use crate::cpu::{Matrix, Real, Threads};
use crate::op::*;
use crate::ops::linear::{activate, product};
use crate::ops::rows::*;
use rayon::prelude::*;

/// Rows of a part: by shape and mode alone. At most 16 parts, as each has sums of its own for the weights' gradients.
fn part_rows(s: &Sizes, mode: Mode) -> usize {
    match mode {
        Mode::Definition => s.rows.max(1),
        Mode::Fast => s.rows.div_ceil(16).next_multiple_of(32).max(64),
    }
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Given<'a, R> {
    op: Ffnn,
    s: Sizes,
    mode: Mode,
    x: &'a [R],
    weight_1: &'a [R],
    bias_1: &'a [R],
    weight_2: &'a [R],
}

impl<'a, R: Real> Given<'a, R> {
    fn of(op: Ffnn, inputs: &[Input<'a, R>], mode: Mode) -> Self {
        let s = Sizes::of(inputs[0].real().shape, inputs[3].real().shape);
        let [x, weight_1, bias_1, weight_2] = [0, 1, 2, 3].map(|i| inputs[i].all());
        Given { op, s, mode, x, weight_1, bias_1, weight_2 }
    }

    fn product(&self, mnk: (usize, usize, usize), a: Matrix<R>, b: Matrix<R>, accumulate: bool, c: &mut [R]) {
        product((self.mode, Threads::One), mnk, a, b, accumulate, c);
    }

    /// g(z) and g′(z) of some rows of x.
    fn hidden(&self, x: &[R]) -> (Vec<R>, Vec<R>) {
        let Sizes { inputs, hidden, .. } = self.s;
        let rows = x.len() / inputs;
        let (mut h, mut slope) = (vec![R::ZERO; rows * hidden], vec![R::ZERO; rows * hidden]);
        let weight = Matrix::new(self.weight_1, inputs).t();
        self.product((rows, hidden, inputs), Matrix::new(x, inputs), weight, false, &mut h);
        wide!(R, || h.chunks_exact_mut(hidden).for_each(|h| add_to(h, self.bias_1, true)));
        activate(self.mode, self.op.activation, &mut h, &mut slope);
        (h, slope)
    }
}

impl<R: Real> CpuOp<R> for Ffnn {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let given = Given::of(*self, &io.inputs, mode);
        let (s, bias_2) = (given.s, io.inputs[4].all());
        let rows = part_rows(&s, mode);
        let y = io.outputs[0].contiguous().par_chunks_mut(rows * s.outputs);
        y.zip(given.x.par_chunks(rows * s.inputs)).for_each(|(y, x)| {
            let (h, _) = given.hidden(x);
            let mnk = (x.len() / s.inputs, s.outputs, s.hidden);
            given.product(mnk, Matrix::new(&h, s.hidden), Matrix::new(given.weight_2, s.hidden).t(), false, y);
            y.chunks_exact_mut(s.outputs).for_each(|y| add_to(y, bias_2, true));
        });
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, mode: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let given = Given::of(*self, &io.inputs, mode);
        let (s, dy) = (given.s, dy.all());
        let rows = part_rows(&s, mode);
        let count = s.rows.div_ceil(rows);
        let add_dx = io.d_inputs[0].is_some_and(|d| d.accumulate);
        let dx: Vec<Option<&mut [R]>> = match io.d_inputs[0].map(|mut d| d.to.contiguous()) {
            Some(all) => all.chunks_mut(rows * s.inputs).map(Some).collect(),
            None => (0..count).map(|_| None).collect(),
        };
        // Sums for dW1, db1, dW2 and db2.
        let sizes = [s.hidden * s.inputs, s.hidden, s.outputs * s.hidden, s.outputs];
        let wanted = [1, 2, 3, 4].map(|i| io.d_inputs[i].is_some());
        let parts = dx.into_par_iter().zip(given.x.par_chunks(rows * s.inputs)).zip(dy.par_chunks(rows * s.outputs));
        let sums: Vec<[Vec<R>; 4]> = parts
            .map(|((dx, x), dy)| {
                let rows = x.len() / s.inputs;
                let (h, slope) = given.hidden(x);
                let mut sums: [Vec<R>; 4] =
                    std::array::from_fn(|i| vec![R::ZERO; if wanted[i] { sizes[i] } else { 0 }]);
                let [weight_1, bias_1, weight_2, bias_2] = &mut sums;
                let of_dy = Matrix::new(dy, s.outputs);
                if wanted[2] {
                    given.product((s.outputs, s.hidden, rows), of_dy.t(), Matrix::new(&h, s.hidden), false, weight_2);
                }
                if wanted[3] {
                    dy.chunks_exact(s.outputs).for_each(|dy| add_to(bias_2, dy, true));
                }
                let mut dz = h;
                let w = Matrix::new(given.weight_2, s.hidden);
                given.product((rows, s.hidden, s.outputs), of_dy, w, false, &mut dz);
                wide!(R, || dz.iter_mut().zip(&slope).for_each(|(dz, &slope)| *dz *= slope));
                if wanted[1] {
                    wide!(R, || dz.chunks_exact(s.hidden).for_each(|dz| add_to(bias_1, dz, true)));
                }
                let of_dz = Matrix::new(&dz, s.hidden);
                if wanted[0] {
                    let x = Matrix::new(x, s.inputs);
                    given.product((s.hidden, s.inputs, rows), of_dz.t(), x, false, weight_1);
                }
                if let Some(dx) = dx {
                    let w = Matrix::new(given.weight_1, s.inputs);
                    given.product((rows, s.inputs, s.hidden), of_dz, w, add_dx, dx);
                }
                sums
            })
            .collect();
        for (i, d) in io.d_inputs[1..].iter().enumerate() {
            if let Some(d) = d {
                let to = d.added();
                sums.iter().for_each(|sums| add_to(to, &sums[i], true));
            }
        }
    }
}
