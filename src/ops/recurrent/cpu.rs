//! The recurrence on the CPU: from the definition, and fast.
//!
//! Fast: sequences are sorted by length, so that those still running at a step are the first; a task is one direction of up
//! to [`GROUP`] of them, and a step is one product with W_hh, which stays in the cache, then the cell vector by
//! vector. The partition depends on shapes alone, and each row is summed in one order, so threads change no bit.

use super::{Recurrence, Sizes};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::Product;
use crate::cpu::scratch::Aligned;
use crate::cpu::strided::contiguous_strides;
use crate::cpu::tasks::for_tasks;
use crate::cpu::{Matrix, Mut, Real, Rows, Threads};
use crate::op::*;
use crate::ops::rows::{add_to, block_sums};

/// Sequences of a task: as many as the widest product takes at once, about.
const GROUP: usize = 8;
/// Columns are padded to whole vectors of every instruction set.
const PAD: usize = 16;

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
                let sums = block_sums(rows, s.columns, s.columns, |range, sums| {
                    range.for_each(|i| add_to(sums, &d_product[i * s.columns..][..s.columns], true));
                });
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

/// Forward's tensors.
struct Forwards<'a, 'b, R> {
    op: &'a Recurrence,
    given: &'a Given<'b, R>,
    gates: &'a [&'b [R]],
    out: &'a Mut<'b, R>,
    last: &'a Mut<'b, R>,
    /// (directions,B,T,saved,H), where the cell saves anything.
    saved: Option<&'a Mut<'b, R>>,
}

impl<R: Real> Forwards<'_, '_, R> {
    /// The gates of x at a step.
    fn gates(&self, d: usize, b: usize, t: usize) -> &[R] {
        let s = &self.given.sizes;
        &self.gates[d][(b * s.length + t) * s.columns..][..s.columns]
    }

    fn by_definition(&self) {
        let (given, Sizes { hidden, .. }) = (self.given, self.given.sizes);
        for (d, b) in (0..self.op.directions).flat_map(|d| (0..given.sizes.batch).map(move |b| (d, b))) {
            let mut h = given.initial(d, b).map_or(vec![R::ZERO; hidden], <[R]>::to_vec);
            for s in 0..given.lengths[b] {
                let t = given.position(d, b, s);
                let c = |j: usize| {
                    let row = &given.weight[d][j * hidden..][..hidden];
                    let product = row.iter().zip(&h).map(|(&w, &h)| w * h).sum::<R>();
                    product + given.bias[d].map_or(R::ZERO, |bias| bias[j])
                };
                let a = self.gates(d, b, t);
                let gates = |of: &dyn Fn(usize) -> R, u: usize| {
                    std::array::from_fn(|g| if g < self.op.cell.gates() { of(g * hidden + u) } else { R::ZERO })
                };
                let next: Vec<R> = (0..hidden)
                    .map(|u| {
                        let mut kept = [R::ZERO; 4];
                        let h = self.op.cell.forward(gates(&|j| a[j], u), gates(&c, u), h[u], &mut kept);
                        for (k, &kept) in kept[..self.op.cell.saved()].iter().enumerate() {
                            // SAFETY: one thread, and one reference at a time.
                            let row = unsafe { self.saved.expect("the cell saves").row(&[d, b, t, k]) };
                            row[u] = kept;
                        }
                        h
                    })
                    .collect();
                h = next;
                // SAFETY: as above.
                unsafe { self.out.part(&[b, t], given.columns(d)) }.copy_from_slice(&h);
            }
            // SAFETY: as above.
            unsafe { self.last.row(&[d, b]) }.copy_from_slice(&h);
        }
    }

    fn fast(&self) {
        let (given, s) = (self.given, self.given.sizes);
        let padded = s.hidden.next_multiple_of(PAD);
        let gates = self.op.cell.gates();
        let packed: Vec<(Aligned<R>, Aligned<R>)> = (0..self.op.directions)
            .map(|d| {
                // W_hhᵀ and b_hh, each gate's columns padded with zeros.
                let (mut w, mut bias) = (Aligned::zeros(s.hidden * gates * padded), Aligned::zeros(gates * padded));
                for (j, row) in given.weight[d].chunks_exact(s.hidden).enumerate() {
                    let column = j / s.hidden * padded + j % s.hidden;
                    row.iter().enumerate().for_each(|(k, &x)| w[k * gates * padded + column] = x);
                    bias[column] = given.bias[d].map_or(R::ZERO, |bias| bias[j]);
                }
                (w, bias)
            })
            .collect();
        let groups = Groups::of(&given.lengths);
        for_tasks(
            self.op.directions * groups.count(),
            || (),
            |(), task| {
                let (d, rows) = (task % self.op.directions, groups.rows(task / self.op.directions));
                let (weight, bias) = &packed[d];
                vectorise(ForwardTask { all: self, d, rows, weight, bias, padded });
            },
        );
    }
}

/// Sequences in the order of their lengths, longest first, in groups.
struct Groups {
    order: Vec<usize>,
}

impl Groups {
    fn of(lengths: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| std::cmp::Reverse(lengths[b]));
        Groups { order }
    }
    fn count(&self) -> usize {
        self.order.len().div_ceil(GROUP)
    }
    fn rows(&self, group: usize) -> &[usize] {
        &self.order[group * GROUP..self.order.len().min((group + 1) * GROUP)]
    }
}

/// The first lanes of a slice, with zeros where it is shorter.
#[inline(always)]
fn load<R: Real, S: Simd<R>>(s: S, from: &[R]) -> S::V {
    if from.len() >= S::LANES {
        return s.load(from);
    }
    let mut padded = [R::ZERO; PAD];
    padded[..from.len()].copy_from_slice(from);
    s.load(&padded)
}

/// The first lanes to a slice, as many as it holds.
#[inline(always)]
fn store<R: Real, S: Simd<R>>(s: S, v: S::V, to: &mut [R]) {
    if to.len() >= S::LANES {
        return s.store(v, to);
    }
    let mut padded = [R::ZERO; PAD];
    s.store(v, &mut padded);
    to.copy_from_slice(&padded[..to.len()]);
}

/// One direction of a group of sequences.
struct ForwardTask<'a, 'b, 'c, R> {
    all: &'a Forwards<'b, 'c, R>,
    d: usize,
    rows: &'a [usize],
    weight: &'a [R],
    bias: &'a [R],
    padded: usize,
}

impl<R: Real> Kernel<R> for ForwardTask<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let ForwardTask { all, d, rows, weight, bias, padded } = self;
        let (given, cell, hidden) = (all.given, all.op.cell, all.given.sizes.hidden);
        let gates = cell.gates();
        let (mut h, mut c) = (Aligned::zeros(rows.len() * padded), Aligned::zeros(rows.len() * gates * padded));
        for (h, &b) in h.chunks_exact_mut(padded).zip(rows) {
            given.initial(d, b).into_iter().for_each(|first| h[..hidden].copy_from_slice(first));
        }
        let mut running = rows.len();
        for step in 0..given.lengths[rows[0]] {
            running = rows[..running].partition_point(|&b| given.lengths[b] > step);
            s.call(Product {
                m: running,
                k: hidden,
                columns: gates * padded,
                a: &h,
                a_strides: (padded, 1),
                b: weight,
                b_row: gates * padded,
                c: Rows::of(&mut c, gates * padded, gates * padded),
                add: false,
            });
            for (i, &b) in rows[..running].iter().enumerate() {
                let t = given.position(d, b, step);
                let (a, c) = (all.gates(d, b, t), &c[i * gates * padded..][..gates * padded]);
                let h = &mut h[i * padded..][..padded];
                // SAFETY: a sequence and a direction belong to one task, which takes one step at a time.
                let out = unsafe { all.out.part(&[b, t], given.columns(d)) };
                for first in (0..hidden).step_by(S::LANES) {
                    let units = first..hidden.min(first + S::LANES);
                    let (mut of_x, mut of_h) = ([s.splat(R::ZERO); 3], [s.splat(R::ZERO); 3]);
                    for g in 0..gates {
                        of_x[g] = load(s, &a[g * hidden..][units.clone()]);
                        of_h[g] = s.load(&c[g * padded + first..]) + s.load(&bias[g * padded + first..]);
                    }
                    let (next, kept) = cell.forward_vector(s, of_x, of_h, s.load(&h[first..]));
                    store(s, next, &mut h[units.clone()]);
                    store(s, next, &mut out[units.clone()]);
                    for (k, kept) in kept.into_iter().enumerate().take(cell.saved()) {
                        // SAFETY: as above.
                        let saved = unsafe { all.saved.expect("the cell saves").row(&[d, b, t, k]) };
                        store(s, kept, &mut saved[units.clone()]);
                    }
                }
            }
        }
        for (h, &b) in h.chunks_exact(padded).zip(rows) {
            // SAFETY: as above.
            unsafe { all.last.row(&[d, b]) }.copy_from_slice(&h[..hidden]);
        }
    }
}

/// Backward's tensors.
struct Backwards<'a, 'b, R> {
    op: &'a Recurrence,
    given: &'a Given<'b, R>,
    out: &'b [R],
    d_out: Option<&'b [R]>,
    d_last: Option<&'b [R]>,
    saved: &'b [R],
    d_gates: &'a [Option<Gradient<Mut<'b, R>>>],
    d_initial: Option<Gradient<Mut<'b, R>>>,
    /// (directions,B,T,G·H)
    d_products: &'a mut [R],
    /// (directions,B,T,H)
    before: &'a mut [R],
}

impl<R: Real> Backwards<'_, '_, R> {
    /// A row of `out`, or of its gradient, as one direction has it.
    fn state<'c>(&self, of: &'c [R], d: usize, b: usize, t: usize) -> &'c [R] {
        let s = &self.given.sizes;
        &of[((b * s.length + t) * s.directions + d) * s.hidden..][..s.hidden]
    }

    /// The state before the s-th step; `None`: zeros.
    fn state_before(&self, d: usize, b: usize, s: usize) -> Option<&[R]> {
        match s {
            0 => self.given.initial(d, b),
            _ => Some(self.state(self.out, d, b, self.given.position(d, b, s - 1))),
        }
    }

    fn saved(&self, d: usize, b: usize, t: usize, k: usize) -> &[R] {
        let s = &self.given.sizes;
        &self.saved[(((d * s.batch + b) * s.length + t) * self.op.cell.saved() + k) * s.hidden..][..s.hidden]
    }

    /// The gradient of the last state that comes from outside.
    fn d_last(&self, d: usize, b: usize) -> Option<&[R]> {
        let Sizes { batch, hidden, .. } = self.given.sizes;
        self.d_last.map(|all| &all[(d * batch + b) * hidden..][..hidden])
    }

    /// Adds to the gradient of h_0, or writes it.
    fn give_initial(&self, d: usize, b: usize, carried: &[R]) {
        if let Some(to) = &self.d_initial {
            // SAFETY: a sequence and a direction belong to one task.
            add_to(unsafe { to.to.row(&[d, b]) }, carried, to.accumulate);
        }
    }

    fn by_definition(&mut self) {
        let (given, cell) = (self.given, self.op.cell);
        let Sizes { hidden, columns, length, batch, .. } = given.sizes;
        for (d, b) in (0..self.op.directions).flat_map(|d| (0..batch).map(move |b| (d, b))) {
            let mut carried = self.d_last(d, b).map_or(vec![R::ZERO; hidden], <[R]>::to_vec);
            for s in (0..given.lengths[b]).rev() {
                let t = given.position(d, b, s);
                let row = (d * batch + b) * length + t;
                let before = self.state_before(d, b, s).map_or(vec![R::ZERO; hidden], <[R]>::to_vec);
                let mut gc = vec![R::ZERO; columns];
                for u in 0..hidden {
                    let kept =
                        std::array::from_fn(|k| if k < cell.saved() { self.saved(d, b, t, k)[u] } else { R::ZERO });
                    let d_out = self.d_out.map_or(R::ZERO, |all| self.state(all, d, b, t)[u]);
                    let after = self.state(self.out, d, b, t)[u];
                    let (ga, of_h, direct) = cell.backward(carried[u] + d_out, kept, before[u], after);
                    carried[u] = direct;
                    for g in 0..cell.gates() {
                        gc[g * hidden + u] = of_h[g];
                        if let Some(to) = &self.d_gates[d] {
                            // SAFETY: one thread, and one reference at a time.
                            let to_row = unsafe { to.to.row(&[b, t]) };
                            add_to(&mut to_row[g * hidden + u..][..1], &ga[g..=g], to.accumulate);
                        }
                    }
                }
                for (w, &gc) in given.weight[d].chunks_exact(hidden).zip(&gc) {
                    carried.iter_mut().zip(w).for_each(|(carried, &w)| *carried += gc * w);
                }
                self.d_products[row * columns..][..columns].copy_from_slice(&gc);
                self.before[row * hidden..][..hidden].copy_from_slice(&before);
            }
            self.give_initial(d, b, &carried);
        }
    }

    fn fast(&mut self) {
        let s = self.given.sizes;
        let padded = s.hidden.next_multiple_of(PAD);
        let weights: Vec<Aligned<R>> = (0..self.op.directions)
            .map(|d| {
                let mut w = Aligned::zeros(s.columns * padded);
                let rows = w.chunks_exact_mut(padded).zip(self.given.weight[d].chunks_exact(s.hidden));
                rows.for_each(|(to, from)| to[..s.hidden].copy_from_slice(from));
                w
            })
            .collect();
        let shape = |columns: usize| [s.directions, s.batch, s.length, columns];
        let (of_products, of_before) = (shape(s.columns), shape(s.hidden));
        let strides = [contiguous_strides(&of_products), contiguous_strides(&of_before)];
        let d_products = Mut::new(std::mem::take(&mut self.d_products), &of_products, &strides[0]);
        let before = Mut::new(std::mem::take(&mut self.before), &of_before, &strides[1]);
        let (groups, all) = (Groups::of(&self.given.lengths), &*self);
        for_tasks(
            s.directions * groups.count(),
            || (),
            |(), task| {
                let (d, rows) = (task % s.directions, groups.rows(task / s.directions));
                vectorise(BackwardTask { all, d, rows, weight: &weights[d], padded, d_products, before });
            },
        );
    }
}

/// One direction of a group of sequences.
struct BackwardTask<'a, 'b, 'c, R> {
    all: &'a Backwards<'b, 'c, R>,
    d: usize,
    rows: &'a [usize],
    /// Rows padded with zeros.
    weight: &'a [R],
    padded: usize,
    d_products: Mut<'a, R>,
    before: Mut<'a, R>,
}

impl<R: Real> Kernel<R> for BackwardTask<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let BackwardTask { all, d, rows, weight, padded, d_products, before: befores } = self;
        let (given, cell) = (all.given, all.op.cell);
        let Sizes { hidden, columns, .. } = given.sizes;
        let (mut carried, mut products) = (Aligned::zeros(rows.len() * padded), Aligned::zeros(rows.len() * columns));
        for (carried, &b) in carried.chunks_exact_mut(padded).zip(rows) {
            all.d_last(d, b).into_iter().for_each(|last| carried[..hidden].copy_from_slice(last));
        }
        let zeros = vec![R::ZERO; hidden];
        for step in (0..given.lengths[rows[0]]).rev() {
            let running = rows.partition_point(|&b| given.lengths[b] > step);
            for (i, &b) in rows[..running].iter().enumerate() {
                let t = given.position(d, b, step);
                let before = all.state_before(d, b, step).unwrap_or(&zeros);
                let after = all.state(all.out, d, b, t);
                let d_out = all.d_out.map_or(&zeros[..], |of| all.state(of, d, b, t));
                let carried = &mut carried[i * padded..][..padded];
                let gc = &mut products[i * columns..][..columns];
                for first in (0..hidden).step_by(S::LANES) {
                    let units = first..hidden.min(first + S::LANES);
                    let mut kept = [s.splat(R::ZERO); 4];
                    for (k, kept) in kept.iter_mut().enumerate().take(cell.saved()) {
                        *kept = load(s, &all.saved(d, b, t, k)[units.clone()]);
                    }
                    let states = (load(s, &before[units.clone()]), load(s, &after[units.clone()]));
                    let incoming = s.load(&carried[first..]) + load(s, &d_out[units.clone()]);
                    let (of_x, of_h, direct) = cell.backward_vector(s, incoming, kept, states);
                    store(s, direct, &mut carried[units.clone()]);
                    for g in 0..cell.gates() {
                        store(s, of_h[g], &mut gc[g * hidden..][units.clone()]);
                        let Some(to) = &all.d_gates[d] else { continue };
                        // SAFETY: a sequence and a direction belong to one task, which takes one step at a time.
                        let row = &mut unsafe { to.to.row(&[b, t]) }[g * hidden..][units.clone()];
                        let sum = if to.accumulate { load(s, row) + of_x[g] } else { of_x[g] };
                        store(s, sum, row);
                    }
                }
                // SAFETY: as above.
                unsafe {
                    d_products.row(&[d, b, t]).copy_from_slice(gc);
                    befores.row(&[d, b, t]).copy_from_slice(before);
                }
            }
            s.call(Product {
                m: running,
                k: columns,
                columns: padded,
                a: &products,
                a_strides: (columns, 1),
                b: weight,
                b_row: padded,
                c: Rows::of(&mut carried, padded, padded),
                add: true,
            });
        }
        for (carried, &b) in carried.chunks_exact(padded).zip(rows) {
            all.give_initial(d, b, &carried[..hidden]);
        }
    }
}
