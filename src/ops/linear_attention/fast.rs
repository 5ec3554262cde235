//! Linear attention on the CPU in tiles of rows: matrix products on φ(q), φ(k), v and the states.
//!
//! What is summed where depends on the shapes only, never on the number of threads, which merely decides the schedule.

use super::FeatureMap;
use super::cpu::{Gradients, Known, Problem, add, add_scaled, put, quotient};
use crate::cpu::{Matrix, Mut, Real, Ref, Threads};
use crate::ops::attention::Sizes;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a tile: of a chunk, where there is a mask.
const ROWS: usize = 128;
/// Tiles that one task sums up.
const TILES: usize = 8;
/// Queries of a chunk whose products with the chunk's keys stop at the last key that they see.
const BAND: usize = 32;

/// Forward; without a mask, `states` keeps S and z of each (B,Hk).
pub(super) fn forward<R: Real>(p: &Problem<R>, out: &Mut<R>, denominators: &Mut<R>, states: &mut [R]) {
    let s = &p.sizes;
    let len = p.state_len();
    if s.causal {
        let chunks = Chunks::of(s);
        let sum_up = |unit: usize, chunk: i64, sum: &mut [R], buffers: &mut Buffers<R>| {
            p.add_keys(unit, chunks.keys(chunk, p.length(p.unit(unit).0)), sum, buffers);
        };
        scan(p, &chunks, false, sum_up, |unit, chunk, state, sum, buffers| {
            let (b, kv_head) = p.unit(unit);
            let keys = chunks.keys(chunk, p.length(b));
            let queries = chunks.queries(chunk);
            p.features(&p.k, b, kv_head, keys.clone(), &mut buffers.keys);
            for h in p.heads(kv_head) {
                p.forward_rows(b, h, queries.clone(), keys.clone(), state, buffers, out, denominators);
            }
            p.add_state(&buffers.keys, p.values(b, kv_head, keys.start), None, keys.len(), sum);
        });
    } else {
        let totals = &mut states[..p.units() * len];
        sum_splits(p, s.keys, totals, |unit, rows, sum, buffers| p.add_keys(unit, rows, sum, buffers));
        for_splits(p, s.queries, |unit, rows, buffers| {
            let (b, kv_head) = p.unit(unit);
            let state = &totals[unit * len..][..len];
            for h in p.heads(kv_head) {
                for rows in tiles(rows.clone()) {
                    p.forward_rows(b, h, rows, 0..0, Some(state), buffers, out, denominators);
                }
            }
        });
    }
}

/// Backward.
pub(super) fn backward<R: Real>(p: &Problem<R>, known: &Known<R>, to: &Gradients<R>) {
    let s = &p.sizes;
    let len = p.state_len();
    if s.causal {
        let chunks = Chunks::of(s);
        let add_keys = |unit: usize, chunk: i64, sum: &mut [R], buffers: &mut Buffers<R>| {
            p.add_keys(unit, chunks.keys(chunk, p.length(p.unit(unit).0)), sum, buffers);
        };
        if to.q.is_some() {
            scan(p, &chunks, false, add_keys, |unit, chunk, state, sum, buffers| {
                let (b, kv_head) = p.unit(unit);
                let keys = chunks.keys(chunk, p.length(b));
                p.features(&p.k, b, kv_head, keys.clone(), &mut buffers.keys);
                for h in p.heads(kv_head) {
                    p.load_queries(known, b, h, chunks.queries(chunk), buffers);
                    p.backward_queries(known, b, h, chunks.queries(chunk), keys.clone(), state, buffers, to);
                }
                p.add_state(&buffers.keys, p.values(b, kv_head, keys.start), None, keys.len(), sum);
            });
        }
        let add_queries = |unit: usize, chunk: i64, sum: &mut [R], buffers: &mut Buffers<R>| {
            let (b, kv_head) = p.unit(unit);
            let queries = chunks.queries(chunk);
            for h in p.heads(kv_head) {
                p.load_queries(known, b, h, queries.clone(), buffers);
                p.divide_queries(queries.len(), buffers);
                p.add_divided_queries(rows_of(&known.d_out, b, h, queries.start), queries.len(), sum, buffers);
            }
        };
        if to.k.is_some() || to.v.is_some() {
            scan(p, &chunks, true, add_queries, |unit, chunk, state, sum, buffers| {
                let (b, kv_head) = p.unit(unit);
                let (keys, queries) = (chunks.keys(chunk, s.keys), chunks.queries(chunk));
                p.begin_keys(unit, keys.clone(), state, buffers);
                for h in p.heads(kv_head) {
                    let d_out = rows_of(&known.d_out, b, h, queries.start);
                    p.load_queries(known, b, h, queries.clone(), buffers);
                    p.divide_queries(queries.len(), buffers);
                    p.add_seen_by(b, kv_head, d_out, queries.clone(), keys.clone(), buffers);
                    p.add_divided_queries(d_out, queries.len(), sum, buffers);
                }
                p.end_keys(unit, keys, buffers, to);
            });
        }
    } else {
        let mut totals = vec![R::ZERO; p.units() * len];
        sum_splits(p, s.queries, &mut totals, |unit, rows, sum, buffers| {
            let (b, kv_head) = p.unit(unit);
            let state = &known.states[unit * len..][..len];
            for h in p.heads(kv_head) {
                p.load_queries(known, b, h, rows.clone(), buffers);
                p.backward_queries(known, b, h, rows.clone(), 0..0, Some(state), buffers, to);
                p.divide_queries(rows.len(), buffers);
                p.add_divided_queries(rows_of(&known.d_out, b, h, rows.start), rows.len(), sum, buffers);
            }
        });
        for_splits(p, s.keys, |unit, rows, buffers| {
            for rows in tiles(rows) {
                p.begin_keys(unit, rows.clone(), Some(&totals[unit * len..][..len]), buffers);
                p.end_keys(unit, rows, buffers, to);
            }
        });
    }
}

/// A thread's tiles.
struct Buffers<R> {
    /// φ(q), rows×Dk.
    queries: Vec<R>,
    /// φ(k), rows×Dk.
    keys: Vec<R>,
    /// 1/d, one a row.
    inverse: Vec<R>,
    /// c, one a row; in forward, d.
    c: Vec<R>,
    /// Weights of a band, or their gradients.
    weights: Vec<R>,
    /// Rows under construction: out or dv (rows×Dv), and dq or dk (rows×Dk).
    wide: [Vec<R>; 2],
    /// The state that a chunk starts from.
    state: Vec<R>,
}

impl<R: Real> Buffers<R> {
    fn new(p: &Problem<R>) -> Self {
        let (dk, dv) = (p.sizes.key_dim, p.sizes.value_dim);
        let zeros = |n| vec![R::ZERO; n];
        Buffers {
            queries: zeros(ROWS * dk),
            keys: zeros(ROWS * dk),
            inverse: zeros(ROWS),
            c: zeros(ROWS),
            weights: zeros(BAND * ROWS),
            wide: [zeros(ROWS * dv), zeros(ROWS * dk)],
            state: zeros(p.state_len()),
        }
    }
}

/// C ← A·B, or C += A·B, on this thread.
fn product<R: Real>(mnk: (usize, usize, usize), a: Matrix<R>, b: Matrix<R>, add: bool, c: &mut [R]) {
    if mnk.0 > 0 && mnk.2 > 0 {
        R::gemm(mnk, R::ONE, a, b, if add { R::ONE } else { R::ZERO }, c, mnk.1, Threads::One);
    } else if !add {
        c[..mnk.0 * mnk.1].fill(R::ZERO);
    }
}

impl<'a, R: Real> Problem<'a, R> {
    /// φ of some rows of one head, one after another.
    fn features(&self, x: &Ref<R>, b: usize, h: usize, rows: Range<usize>, to: &mut [R]) {
        let (data, stride) = x.head(b, h);
        let dim = self.sizes.key_dim;
        let n = rows.len();
        if stride == dim && n > 0 {
            to[..n * dim].copy_from_slice(&data[rows.start * dim..rows.end * dim]);
        } else {
            for (t, to) in rows.zip(to.chunks_exact_mut(dim)) {
                to.copy_from_slice(&data[t * stride..t * stride + dim]);
            }
        }
        map_in_place(self.map, &mut to[..n * dim]);
    }

    /// Rows of v as a matrix in place.
    fn values(&self, b: usize, kv_head: usize, from: usize) -> Matrix<'a, R> {
        rows_of(&self.v, b, kv_head, from)
    }

    /// S += Σ φ(x)yᵀ and z += Σ wφ(x) over rows; w is 1 unless given.
    fn add_state(&self, features: &[R], y: Matrix<R>, w: Option<&[R]>, rows: usize, sum: &mut [R]) {
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let (matrix, vector) = sum.split_at_mut(dk * dv);
        if rows > 0 {
            product((dk, dv, rows), Matrix::new(features, dk).t(), y, true, matrix);
        }
        for (t, features) in features.chunks_exact(dk).take(rows).enumerate() {
            match w {
                None => add(vector, features),
                Some(w) => add_scaled(vector, w[t], features),
            }
        }
    }

    /// Adds visible keys to S and z.
    fn add_keys(&self, unit: usize, rows: Range<usize>, sum: &mut [R], buffers: &mut Buffers<R>) {
        let (b, kv_head) = self.unit(unit);
        let rows = rows.start..rows.end.min(self.length(b)).max(rows.start);
        self.features(&self.k, b, kv_head, rows.clone(), &mut buffers.keys);
        self.add_state(&buffers.keys, self.values(b, kv_head, rows.start), None, rows.len(), sum);
    }

    /// φ(q), 1/d and c of some rows.
    fn load_queries(&self, known: &Known<R>, b: usize, h: usize, rows: Range<usize>, buffers: &mut Buffers<R>) {
        let dv = self.sizes.value_dim;
        self.features(&self.q, b, h, rows.clone(), &mut buffers.queries);
        let ((d_out, d_stride), (out, stride)) = (known.d_out.head(b, h), known.out.head(b, h));
        for ((t, inverse), c) in rows.zip(&mut buffers.inverse).zip(&mut buffers.c) {
            *inverse = quotient(R::ONE, known.denominators[self.query(b, h, t)]);
            *c = -dot(&d_out[t * d_stride..][..dv], &out[t * stride..][..dv]);
        }
    }

    /// From φ(q) to p = φ(q)/d, in place.
    fn divide_queries(&self, rows: usize, buffers: &mut Buffers<R>) {
        let each = buffers.queries.chunks_exact_mut(self.sizes.key_dim).zip(&buffers.inverse);
        each.take(rows).for_each(|(q, &inverse)| q.iter_mut().for_each(|q| *q *= inverse));
    }

    /// Adds the loaded and divided queries to G and y.
    fn add_divided_queries(&self, d_out: Matrix<R>, rows: usize, sum: &mut [R], buffers: &Buffers<R>) {
        self.add_state(&buffers.queries, d_out, Some(&buffers.c), rows, sum);
    }

    /// How many of the chunk's keys query t sees.
    fn seen(&self, b: usize, t: usize, keys: &Range<usize>) -> usize {
        self.sizes.visible(t, self.length(b)).saturating_sub(keys.start).min(keys.len())
    }

    /// Bands of a chunk's queries, as rows of the tile, with the number of keys that the band's last query sees.
    fn bands(&self, b: usize, rows: &Range<usize>, keys: &Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (n, first, keys) = (rows.len(), rows.start, keys.clone());
        (0..n).step_by(BAND).map(move |i| {
            let band = i..(i + BAND).min(n);
            let seen = self.seen(b, first + band.end - 1, &keys);
            (band, seen)
        })
    }

    /// Clears the weights of what a band's queries do not see.
    fn mask(&self, b: usize, first: usize, keys: &Range<usize>, seen: usize, weights: &mut [R]) {
        for (i, w) in weights.chunks_exact_mut(seen).enumerate() {
            w[self.seen(b, first + i, keys)..].fill(R::ZERO);
        }
    }

    /// Outputs of some queries: from the state, and from the chunk's `keys`, whose φ is loaded.
    #[allow(clippy::too_many_arguments)]
    fn forward_rows(
        &self,
        b: usize,
        h: usize,
        rows: Range<usize>,
        keys: Range<usize>,
        state: Option<&[R]>,
        buffers: &mut Buffers<R>,
        out: &Mut<R>,
        denominators: &Mut<R>,
    ) {
        let s = &self.sizes;
        let (dk, dv, n) = (s.key_dim, s.value_dim, rows.len());
        self.features(&self.q, b, h, rows.clone(), &mut buffers.queries);
        let Buffers { queries, keys: features, weights, c: d, wide: [acc, _], .. } = buffers;
        match state {
            Some(state) => {
                product((n, dv, dk), Matrix::new(queries, dk), Matrix::new(state, dv), false, acc);
                let z = &state[dk * dv..];
                queries.chunks_exact(dk).zip(&mut *d).take(n).for_each(|(q, d)| *d = dot(q, z));
            }
            None => {
                acc[..n * dv].fill(R::ZERO);
                d[..n].fill(R::ZERO);
            }
        }
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let (m, w) = (band.len(), &mut weights[..band.len() * seen]);
            let q = Matrix::new(&queries[band.start * dk..], dk);
            product((m, seen, dk), q, Matrix::new(features, dk).t(), false, w);
            self.mask(b, rows.start + band.start, &keys, seen, w);
            let values = self.values(b, h / s.group(), keys.start);
            product((m, dv, seen), Matrix::new(w, seen), values, true, &mut acc[band.start * dv..]);
            w.chunks_exact(seen).zip(&mut d[band]).for_each(|(w, d)| *d += total(w));
        }
        for ((t, acc), &d) in rows.zip(acc.chunks_exact(dv)).zip(&*d) {
            // SAFETY: each task writes its own rows, one at a time.
            let (row, denominator) = unsafe { (out.row(&[b, h, t]), denominators.row(&[b, h, t])) };
            denominator[0] = d;
            row.iter_mut().zip(acc).for_each(|(out, &x)| *out = x / d);
            if d == R::ZERO {
                row.fill(R::ZERO);
            }
        }
    }

    /// dq of the loaded queries.
    #[allow(clippy::too_many_arguments)]
    fn backward_queries(
        &self,
        known: &Known<R>,
        b: usize,
        h: usize,
        rows: Range<usize>,
        keys: Range<usize>,
        state: Option<&[R]>,
        buffers: &mut Buffers<R>,
        to: &Gradients<R>,
    ) {
        let Some(to) = &to.q else { return };
        let s = &self.sizes;
        let (dk, dv, n) = (s.key_dim, s.value_dim, rows.len());
        let Buffers { queries, keys: features, inverse, c, weights, wide: [_, acc], .. } = buffers;
        let d_out = rows_of(&known.d_out, b, h, rows.start);
        match state {
            Some(state) => {
                product((n, dk, dv), d_out, Matrix::new(state, dv).t(), false, acc);
                acc.chunks_exact_mut(dk).zip(&*c).take(n).for_each(|(x, &c)| add_scaled(x, c, &state[dk * dv..]));
            }
            None => acc[..n * dk].fill(R::ZERO),
        }
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let w = &mut weights[..band.len() * seen];
            self.weight_gradients(b, h / s.group(), &band, seen, &keys, d_out, c, w);
            self.mask(b, rows.start + band.start, &keys, seen, w);
            let acc = &mut acc[band.start * dk..];
            product((band.len(), dk, seen), Matrix::new(w, seen), Matrix::new(features, dk), true, acc);
        }
        for (i, t) in rows.enumerate() {
            let (acc, q, inverse) = (&mut acc[i * dk..][..dk], &queries[i * dk..][..dk], inverse[i]);
            acc.iter_mut().zip(q).for_each(|(x, &f)| *x *= inverse * self.map.slope(f));
            put(to, [b, h, t], acc);
        }
    }

    /// doutₜ·vₛ + cₜ for a band of queries and the first keys of a chunk.
    #[allow(clippy::too_many_arguments)]
    fn weight_gradients(
        &self,
        b: usize,
        kv_head: usize,
        band: &Range<usize>,
        seen: usize,
        keys: &Range<usize>,
        d_out: Matrix<R>,
        c: &[R],
        w: &mut [R],
    ) {
        let dv = self.sizes.value_dim;
        let d_out = below(d_out, band.start);
        product((band.len(), seen, dv), d_out, self.values(b, kv_head, keys.start).t(), false, w);
        for (w, &c) in w.chunks_exact_mut(seen).zip(&c[band.clone()]) {
            w.iter_mut().for_each(|w| *w += c);
        }
    }

    /// Loads keys, and starts their dφ(k) = vGᵀ + y and dv = φ(k)G from the state of all later queries.
    fn begin_keys(&self, unit: usize, rows: Range<usize>, state: Option<&[R]>, buffers: &mut Buffers<R>) {
        let (b, kv_head) = self.unit(unit);
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let n = rows.end.min(self.length(b)).saturating_sub(rows.start);
        self.features(&self.k, b, kv_head, rows.start..rows.start + n, &mut buffers.keys);
        let Buffers { keys, wide: [d_values, d_keys], .. } = buffers;
        match state {
            Some(state) if n > 0 => {
                let values = self.values(b, kv_head, rows.start);
                product((n, dk, dv), values, Matrix::new(state, dv).t(), false, d_keys);
                d_keys.chunks_exact_mut(dk).take(n).for_each(|x| add(x, &state[dk * dv..]));
                product((n, dv, dk), Matrix::new(keys, dk), Matrix::new(state, dv), false, d_values);
            }
            _ => {
                d_values.fill(R::ZERO);
                d_keys.fill(R::ZERO);
            }
        }
        // Keys past the length are seen by no query.
        d_values[n * dv..].fill(R::ZERO);
        d_keys[n * dk..].fill(R::ZERO);
    }

    /// Adds to dφ(k) and dv what the loaded queries of the same chunk give.
    fn add_seen_by(
        &self,
        b: usize,
        kv_head: usize,
        d_out: Matrix<R>,
        rows: Range<usize>,
        keys: Range<usize>,
        buffers: &mut Buffers<R>,
    ) {
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let Buffers { queries, keys: features, c, weights, wide: [d_values, d_keys], .. } = buffers;
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let (m, first) = (band.len(), rows.start + band.start);
            let w = &mut weights[..m * seen];
            let q = Matrix::new(&queries[band.start * dk..], dk);
            self.weight_gradients(b, kv_head, &band, seen, &keys, d_out, c, w);
            self.mask(b, first, &keys, seen, w);
            product((seen, dk, m), Matrix::new(w, seen).t(), q, true, d_keys);
            product((m, seen, dk), q, Matrix::new(features, dk).t(), false, w);
            self.mask(b, first, &keys, seen, w);
            let d_out = below(d_out, band.start);
            product((seen, dv, m), Matrix::new(w, seen).t(), d_out, true, d_values);
        }
    }

    /// Writes dk = dφ(k)⊙φ′(k) and dv.
    fn end_keys(&self, unit: usize, rows: Range<usize>, buffers: &mut Buffers<R>, to: &Gradients<R>) {
        let (b, kv_head) = self.unit(unit);
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let Buffers { keys, wide: [d_values, d_keys], .. } = buffers;
        let valid = self.length(b).saturating_sub(rows.start);
        for (i, s) in rows.enumerate() {
            if let Some(to) = &to.k {
                let (d, f) = (&mut d_keys[i * dk..(i + 1) * dk], &keys[i * dk..(i + 1) * dk]);
                if i < valid {
                    d.iter_mut().zip(f).for_each(|(d, &f)| *d *= self.map.slope(f));
                }
                put(to, [b, kv_head, s], d);
            }
            if let Some(to) = &to.v {
                put(to, [b, kv_head, s], &d_values[i * dv..(i + 1) * dv]);
            }
        }
    }
}

/// Rows of one head as a matrix in place.
fn rows_of<'a, R: Real>(x: &Ref<'a, R>, b: usize, h: usize, from: usize) -> Matrix<'a, R> {
    let (data, stride) = x.head(b, h);
    Matrix::strided(data.get(from * stride..).unwrap_or_default(), stride)
}

/// A matrix without its first rows.
fn below<R>(x: Matrix<R>, rows: usize) -> Matrix<R> {
    Matrix { data: &x.data[rows * x.row..], ..x }
}

/// x ← φ(x), vectorised.
fn map_in_place<R: Real>(map: FeatureMap, x: &mut [R]) {
    match map {
        FeatureMap::Elu1 => {
            // φ(x) = max(x, 0) + exp(min(x, 0)), written so that NaN goes through the exponential.
            const BLOCK: usize = 256;
            let mut low = [R::ZERO; BLOCK];
            for x in x.chunks_mut(BLOCK) {
                let low = &mut low[..x.len()];
                low.iter_mut().zip(&*x).for_each(|(low, &x)| *low = if x > R::ZERO { R::ZERO } else { x });
                R::exp_in_place(low);
                x.iter_mut().zip(low).for_each(|(x, low)| *x = if *x > R::ZERO { *x + R::ONE } else { *low });
            }
        }
        FeatureMap::Relu => x.iter_mut().for_each(|x| *x = map.apply(*x)),
    }
}

const LANES: usize = 16;

/// a·b in lanes, so that it vectorises.
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut lanes = [R::ZERO; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: R = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(&a, &b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.into_iter().sum::<R>() + rest
}

/// Σx in lanes.
fn total<R: Real>(x: &[R]) -> R {
    let mut lanes = [R::ZERO; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest: R = blocks.remainder().iter().copied().sum();
    for x in blocks {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    lanes.into_iter().sum::<R>() + rest
}

/// A range in tiles of at most [`ROWS`].
fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(ROWS).map(move |i| i..(i + ROWS).min(rows.end))
}

/// How a unit's rows are split into tasks: [`TILES`] tiles each.
fn splits(rows: usize) -> usize {
    rows.div_ceil(ROWS * TILES).max(1)
}

fn split(rows: usize, i: usize) -> Range<usize> {
    i * ROWS * TILES..((i + 1) * ROWS * TILES).min(rows)
}

/// Calls `work` on every split of every unit's rows.
fn for_splits<R: Real>(p: &Problem<R>, rows: usize, work: impl Fn(usize, Range<usize>, &mut Buffers<R>) + Sync) {
    let n = splits(rows);
    (0..p.units() * n)
        .into_par_iter()
        .for_each_init(|| Buffers::new(p), |buffers, task| work(task / n, split(rows, task % n), buffers));
}

/// The state of each unit: sums over its splits, tile by tile, and then over the splits in order.
fn sum_splits<R: Real>(
    p: &Problem<R>,
    rows: usize,
    totals: &mut [R],
    work: impl Fn(usize, Range<usize>, &mut [R], &mut Buffers<R>) + Sync,
) {
    let (n, len) = (splits(rows), p.state_len());
    let sum_up = |task: usize, sum: &mut [R], buffers: &mut Buffers<R>| {
        sum.fill(R::ZERO);
        tiles(split(rows, task % n)).for_each(|rows| work(task / n, rows, sum, buffers));
    };
    if n == 1 {
        let parts = totals.par_chunks_exact_mut(len).enumerate();
        return parts.for_each_init(|| Buffers::new(p), |buffers, (task, sum)| sum_up(task, sum, buffers));
    }
    let mut parts = vec![R::ZERO; p.units() * n * len];
    let each = parts.par_chunks_exact_mut(len).enumerate();
    each.for_each_init(|| Buffers::new(p), |buffers, (task, sum)| sum_up(task, sum, buffers));
    totals.par_chunks_exact_mut(len).zip(parts.par_chunks_exact(n * len)).for_each(|(total, parts)| {
        total.copy_from_slice(&parts[..len]);
        parts.chunks_exact(len).skip(1).for_each(|part| add(total, part));
    });
}

/// Chunks of queries and of the keys that the mask pairs with them: query t's last key, t + S − T, lies in the
/// chunk of the same number as t.
struct Chunks {
    queries: usize,
    keys: usize,
    /// Chunk 0 of the keys starts this far before the first key.
    pad: i64,
    /// The first query's chunk; negative where there are more queries than keys.
    first: i64,
    range: Range<i64>,
}

impl Chunks {
    fn of(s: &Sizes) -> Self {
        let rows = ROWS as i64;
        let offset = s.keys as i64 - s.queries as i64;
        let pad = (-offset).rem_euclid(rows);
        let first = (offset + pad) / rows;
        let end = (s.keys as i64 + pad + rows - 1) / rows;
        Chunks { queries: s.queries, keys: s.keys, pad, first, range: first.min(0)..end }
    }
    fn clamp(from: i64, size: usize) -> Range<usize> {
        from.clamp(0, size as i64) as usize..(from + ROWS as i64).clamp(0, size as i64) as usize
    }
    fn queries(&self, chunk: i64) -> Range<usize> {
        Self::clamp((chunk - self.first) * ROWS as i64, self.queries)
    }
    fn keys(&self, chunk: i64, length: usize) -> Range<usize> {
        Self::clamp(chunk * ROWS as i64 - self.pad, length.min(self.keys))
    }
}

/// Visits every chunk of every unit with the state before it (in `reverse`: after it): the sum of whole segments,
/// plus the running sum within the segment, to which the visit adds its own chunk. `sum_up` adds a chunk and nothing else: where there are more
/// threads than units, it runs first over all segments, so that they can be visited at the same time.
fn scan<R: Real>(
    p: &Problem<R>,
    chunks: &Chunks,
    reverse: bool,
    sum_up: impl Fn(usize, i64, &mut [R], &mut Buffers<R>) + Sync,
    visit: impl Fn(usize, i64, Option<&[R]>, &mut [R], &mut Buffers<R>) + Sync,
) {
    let (len, units) = (p.state_len(), p.units());
    let count = (chunks.range.end - chunks.range.start) as usize;
    let segments = count.div_ceil(TILES);
    // The i-th chunk to be visited.
    let chunk = |i: usize| {
        if reverse { chunks.range.end - 1 - i as i64 } else { chunks.range.start + i as i64 }
    };
    let of_segment = |segment: usize| segment * TILES..((segment + 1) * TILES).min(count);
    let visit_segment = |unit: usize, segment: usize, base: &[R], sum: &mut [R], buffers: &mut Buffers<R>| {
        sum.fill(R::ZERO);
        for i in of_segment(segment) {
            let mut state = std::mem::take(&mut buffers.state);
            state.iter_mut().zip(base).zip(&*sum).for_each(|((state, &base), &sum)| *state = base + sum);
            visit(unit, chunk(i), (i > 0).then_some(&state[..]), sum, buffers);
            buffers.state = state;
        }
    };
    if segments > 1 && rayon::current_num_threads() > units {
        let mut parts = vec![R::ZERO; units * segments * len];
        let each = parts.par_chunks_exact_mut(len).enumerate();
        each.for_each_init(
            || Buffers::new(p),
            |buffers, (task, sum)| {
                of_segment(task % segments).for_each(|i| sum_up(task / segments, chunk(i), sum, buffers));
            },
        );
        // From each segment's sum to the sum of those before it.
        parts.par_chunks_exact_mut(segments * len).for_each(|parts| {
            let mut base = vec![R::ZERO; len];
            for part in parts.chunks_exact_mut(len) {
                part.iter_mut().zip(&mut base).for_each(|(part, base)| {
                    let sum = *part;
                    *part = *base;
                    *base += sum;
                });
            }
        });
        let each = parts.par_chunks_exact(len).enumerate();
        each.for_each_init(
            || (Buffers::new(p), vec![R::ZERO; len]),
            |(buffers, sum), (task, base)| visit_segment(task / segments, task % segments, base, sum, buffers),
        );
    } else {
        (0..units).into_par_iter().for_each_init(
            || (Buffers::new(p), vec![R::ZERO; len], vec![R::ZERO; len]),
            |(buffers, base, sum), unit| {
                base.fill(R::ZERO);
                for segment in 0..segments {
                    visit_segment(unit, segment, base, sum, buffers);
                    add(base, sum);
                }
            },
        );
    }
}
