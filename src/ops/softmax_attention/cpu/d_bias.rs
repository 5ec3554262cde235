//! The gradient of a bias: dS, summed over the axes that the bias is broadcast along.
//!
//! A pass of its own, over tiles of the bias: a tile's task visits the batches, heads and queries that it is added
//! to one after another, so no two tasks write the same element, the order of the sum does not depend on the
//! threads, and nothing of the size of all heads' scores is in memory. It computes scores and dO·vᵀ again: two products more
//! beside backward's five.

use super::backward::{Differentiate, Lanes, Loaded, Weights};
use super::features::{Adjust, Area, Room, Sight};
use super::tiles::{KEYS, QUERIES, TASK, Tile, lanes};
use super::{Problem, Saved};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::scratch::with_scratch;
use crate::cpu::{Mut, Real};
use crate::op::Gradient;
use rayon::prelude::*;
use std::ops::Range;

/// Writes the bias's gradient (B or 1, H or 1, T or 1, S).
pub fn d_bias<R: Real>(p: &Problem<R>, from: &Saved<R>, to: &Gradient<Mut<R>>) {
    let s = p.sizes;
    let &[batches, heads, rows, keys] = to.to.shape else { return };
    let (tiles, key_tiles) = (rows.div_ceil(QUERIES), keys.div_ceil(KEYS));
    let of = |n: usize, full: usize, i: usize| if n == 1 { 0..full } else { i..i + 1 };
    let run = |task: usize| {
        let (rest, key_tile) = (task / key_tiles, task % key_tiles);
        let (head, row_tile) = (rest / tiles, rest % tiles);
        let (bias_b, bias_h, row) = (head / heads, head % heads, row_tile * QUERIES);
        let first = key_tile * KEYS;
        let area = Sum {
            batches: of(batches, s.batch, bias_b),
            heads: of(heads, s.heads, bias_h),
            // A single row of the bias is all queries'.
            queries: if rows == 1 { 0..s.queries } else { row..rows.min(row + QUERIES) },
            keys: first..keys.min(first + KEYS),
        };
        let sum = area.of(p, from, rows == 1);
        for (i, sum) in sum.chunks_exact(area.keys.len()).enumerate() {
            // SAFETY: each element belongs to one task; the row's other keys are left alone.
            let to_row = unsafe { to.to.part(&[bias_b, bias_h, row + i], area.keys.clone()) };
            if to.accumulate {
                to_row.iter_mut().zip(sum).for_each(|(to, &x)| *to += x);
            } else {
                to_row.copy_from_slice(sum);
            }
        }
    };
    let summed = (s.batch * s.heads * s.queries) / (batches * heads * tiles).max(1);
    let work = summed * KEYS.min(s.keys) * (s.key_dim + s.value_dim);
    (0..batches * heads * tiles * key_tiles).into_par_iter().with_min_len(TASK.div_ceil(work.max(1))).for_each(run);
}

/// What one tile of the bias is added to.
struct Sum {
    batches: Range<usize>,
    heads: Range<usize>,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Sum {
    /// dS summed over batches and heads, and over queries if asked to: (queries or 1, keys).
    fn of<R: Real>(&self, p: &Problem<R>, from: &Saved<R>, over_queries: bool) -> Vec<R> {
        let s = p.sizes;
        let keys = self.keys.len();
        let mut sum = vec![R::ZERO; if over_queries { keys } else { self.queries.len() * keys }];
        let tile = KEYS * QUERIES;
        let sizes = [s.key_dim * QUERIES, s.value_dim * QUERIES, tile, tile, tile, tile, QUERIES, QUERIES];
        with_scratch(sizes, |[q_t, do_t, probs, ds, seen, spare, lse, delta]| {
            for (b, h) in self.batches.clone().flat_map(|b| self.heads.clone().map(move |h| (b, h))) {
                let (k, v) = (from.k.head(b, h / s.group()), from.v.head(b, h / s.group()));
                for t in self.queries.clone().step_by(QUERIES) {
                    let n = QUERIES.min(self.queries.end - t);
                    let width = n.next_multiple_of(lanes::<R>());
                    let (start, end) = (p.range(b, t).start, p.range(b, t + n - 1).end);
                    if start >= self.keys.end || end <= self.keys.start {
                        continue;
                    }
                    let at = Lanes { head: (b, h), queries: (t, n), width };
                    at.load(p, from, Loaded { q_t, do_t, lse, delta });
                    let shown = vectorise(Scores {
                        p,
                        area: Area { head: (b, h), queries: (t, n), keys: (self.keys.start, keys), width },
                        k: (&k.0[self.keys.start * k.1..], k.1),
                        v: (&v.0[self.keys.start * v.1..], v.1),
                        q_t,
                        do_t,
                        weights: Weights { probs, ds, lse, delta },
                        room: Room { seen, spare, slope: &mut [] },
                    });
                    if !shown {
                        continue;
                    }
                    for (key, row) in ds.chunks_exact(width).take(keys).enumerate() {
                        for (i, &ds) in row[..n].iter().enumerate() {
                            sum[if over_queries { key } else { i * keys + key }] += ds;
                        }
                    }
                }
            }
        });
        sum
    }
}

/// dS of one tile; says whether any of it is visible.
struct Scores<'a, R> {
    p: &'a Problem<'a, R>,
    area: Area,
    /// Keys and values from the tile's first on, and the distance of their rows.
    k: (&'a [R], usize),
    v: (&'a [R], usize),
    q_t: &'a [R],
    do_t: &'a [R],
    weights: Weights<'a, R>,
    room: Room<'a, R>,
}

impl<R: Real> Kernel<R> for Scores<'_, R> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) -> bool {
        let Scores { p, area, k, v, q_t, do_t, weights, mut room } = self;
        let tile = Tile::new(p, area.queries, area.keys, area.width);
        tile.scores(s, k, p.sizes.key_dim, q_t, weights.probs);
        let sight = s.call(Adjust { p, area, scores: &mut *weights.probs, room: &mut room });
        if sight == Sight::Nothing {
            return false;
        }
        tile.scores(s, v, p.sizes.value_dim, do_t, weights.ds);
        s.call(Differentiate { p, area, sight, weights, room: &mut room });
        true
    }
}
