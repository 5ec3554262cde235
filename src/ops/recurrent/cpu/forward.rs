//! Forward through time.

use super::panels::{Groups, Panels, load, store, units};
use super::{Given, Sizes};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::product::Product;
use crate::cpu::scratch::Aligned;
use crate::cpu::tasks::for_tasks;
use crate::cpu::{Mut, Real, Rows};
use crate::ops::recurrent::Recurrence;
use rayon::prelude::*;

/// Forward's tensors.
pub(super) struct Forwards<'a, 'b, R> {
    pub op: &'a Recurrence,
    pub given: &'a Given<'b, R>,
    pub gates: &'a [&'b [R]],
    pub out: &'a Mut<'b, R>,
    pub last: &'a Mut<'b, R>,
    /// (directions,B,T,saved,H), where the cell saves anything.
    pub saved: Option<&'a Mut<'b, R>>,
}

impl<R: Real> Forwards<'_, '_, R> {
    /// The gates of x at a step.
    fn of_x(&self, d: usize, b: usize, t: usize) -> &[R] {
        let s = &self.given.sizes;
        &self.gates[d][(b * s.length + t) * s.columns..][..s.columns]
    }

    pub(super) fn by_definition(&self) {
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
                let a = self.of_x(d, b, t);
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

    pub(super) fn fast(&self) {
        let given = self.given;
        let (gates, hidden) = (self.op.cell.gates(), given.sizes.hidden);
        let packed: Vec<Panels<R>> =
            given.weight.par_iter().map(|weight| Panels::of_gates(weight, gates, hidden)).collect();
        let groups = Groups::of(&given.lengths, self.op.directions);
        for_tasks(
            self.op.directions * groups.count(),
            || (),
            |(), task| {
                let (d, rows) = (task % self.op.directions, groups.rows(task / self.op.directions));
                vectorise(Task { all: self, d, rows, weight: &packed[d] });
            },
        );
    }
}

/// One direction of a group of sequences.
struct Task<'a, 'b, 'c, R> {
    all: &'a Forwards<'b, 'c, R>,
    d: usize,
    rows: &'a [usize],
    weight: &'a Panels<R>,
}

impl<R: Real> Kernel<R> for Task<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Task { all, d, rows, weight, .. } = self;
        let (given, cell, hidden) = (all.given, all.op.cell, all.given.sizes.hidden);
        let (gates, width) = (cell.gates(), weight.width);
        let padded = hidden.next_multiple_of(S::LANES);
        let mut bias = Aligned::zeros(weight.count() * width);
        for (bias, units) in bias.chunks_exact_mut(width).zip(units(s, hidden)) {
            for (g, all) in (0..gates).zip(given.bias[d].into_iter().flat_map(|all| all.chunks_exact(hidden))) {
                bias[g * S::LANES..][..units.len()].copy_from_slice(&all[units.clone()]);
            }
        }
        let mut h = Aligned::zeros(rows.len() * padded);
        // The products of each panel: a row for each sequence.
        let mut products = Aligned::zeros(weight.count() * rows.len() * width);
        for (h, &b) in h.chunks_exact_mut(padded).zip(rows) {
            given.initial(d, b).into_iter().for_each(|first| h[..hidden].copy_from_slice(first));
        }
        let mut running = rows.len();
        for step in 0..given.lengths[rows[0]] {
            running = rows[..running].partition_point(|&b| given.lengths[b] > step);
            for (panel, c) in weight.iter().zip(products.chunks_exact_mut(rows.len() * width)) {
                s.call(Product {
                    m: running,
                    k: hidden,
                    columns: width,
                    a: &h,
                    a_strides: (padded, 1),
                    b: panel,
                    b_row: width,
                    c: Rows::of(c, width, width),
                    add: false,
                });
            }
            for (i, &b) in rows[..running].iter().enumerate() {
                let t = given.position(d, b, step);
                let (a, h) = (all.of_x(d, b, t), &mut h[i * padded..][..padded]);
                // SAFETY: a sequence and a direction belong to one task, which takes one step at a time.
                let out = unsafe { all.out.part(&[b, t], given.columns(d)) };
                let mut saved: [&mut [R]; 4] = std::array::from_fn(|k| match all.saved {
                    // SAFETY: as above.
                    Some(saved) => unsafe { saved.row(&[d, b, t, k]) },
                    None => &mut [],
                });
                for (p, units) in units(s, hidden).enumerate() {
                    let c = &products[(p * rows.len() + i) * width..][..width];
                    let (mut of_x, mut of_h) = ([s.splat(R::ZERO); 3], [s.splat(R::ZERO); 3]);
                    for g in 0..gates {
                        of_x[g] = load(s, &a[g * hidden..][units.clone()]);
                        of_h[g] = s.load(&c[g * S::LANES..]) + s.load(&bias[p * width + g * S::LANES..]);
                    }
                    let (next, kept) = cell.forward_vector(s, of_x, of_h, s.load(&h[units.start..]));
                    store(s, next, &mut h[units.clone()]);
                    store(s, next, &mut out[units.clone()]);
                    for (kept, saved) in kept.into_iter().zip(&mut saved[..cell.saved()]) {
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
