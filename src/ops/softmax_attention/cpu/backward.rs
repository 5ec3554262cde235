//! Backward in tiles: scores are computed again from q, k and lse.
//!
//! A task takes a chunk of one key/value head's keys and a chunk of queries. In round r, chunk j of the keys meets chunk
//! j + r (modulo their number) of the queries: no two tasks of a round write the same rows, and every row of dq, dk
//! and dv is summed in an order that the sizes alone decide. So five products suffice, without partial results in
//! memory, and the bits do not depend on the number of threads.

use super::features::{Adjust, Area, Room, Sight};
use super::tiles::{KEYS, QUERIES, TASK, Tile, add_seen_to_keys, add_seen_to_queries, finite, lanes, transpose, whole};
use super::{Gradients, Problem, Saved, dot};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::scratch::with_scratch;
use crate::cpu::{Mut, Real};
use crate::op::Gradient;
use rayon::prelude::*;
use std::ops::Range;

/// Tasks that a round should have, for machines with many cores.
const TASKS: usize = 64;
/// Fewest queries or keys of a chunk.
const CHUNK: usize = 256;
/// Keys whose gradients a task sums in its own scratch before it adds them to the result.
const BAND: usize = 256;

/// Writes the gradients.
pub fn backward<R: Real>(p: &Problem<R>, from: &Saved<R>, to: &Gradients<R>) {
    let s = p.sizes;
    let heads = s.batch * s.kv_heads;
    let chunks = TASKS.div_ceil(heads.max(1)).min(s.queries.min(s.keys).div_ceil(CHUNK)).max(1);
    let part = |n: usize, tile: usize, i: usize| {
        let size = n.div_ceil(chunks).next_multiple_of(tile);
        (i * size).min(n)..((i + 1) * size).min(n)
    };
    let work = s.group() * s.queries.div_ceil(chunks) * s.keys.div_ceil(chunks) * (s.key_dim + s.value_dim);
    for round in 0..chunks {
        let run = |task: usize| {
            let (head, j) = (task / chunks, task % chunks);
            let (b, kv) = (head / s.kv_heads, head % s.kv_heads);
            let queries = part(s.queries, QUERIES, (j + round) % chunks);
            let keys = part(s.keys, KEYS, j);
            if round == 0 {
                // Every row of every gradient belongs to one task of the round.
                (kv * s.group()..(kv + 1) * s.group()).for_each(|h| clear(&to.dq, (b, h), queries.clone()));
                clear(&to.dk, (b, kv), keys.clone());
                clear(&to.dv, (b, kv), keys.clone());
            }
            for start in keys.clone().step_by(BAND) {
                band(p, from, to, (b, kv), queries.clone(), start..keys.end.min(start + BAND));
            }
        };
        (0..heads * chunks).into_par_iter().with_min_len(TASK.div_ceil(work.max(1))).for_each(run);
    }
}

/// One band of keys against a chunk of the queries of all heads of its group.
fn band<R: Real>(
    p: &Problem<R>,
    from: &Saved<R>,
    to: &Gradients<R>,
    (b, kv): (usize, usize),
    queries: Range<usize>,
    keys: Range<usize>,
) {
    let s = p.sizes;
    if queries.is_empty() || p.range(b, queries.end - 1).end <= keys.start {
        return;
    }
    let lanes = lanes::<R>();
    let (dk, dv) = (s.key_dim.next_multiple_of(lanes), s.value_dim.next_multiple_of(lanes));
    let room = if p.features.is_some() { KEYS * QUERIES } else { 0 };
    let sizes = [
        s.key_dim * QUERIES,
        s.value_dim * QUERIES,
        KEYS * QUERIES,
        KEYS * QUERIES,
        QUERIES * dk,
        QUERIES * dv,
        KEYS * dk,
        QUERIES * dk,
        BAND * dk,
        BAND * dv,
        QUERIES,
        QUERIES,
        room,
        room,
        room,
    ];
    with_scratch(sizes, |scratch| {
        let [q_t, do_t, probs, ds, q_copy, do_copy, k_copy, dq, dk_sum, dv_sum, lse, delta, seen, spare, slope] =
            scratch;
        dk_sum[..keys.len() * dk].fill(R::ZERO);
        dv_sum[..keys.len() * dv].fill(R::ZERO);
        let (k, v) = (from.k.head(b, kv), from.v.head(b, kv));
        let (k, v) = ((&k.0[keys.start * k.1..], k.1), (&v.0[keys.start * v.1..], v.1));
        for h in kv * s.group()..(kv + 1) * s.group() {
            for t in queries.clone().step_by(QUERIES) {
                let n = QUERIES.min(queries.end - t);
                let width = n.next_multiple_of(lanes);
                let first = p.range(b, t).start.max(keys.start);
                let seen_keys = first..p.range(b, t + n - 1).end.min(keys.end);
                if seen_keys.is_empty() {
                    continue;
                }
                let at = Lanes { head: (b, h), queries: (t, n), width };
                at.load(p, from, Loaded { q_t, do_t, lse, delta });
                let q = from.q.head(b, h);
                let q = (&q.0[t * q.1..], q.1);
                let d_rows = match &from.d_out {
                    Some(d_out) => {
                        let head = d_out.head(b, h);
                        whole((&head.0[t * head.1..], head.1), n, s.value_dim, dv, do_copy)
                    }
                    None => {
                        do_copy.fill(R::ZERO);
                        (&*do_copy, dv)
                    }
                };
                let q_rows = whole(q, n, s.key_dim, dk, q_copy);
                dq.fill(R::ZERO);
                vectorise(Rows {
                    p,
                    k,
                    v,
                    q: q_rows,
                    d_out: d_rows,
                    head: (b, h),
                    queries: (t, n),
                    band: keys.start,
                    keys: seen_keys,
                    width,
                    columns: (dk, dv),
                    q_t,
                    do_t,
                    lse,
                    delta,
                    probs,
                    ds,
                    k_copy,
                    dq,
                    dk: dk_sum,
                    dv: dv_sum,
                    room: Room { seen, spare, slope },
                    wanted: (to.dq.is_some(), to.dk.is_some(), to.dv.is_some()),
                });
                add_rows(&to.dq, (b, h), t, n, dq, dk);
            }
        }
        add_rows(&to.dk, (b, kv), keys.start, keys.len(), dk_sum, dk);
        add_rows(&to.dv, (b, kv), keys.start, keys.len(), dv_sum, dv);
    });
}

/// A tile of queries of one head.
pub struct Lanes {
    /// Batch and query head.
    pub head: (usize, usize),
    /// First query, and how many.
    pub queries: (usize, usize),
    /// Lanes: queries, rounded up to whole vectors.
    pub width: usize,
}

/// What a tile's queries bring, a lane a query.
pub struct Loaded<'a, R> {
    /// (Dk, width): q times scale.
    pub q_t: &'a mut [R],
    /// (Dv, width): the output gradient times the factor.
    pub do_t: &'a mut [R],
    /// (width): lse. With features it is 0 where no key is visible, so that nothing is NaN there.
    pub lse: &'a mut [R],
    /// (width): the factor times D − dlse.
    pub delta: &'a mut [R],
}

impl Lanes {
    /// Fills them. The factor is the scale, so that dS comes out with it, where nothing stands between scale·q·k and
    /// the score; with features it is 1, since a bias wants dS alone.
    pub fn load<R: Real>(&self, p: &Problem<R>, from: &Saved<R>, to: Loaded<R>) {
        let Lanes { head: (b, h), queries: (t, n), width } = *self;
        let (s, scale) = (p.sizes, R::from_f64(p.scale));
        let factor = if p.features.is_some() { R::ONE } else { scale };
        let q = from.q.head(b, h);
        transpose((&q.0[t * q.1..], q.1), n, s.key_dim, scale, to.q_t, width);
        match &from.d_out {
            Some(d_out) => {
                let head = d_out.head(b, h);
                transpose((&head.0[t * head.1..], head.1), n, s.value_dim, factor, to.do_t, width);
            }
            None => to.do_t.fill(R::ZERO),
        }
        to.lse.fill(R::ZERO);
        to.delta.fill(R::ZERO);
        for i in 0..n {
            let row = (b * s.heads + h) * s.queries + t + i;
            to.lse[i] = from.lse[row];
            if p.features.is_some() && to.lse[i] == R::NEG_INFINITY {
                to.lse[i] = R::ZERO;
            }
            let d = from.d_out.map_or(R::ZERO, |d| dot(d.row(&[b, h, t + i]), from.out.row(&[b, h, t + i])));
            to.delta[i] = factor * (d - from.d_lse.map_or(R::ZERO, |d| d[row]));
        }
    }
}

/// Sets rows of a gradient that holds nothing yet to 0.
fn clear<R: Real>(to: &Option<Gradient<Mut<R>>>, (b, h): (usize, usize), rows: Range<usize>) {
    if let Some(to) = to.as_ref().filter(|to| !to.accumulate) {
        // SAFETY: within a round, each row belongs to one task.
        rows.for_each(|row| unsafe { to.to.row(&[b, h, row]) }.fill(R::ZERO));
    }
}

/// Adds `n` rows of a tile to a gradient's rows from `first` on.
fn add_rows<R: Real>(
    to: &Option<Gradient<Mut<R>>>,
    (b, h): (usize, usize),
    first: usize,
    n: usize,
    tile: &[R],
    columns: usize,
) {
    let Some(to) = to else { return };
    for (i, row) in tile.chunks_exact(columns).take(n).enumerate() {
        // SAFETY: within a round, each row belongs to one task.
        let to = unsafe { to.to.row(&[b, h, first + i]) };
        to.iter_mut().zip(row).for_each(|(to, &x)| *to += x);
    }
}

/// A tile of queries against the keys of a band that they see.
struct Rows<'a, R> {
    p: &'a Problem<'a, R>,
    /// Keys and values from the band's first on, and the distance of their rows.
    k: (&'a [R], usize),
    v: (&'a [R], usize),
    /// Queries and output gradients in rows of whole vectors.
    q: (&'a [R], usize),
    d_out: (&'a [R], usize),
    /// Batch and query head.
    head: (usize, usize),
    /// The first query, and how many.
    queries: (usize, usize),
    /// The band's first key, and the keys to visit.
    band: usize,
    keys: Range<usize>,
    width: usize,
    /// Dk and Dv, rounded up to whole vectors.
    columns: (usize, usize),
    /// (Dk, width): q, transposed, times scale.
    q_t: &'a [R],
    /// (Dv, width): the output gradient, transposed, times scale or, with features, 1.
    do_t: &'a [R],
    /// (width): lse, and as many times D − dlse.
    lse: &'a [R],
    delta: &'a [R],
    /// (keys of a tile, width): P, and scale·dS.
    probs: &'a mut [R],
    ds: &'a mut [R],
    k_copy: &'a mut [R],
    /// (queries, columns), (keys of the band, columns): what has been summed of the gradients.
    dq: &'a mut [R],
    dk: &'a mut [R],
    dv: &'a mut [R],
    /// For the features.
    room: Room<'a, R>,
    wanted: (bool, bool, bool),
}

impl<R: Real> Kernel<R> for Rows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Rows { p, k, v, q, d_out, head, queries, band, keys, width, columns, q_t, do_t, lse, delta, .. } = self;
        let Rows { probs, ds, k_copy, dq, dk, dv, mut room, wanted, .. } = self;
        let (key_dim, value_dim) = (p.sizes.key_dim, p.sizes.value_dim);
        for first in keys.clone().step_by(KEYS) {
            let n = KEYS.min(keys.end - first);
            let start = first - band;
            let tile = Tile::new(p, queries, (first, n), width);
            let (k, v) = ((&k.0[start * k.1..], k.1), (&v.0[start * v.1..], v.1));
            tile.scores(s, k, key_dim, q_t, probs);
            let area = Area { head, queries, keys: (first, n), width };
            let mut sight = Sight::Everything;
            if p.features.is_some() {
                sight = s.call(Adjust { p, area, scores: probs, room: &mut room });
                if sight == Sight::Nothing {
                    continue;
                }
            }
            tile.scores(s, v, value_dim, do_t, ds);
            if p.features.is_some() {
                let weights = Weights { probs, ds, lse, delta };
                s.call(Differentiate { p, area, sight, weights, room: &mut room });
                let scale = R::from_f64(p.scale);
                if p.features.is_some_and(|f| f.softcap.is_some()) {
                    ds[..n * width].iter_mut().zip(&*room.slope).for_each(|(ds, &slope)| *ds = *ds * (slope * scale));
                } else {
                    ds[..n * width].iter_mut().for_each(|ds| *ds = *ds * scale);
                }
            } else {
                for lane in (0..width).step_by(S::LANES) {
                    differentiate(s, &tile, lane, probs, ds, s.load(&lse[lane..]), s.load(&delta[lane..]));
                }
            }
            let cut = tile.is_cut() || sight == Sight::Something;
            let exact = cut
                && !(finite(s, k, n, key_dim)
                    && finite(s, q, queries.1, columns.0)
                    && finite(s, d_out, queries.1, columns.1));
            let (dv, dk) = (&mut dv[start * columns.1..], &mut dk[start * columns.0..]);
            if exact && sight == Sight::Something {
                let (probs, ds) = ((&*probs, &*room.seen, width), (&*ds, &*room.seen, width));
                if wanted.2 {
                    add_seen_to_keys(probs, d_out, (queries.1, n, value_dim), dv, columns.1);
                }
                if wanted.1 {
                    add_seen_to_keys(ds, q, (queries.1, n, key_dim), dk, columns.0);
                }
                if wanted.0 {
                    add_seen_to_queries(ds, k, (queries.1, n, key_dim), dq, columns.0);
                }
                continue;
            }
            if wanted.2 {
                tile.add_to_keys(s, probs, d_out, dv, columns.1, exact);
            }
            if wanted.1 {
                tile.add_to_keys(s, ds, q, dk, columns.0, exact);
            }
            if wanted.0 {
                let k = whole(k, n, key_dim, columns.0, k_copy);
                tile.add_to_queries(s, ds, k, dq, columns.0, exact);
            }
        }
    }
}

/// A tile's scores and dO·vᵀ, with lse and D − dlse of its queries.
pub struct Weights<'a, R> {
    /// (keys, width): scores, which become P∘Z.
    pub probs: &'a mut [R],
    /// (keys, width): dO·vᵀ, which becomes dS.
    pub ds: &'a mut [R],
    /// (width).
    pub lse: &'a [R],
    /// (width).
    pub delta: &'a [R],
}

/// With features: P∘Z and dS = P∘(Z∘(dO·vᵀ) − D + dlse) of a tile; 0 where hidden.
pub struct Differentiate<'a, 'r, R> {
    /// The problem.
    pub p: &'a Problem<'a, R>,
    /// Where the tile lies.
    pub area: Area,
    /// What of it is visible; something is.
    pub sight: Sight,
    /// In and out.
    pub weights: Weights<'a, R>,
    /// As [`Adjust`] left it.
    pub room: &'a mut Room<'r, R>,
}

impl<R: Real> Kernel<R> for Differentiate<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let Differentiate { p, area, sight, weights: Weights { probs, ds, lse, delta }, room } = self;
        let kept = p.kept_in(area, room.spare);
        let (zero, keys, width) = (s.splat(R::ZERO), area.keys.1, area.width);
        for key in 0..keys {
            for lane in (0..width).step_by(S::LANES) {
                let at = key * width + lane;
                let e = s.exp_small(s.load(&probs[at..]) - s.load(&lse[lane..]));
                let (mut prob, mut d) = (e, s.load(&ds[at..]));
                if let Some(kept) = kept {
                    let kept = s.load(&kept[at..]);
                    (prob, d) = (e * kept, d * kept);
                }
                let mut de = e * (d - s.load(&delta[lane..]));
                if sight != Sight::Everything {
                    let seen = s.load(&room.seen[at..]);
                    (prob, de) = (s.if_less(zero, seen, prob, zero), s.if_less(zero, seen, de, zero));
                }
                s.store(prob, &mut probs[at..]);
                s.store(de, &mut ds[at..]);
            }
        }
    }
}

/// For one vector of queries: P from the scores, and scale·dS from scale·dO·vᵀ; 0 where invisible.
#[inline(always)]
fn differentiate<R: Real, S: Simd<R>>(
    s: S,
    tile: &Tile,
    lane: usize,
    probs: &mut [R],
    ds: &mut [R],
    lse: S::V,
    delta: S::V,
) {
    let zero = s.splat(R::ZERO);
    let (all, some) = (tile.visible(lane), tile.visible(lane + S::LANES - 1));
    // No closure for the common part: it would be compiled without the instruction set.
    for key in 0..some {
        let at = key * tile.width + lane;
        let (x, d) = (&mut probs[at..], &mut ds[at..]);
        // lse is taken off before the factor: rounding the product of a large score would cost its digits.
        let mut e = s.exp_small(s.load(x) - lse);
        let mut de = e * (s.load(d) - delta);
        if key >= all {
            let first = tile.first_query(key) - lane;
            (e, de) = (s.lanes_after(first, e, zero), s.lanes_after(first, de, zero));
        }
        s.store(e, x);
        s.store(de, d);
    }
    for key in some..tile.keys {
        let at = key * tile.width + lane;
        s.store(zero, &mut probs[at..]);
        s.store(zero, &mut ds[at..]);
    }
}
