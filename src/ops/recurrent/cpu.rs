//! The recurrence on the CPU: from the definition, and fast.
//!
//! Fast: a task is one direction of a few sequences, and steps them together: a product of their states with W_hh, which
//! is packed once and stays in the cache, then the cell vector by vector. Each row is summed in one order, so that
//! neither threads nor neighbours change a bit.
//!
//! - `panels`: W_hh as the products read it; groups of sequences.
//! - `forward`, `backward`: the definition and the fast one of each pass.

mod backward;
mod forward;
mod panels;

use super::{Recurrence, Sizes};
use crate::cpu::{Matrix, Mut, Real, Threads};
use crate::op::*;
use crate::ops::rows::{add_to, block_sums};
use backward::Backwards;
use forward::Forwards;

/// What both passes read.
struct Given<'a, R> {
    sizes: Sizes,
    weight: Vec<&'a [R]>,
    bias: Vec<Option<&'a [R]>>,
    initial: Option<&'a [R]>,
    /// Of each sequence.
    lengths: Vec<usize>,
}

impl<'a, R: Real> Given<'a, R> {
    fn of(op: &Recurrence, inputs: &[Input<'a, R>]) -> Self {
        let sizes = op.sizes(inputs[0].real().shape, inputs[1].real().shape);
        let at = |d: usize| op.gates_at(d);
        let directions = 0..op.directions;
        Given {
            sizes,
            weight: directions.clone().map(|d| inputs[at(d) + 1].all()).collect(),
            bias: directions.map(|d| op.bias.then(|| inputs[at(d) + 2].all())).collect(),
            initial: op.initial_at().map(|i| inputs[i].all()),
            lengths: match op.lengths_at() {
                Some(i) => inputs[i].ints().iter().map(|&n| n as usize).collect(),
                None => vec![sizes.length; sizes.batch],
            },
        }
    }

    /// Where the s-th step of sequence `b` lies in time.
    fn position(&self, d: usize, b: usize, s: usize) -> usize {
        if d == 0 { s } else { self.lengths[b] - 1 - s }
    }

    /// The first state.
    fn initial(&self, d: usize, b: usize) -> Option<&'a [R]> {
        let Sizes { batch, hidden, .. } = self.sizes;
        self.initial.map(|h| &h[(d * batch + b) * hidden..][..hidden])
    }

    /// The columns of direction `d` in a row of `out`.
    fn columns(&self, d: usize) -> std::ops::Range<usize> {
        d * self.sizes.hidden..(d + 1) * self.sizes.hidden
    }
}

impl<R: Real> CpuOp<R> for Recurrence {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let given = Given::of(self, &io.inputs);
        let gates: Vec<&[R]> = (0..self.directions).map(|d| io.inputs[self.gates_at(d)].all()).collect();
        let [out, last] = &mut io.outputs[..] else { unreachable!("two outputs") };
        for (b, &length) in given.lengths.iter().enumerate() {
            for t in length..given.sizes.length {
                // SAFETY: no other reference to the output is alive.
                unsafe { out.row(&[b, t]) }.fill(R::ZERO);
            }
        }
        let forward = Forwards { op: self, given: &given, gates: &gates, out, last, saved: io.saved.first() };
        if mode == Mode::Definition { forward.by_definition() } else { forward.fast() }
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let given = Given::of(self, &io.inputs);
        let s = given.sizes;
        let d_gates: Vec<Option<Gradient<Mut<R>>>> =
            (0..self.directions).map(|d| io.d_inputs[self.gates_at(d)]).collect();
        for d in d_gates.iter().flatten().filter(|d| !d.accumulate) {
            for (b, &length) in given.lengths.iter().enumerate() {
                for t in length..s.length {
                    // SAFETY: no other reference to the gradient is alive.
                    unsafe { d.to.row(&[b, t]) }.fill(R::ZERO);
                }
            }
        }
        // The gradients of W_hh·h + b_hh, and h before each step.
        let (d_products, before) =
            io.scratch.contiguous()[..s.steps() * (s.columns + s.hidden)].split_at_mut(s.steps() * s.columns);
        if self.lengths {
            d_products.fill(R::ZERO);
            before.fill(R::ZERO);
        }
        let mut backward = Backwards {
            op: self,
            given: &given,
            out: io.outputs[0].all(),
            d_out: io.d_outputs[0].as_ref().map(|d| d.all()),
            d_last: io.d_outputs[1].as_ref().map(|d| d.all()),
            saved: io.saved.first().map(|s| s.all()).unwrap_or_default(),
            d_gates: &d_gates,
            d_initial: self.initial_at().and_then(|i| io.d_inputs[i]),
            d_products,
            before,
        };
        if mode == Mode::Definition {
            backward.by_definition()
        } else {
            backward.fast()
        }
        let rows = s.batch * s.length;
        for d in 0..self.directions {
            let d_product = &d_products[d * rows * s.columns..][..rows * s.columns];
            let before = &before[d * rows * s.hidden..][..rows * s.hidden];
            if let Some(to) = io.d_inputs[self.gates_at(d) + 1].map(Gradient::added) {
                weight_gradient(mode, &s, d_product, before, to);
            }
            if self.bias
                && let Some(to) = io.d_inputs[self.gates_at(d) + 2].map(Gradient::added)
            {
                let sums = block_sums(
                    rows,
                    s.columns,
                    s.columns,
                    #[inline(always)]
                    |range, sums| {
                        range.for_each(|i| add_to(sums, &d_product[i * s.columns..][..s.columns], true));
                    },
                );
                add_to(to, &sums, true);
            }
        }
    }
}

/// dW_hh += Σ over the rows of gc·hᵀ.
fn weight_gradient<R: Real>(mode: Mode, s: &Sizes, d_product: &[R], before: &[R], to: &mut [R]) {
    if mode == Mode::Fast {
        let mnk = (s.columns, s.hidden, s.batch * s.length);
        let (a, b) = (Matrix::new(d_product, s.columns).t(), Matrix::new(before, s.hidden));
        return R::gemm(mnk, R::ONE, a, b, R::ONE, to, s.hidden, Threads::All);
    }
    for (gc, h) in d_product.chunks_exact(s.columns).zip(before.chunks_exact(s.hidden)) {
        for (to, &gc) in to.chunks_exact_mut(s.hidden).zip(gc) {
            to.iter_mut().zip(h).for_each(|(to, &h)| *to += gc * h);
        }
    }
}
