//! Backward through time, to the gradients of the gates.

use super::panels::{Groups, Panels, load, store, units};
use super::{Given, Sizes};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::Product;
use crate::cpu::scratch::Aligned;
use crate::cpu::strided::contiguous_strides;
use crate::cpu::tasks::for_tasks;
use crate::cpu::{Mut, Real, Rows};
use crate::op::Gradient;
use crate::ops::recurrent::Recurrence;
use crate::ops::rows::add_to;
use rayon::prelude::*;

/// Backward's tensors.
pub(super) struct Backwards<'a, 'b, R> {
    pub op: &'a Recurrence,
    pub given: &'a Given<'b, R>,
    pub out: &'b [R],
    pub d_out: Option<&'b [R]>,
    pub d_last: Option<&'b [R]>,
    pub saved: &'b [R],
    pub d_gates: &'a [Option<Gradient<Mut<'b, R>>>],
    pub d_initial: Option<Gradient<Mut<'b, R>>>,
    /// (directions,B,T,G·H)
    pub d_products: &'a mut [R],
    /// (directions,B,T,H)
    pub before: &'a mut [R],
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

    pub(super) fn by_definition(&mut self) {
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

    pub(super) fn fast(&mut self) {
        let s = self.given.sizes;
        let weights: Vec<Panels<R>> =
            self.given.weight.par_iter().map(|weight| Panels::of_units(weight, s.hidden)).collect();
        let shape = |columns: usize| [s.directions, s.batch, s.length, columns];
        let (of_products, of_before) = (shape(s.columns), shape(s.hidden));
        let strides = [contiguous_strides(&of_products), contiguous_strides(&of_before)];
        let d_products = Mut::new(std::mem::take(&mut self.d_products), &of_products, &strides[0]);
        let before = Mut::new(std::mem::take(&mut self.before), &of_before, &strides[1]);
        let (groups, all) = (Groups::of(&self.given.lengths, s.directions), &*self);
        for_tasks(
            s.directions * groups.count(),
            || (),
            |(), task| {
                let (d, rows) = (task % s.directions, groups.rows(task / s.directions));
                vectorise(Task { all, d, rows, weight: &weights[d], d_products, before });
            },
        );
    }
}

/// One direction of a group of sequences.
struct Task<'a, 'b, 'c, R> {
    all: &'a Backwards<'b, 'c, R>,
    d: usize,
    rows: &'a [usize],
    weight: &'a Panels<R>,
    d_products: Mut<'a, R>,
    before: Mut<'a, R>,
}

impl<R: Real> Kernel<R> for Task<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Task { all, d, rows, weight, d_products, before: befores } = self;
        let (given, cell) = (all.given, all.op.cell);
        let Sizes { hidden, columns, .. } = given.sizes;
        let padded = weight.count() * weight.width;
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
                let saved: [&[R]; 4] =
                    std::array::from_fn(|k| if k < cell.saved() { all.saved(d, b, t, k) } else { &zeros });
                // SAFETY: a sequence and a direction belong to one task, which takes one step at a time.
                let mut d_gates = all.d_gates[d].map(|to| (unsafe { to.to.row(&[b, t]) }, to.accumulate));
                let carried = &mut carried[i * padded..][..padded];
                let gc = &mut products[i * columns..][..columns];
                for units in units(s, hidden) {
                    let kept = saved.map(|row| load(s, &row[units.clone()]));
                    let states = (load(s, &before[units.clone()]), load(s, &after[units.clone()]));
                    let incoming = s.load(&carried[units.start..]) + load(s, &d_out[units.clone()]);
                    let (of_x, of_h, direct) = cell.backward_vector(s, incoming, kept, states);
                    store(s, direct, &mut carried[units.clone()]);
                    for g in 0..cell.gates() {
                        store(s, of_h[g], &mut gc[g * hidden..][units.clone()]);
                        let Some((row, accumulate)) = &mut d_gates else { continue };
                        let row = &mut row[g * hidden..][units.clone()];
                        let sum = if *accumulate { load(s, row) + of_x[g] } else { of_x[g] };
                        store(s, sum, row);
                    }
                }
                // SAFETY: as above.
                unsafe {
                    d_products.row(&[d, b, t]).copy_from_slice(gc);
                    befores.row(&[d, b, t]).copy_from_slice(before);
                }
            }
            for (p, panel) in weight.iter().enumerate() {
                s.call(Product {
                    m: running,
                    k: columns,
                    columns: weight.width,
                    a: &products,
                    a_strides: (columns, 1),
                    b: panel,
                    b_row: weight.width,
                    c: Rows::of(&mut carried[p * weight.width..], padded, weight.width),
                    add: true,
                });
            }
        }
        for (carried, &b) in carried.chunks_exact(padded).zip(rows) {
            all.give_initial(d, b, &carried[..hidden]);
        }
    }
}
