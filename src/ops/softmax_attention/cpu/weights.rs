//! The softmax weights, where someone wants to look at them: again from q, k and lse, a tile at a time.

use super::Problem;
use super::features::{Adjust, Area, Room, Sight};
use super::tiles::{KEYS, QUERIES, TASK, Tile, lanes, transpose};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::scratch::with_scratch;
use crate::cpu::{Real, Ref};
use rayon::prelude::*;

/// (B,H,T,S), in parallel over tiles of queries.
pub fn weights<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, lse: &[R], weights: &mut [R]) {
    let s = p.sizes;
    if weights.is_empty() {
        return;
    }
    let tiles = s.queries.div_ceil(QUERIES);
    let work = QUERIES.min(s.queries) * s.keys * s.key_dim;
    // A head's tiles, the last of which may be shorter.
    let rows = weights.par_chunks_mut(s.queries * s.keys).flat_map(|head| head.par_chunks_mut(QUERIES * s.keys));
    let rows: Vec<&mut [R]> = rows.collect();
    rows.into_par_iter().enumerate().with_min_len(TASK.div_ceil(work.max(1))).for_each(|(task, rows)| {
        let (head, t) = (task / tiles, task % tiles * QUERIES);
        let (b, h) = (head / s.heads, head % s.heads);
        let queries = rows.len() / s.keys;
        let width = queries.next_multiple_of(lanes::<R>());
        let tile = KEYS * width;
        with_scratch([s.key_dim * width, tile, tile, tile, width], |[q_t, scores, seen, spare, lanes]| {
            let (q, q_row) = q.head(b, h);
            transpose((&q[t * q_row..], q_row), queries, s.key_dim, R::from_f64(p.scale), q_t, width);
            lanes.fill(R::ZERO);
            lanes[..queries].copy_from_slice(&lse[head * s.queries + t..][..queries]);
            rows.fill(R::ZERO);
            let k = k.head(b, h / s.group());
            for start in (p.range(b, t).start..p.range(b, t + queries - 1).end).step_by(KEYS) {
                let keys = KEYS.min(p.range(b, t + queries - 1).end - start);
                let area = Area { head: (b, h), queries: (t, queries), keys: (start, keys), width };
                let room = Room { seen, spare, slope: &mut [] };
                vectorise(Weights { p, area, k: (&k.0[start * k.1..], k.1), q_t, lse: lanes, scores, room });
                for (i, row) in rows.chunks_exact_mut(s.keys).enumerate() {
                    let to = row[start..start + keys].iter_mut().enumerate();
                    to.for_each(|(key, to)| *to = scores[key * width + i]);
                }
            }
        });
    });
}

/// A tile of them.
struct Weights<'a, R> {
    p: &'a Problem<'a, R>,
    area: Area,
    /// Keys from the tile's first on, and the distance of their rows.
    k: (&'a [R], usize),
    /// (Dk, width): q, transposed, times scale.
    q_t: &'a [R],
    /// (width).
    lse: &'a [R],
    /// (keys, width): becomes the weights.
    scores: &'a mut [R],
    room: Room<'a, R>,
}

impl<R: Real> Kernel<R> for Weights<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Weights { p, area, k, q_t, lse, scores, mut room } = self;
        let Area { queries, keys: (first, keys), width, .. } = area;
        Tile::new(p, queries, (first, keys), width).scores(s, k, p.sizes.key_dim, q_t, scores);
        let sight = s.call(Adjust { p, area, scores, room: &mut room });
        let zero = s.splat(R::ZERO);
        for key in 0..keys {
            for lane in (0..width).step_by(S::LANES) {
                let x = &mut scores[key * width + lane..];
                let mut weight = s.exp_small(s.load(x) - s.load(&lse[lane..]));
                if sight != Sight::Everything {
                    // Where nothing is seen, lse is −∞ and the weight NaN.
                    let seen = if sight == Sight::Nothing { zero } else { s.load(&room.seen[key * width + lane..]) };
                    weight = s.if_less(zero, seen, weight, zero);
                }
                s.store(weight, x);
            }
        }
    }
}
