//! Forward in tiles: softmax online, so that a score is used while it is in cache and never stored in memory.

use super::Problem;
use super::features::{Adjust, Area, Room, Sight};
use super::tiles::{KEYS, QUERIES, TASK, Tile, add_seen_to_queries, finite, lanes, transpose, whole};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::scratch::with_scratch;
use crate::cpu::{Mut, Real, Ref};
use rayon::prelude::*;
use std::ops::Range;

/// out and lse, in parallel over tiles of queries.
pub fn forward<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, v: Ref<R>, out: &Mut<R>, lse: &mut [R]) {
    let s = p.sizes;
    let (shape, strides) = ([s.batch, s.heads, s.queries, 1], [s.heads * s.queries, s.queries, 1, 1]);
    let lse = &Mut::new(lse, &shape, &strides);
    let tiles = s.queries.div_ceil(QUERIES);
    let lanes = lanes::<R>();
    let columns = s.value_dim.next_multiple_of(lanes);
    let run = |task: usize| {
        // The last tiles first: under a causal mask they take longest.
        let (head, tile) = (task / tiles, tiles - 1 - task % tiles);
        let (b, h, t) = (head / s.heads, head % s.heads, tile * QUERIES);
        let queries = QUERIES.min(s.queries - t);
        let width = queries.next_multiple_of(lanes);
        let room = if p.features.is_some() { KEYS * width } else { 0 };
        let sizes = [
            s.key_dim * width,
            KEYS * width,
            queries * columns,
            KEYS * columns,
            width,
            width,
            width,
            room,
            room,
            width,
        ];
        with_scratch(sizes, |[q_t, scores, sums, v_copy, max, total, factor, seen, spare, any]| {
            let keys = p.range(b, t).start..p.range(b, t + queries - 1).end;
            let (q, q_row) = q.head(b, h);
            transpose((&q[t * q_row..], q_row), queries, s.key_dim, R::from_f64(p.scale), q_t, width);
            let (k, v) = (k.head(b, h / s.group()), v.head(b, h / s.group()));
            let (max, total, sums, any) = (&mut *max, &mut *total, &mut *sums, &mut *any);
            let room = Room { seen, spare, slope: &mut [] };
            vectorise(Rows {
                p,
                k,
                v,
                head: (b, h),
                t,
                queries,
                width,
                keys,
                columns,
                q_t,
                scores,
                sums,
                v_copy,
                max,
                total,
                factor,
                room,
                any,
            });
            for i in 0..queries {
                // SAFETY: each row belongs to one task.
                let (out, lse) = unsafe { (out.row(&[b, h, t + i]), lse.row(&[b, h, t + i])) };
                let nothing = if p.features.is_some() { any[i] == R::ZERO } else { p.range(b, t + i).is_empty() };
                if nothing {
                    out.fill(R::ZERO);
                    lse[0] = R::NEG_INFINITY;
                    continue;
                }
                let scale = R::ONE / total[i];
                out.iter_mut().zip(&sums[i * columns..]).for_each(|(out, &sum)| *out = sum * scale);
                lse[0] = max[i] + total[i].ln();
            }
        });
    };
    let work = QUERIES.min(s.queries) * s.keys * (s.key_dim + s.value_dim);
    (0..s.batch * s.heads * tiles).into_par_iter().with_min_len(TASK.div_ceil(work.max(1))).for_each(run);
}

/// Some queries of one head against all the keys that they see.
struct Rows<'a, R> {
    p: &'a Problem<'a, R>,
    /// Keys and values of the head, and the distance of their rows.
    k: (&'a [R], usize),
    v: (&'a [R], usize),
    /// Batch and query head.
    head: (usize, usize),
    t: usize,
    queries: usize,
    width: usize,
    keys: Range<usize>,
    /// Dv, rounded up to whole vectors.
    columns: usize,
    /// (Dk, width): q, transposed, times scale·log₂e.
    q_t: &'a [R],
    /// (keys of a tile, width).
    scores: &'a mut [R],
    /// (queries, columns): what has been summed of 2ˢᶜᵒʳᵉ⁻ᵐᵃˣ·v …
    sums: &'a mut [R],
    v_copy: &'a mut [R],
    /// (width): … with the largest score so far, and the sum of 2ˢᶜᵒʳᵉ⁻ᵐᵃˣ.
    max: &'a mut [R],
    total: &'a mut [R],
    /// (width): by what a tile's new maxima shrink the sums.
    factor: &'a mut [R],
    /// For the features, as `any` (width): whether a query has seen a key, 0 or 1.
    room: Room<'a, R>,
    any: &'a mut [R],
}

impl<R: Real> Kernel<R> for Rows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Rows { p, k, v, head, t, queries, width, keys, columns, q_t, scores, sums, v_copy, .. } = self;
        let Rows { max, total, factor, mut room, any, .. } = self;
        sums.fill(R::ZERO);
        max.fill(R::NEG_INFINITY);
        total.fill(R::ZERO);
        any.fill(R::ZERO);
        for start in keys.clone().step_by(KEYS) {
            let n = KEYS.min(keys.end - start);
            let tile = Tile::new(p, (t, queries), (start, n), width);
            tile.scores(s, (&k.0[start * k.1..], k.1), p.sizes.key_dim, q_t, scores);
            let area = Area { head, queries: (t, queries), keys: (start, n), width };
            let mut sight = Sight::Everything;
            if p.features.is_some() {
                sight = s.call(Adjust { p, area, scores, room: &mut room });
                match sight {
                    Sight::Nothing => continue,
                    Sight::Something => mark(any, room.seen, n),
                    Sight::Everything => any.fill(R::ONE),
                }
            }
            let mut changed = false;
            for lane in (0..width).step_by(S::LANES) {
                changed |=
                    softmax_step(s, &tile, lane, scores, (&mut max[lane..], &mut total[lane..], &mut factor[lane..]));
            }
            if changed {
                for (row, &factor) in sums.chunks_exact_mut(columns).zip(factor.iter()) {
                    let factor = s.splat(factor);
                    for x in row.chunks_exact_mut(S::LANES) {
                        s.store(s.load(x) * factor, x);
                    }
                }
            }
            if p.features.is_some()
                && let Some(kept) = p.kept_in(area, room.spare)
            {
                scores.iter_mut().zip(kept).for_each(|(weight, &kept)| *weight = *weight * kept);
            }
            let v_tile = (&v.0[start * v.1..], v.1);
            if sight == Sight::Something && !finite(s, v_tile, n, p.sizes.value_dim) {
                add_seen_to_queries((scores, room.seen, width), v_tile, (queries, n, p.sizes.value_dim), sums, columns);
                continue;
            }
            let all = tile.visible(0);
            let exact = tile.is_cut() && !finite(s, (&v_tile.0[all * v.1..], v.1), n - all, p.sizes.value_dim);
            let v_tile = whole(v_tile, n, p.sizes.value_dim, columns, v_copy);
            tile.add_to_queries(s, scores, v_tile, sums, columns, exact);
        }
    }
}

/// Notes the queries that see a key of the tile.
fn mark<R: Real>(any: &mut [R], seen: &[R], keys: usize) {
    for row in seen.chunks_exact(any.len()).take(keys) {
        any.iter_mut().zip(row).for_each(|(any, &seen)| *any = if seen == R::ZERO { *any } else { seen });
    }
}

/// For one vector of queries: scores become eˢᶜᵒʳᵉ⁻ᵐᵃˣ, 0 where invisible; says whether a maximum has changed. The
/// maximum is taken off before the factor log₂e: rounding the product of a large score would cost its digits.
#[inline(always)]
fn softmax_step<R: Real, S: Simd<R>>(
    s: S,
    tile: &Tile,
    lane: usize,
    scores: &mut [R],
    (max, total, factor): (&mut [R], &mut [R], &mut [R]),
) -> bool {
    let width = tile.width;
    let (all, some) = (tile.visible(lane), tile.visible(lane + S::LANES - 1));
    for key in all..some {
        let x = &mut scores[key * width + lane..];
        s.store(s.lanes_after(tile.first_query(key) - lane, s.load(x), s.splat(R::NEG_INFINITY)), x);
    }
    for key in some..tile.keys {
        s.store(s.splat(R::ZERO), &mut scores[key * width + lane..]);
    }
    let before = s.load(max);
    // Where nothing is visible yet, a finite maximum keeps −∞ − max from being NaN. The order keeps NaN out of the
    // maximum; it comes back through the exponential.
    let mut now = s.max(before, s.splat(R::LOWEST));
    // Four at a time, as one would wait for the other.
    let mut parts = [now; 4];
    for key in (0..some / 4 * 4).step_by(4) {
        for i in 0..4 {
            parts[i] = s.max(s.load(&scores[(key + i) * width + lane..]), parts[i]);
        }
    }
    for key in some / 4 * 4..some {
        now = s.max(s.load(&scores[key * width + lane..]), now);
    }
    now = s.max(s.max(parts[0], parts[1]), s.max(s.max(parts[2], parts[3]), now));
    let mut sums = [s.splat(R::ZERO); 2];
    for key in (0..some / 2 * 2).step_by(2) {
        for i in 0..2 {
            let x = &mut scores[(key + i) * width + lane..];
            let e = s.exp_small(s.load(x) - now);
            s.store(e, x);
            sums[i] = sums[i] + e;
        }
    }
    let mut sum = sums[0] + sums[1];
    if some % 2 > 0 {
        let x = &mut scores[(some - 1) * width + lane..];
        let e = s.exp_small(s.load(x) - now);
        s.store(e, x);
        sum = sum + e;
    }
    let shrink = s.exp_small(before - now);
    s.store(now, max);
    s.store(s.mul_add(s.load(total), shrink, sum), total);
    s.store(shrink, factor);
    !s.all_equal(shrink, s.splat(R::ONE))
}
