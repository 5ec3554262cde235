//! Linear attention on the CPU in tiles of rows: matrix products on φ(q), φ(k), v and the states.

use super::cpu::{Gradients, Known, Problem, quotient};
use super::rows::{self, product, transpose};
use super::schedule::{Chunks, ROWS, scan, sum_then_visit, tiles};
use crate::cpu::lanes::vectorise;
use crate::cpu::scratch::Aligned;
use crate::cpu::{Matrix, Mut, Real, Ref, Rows};
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;

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
            let Buffers { keys: features, keys_t, .. } = buffers;
            transpose(Matrix::new(features, s.key_dim), keys.len(), s.key_dim, keys_t, ROWS);
            for h in p.heads(kv_head) {
                p.forward_rows(b, h, queries.clone(), keys.clone(), state, buffers, out, denominators);
            }
            if !chunks.is_last(chunk) {
                p.add_loaded_keys(unit, keys, sum, buffers);
            }
        });
    } else {
        let totals = &mut states[..p.units() * len];
        let sum_up = |unit: usize, rows: Range<usize>, sum: &mut [R], buffers: &mut Buffers<R>| {
            p.add_keys(unit, rows, sum, buffers);
        };
        sum_then_visit(p, (s.keys, s.queries), totals, sum_up, |unit, rows, state, buffers| {
            let (b, kv_head) = p.unit(unit);
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
                p.turn(None, state, buffers);
                transpose(p.values(b, kv_head, keys.start), keys.len(), s.value_dim, &mut buffers.values_t, ROWS);
                for h in p.heads(kv_head) {
                    p.load_queries(known, b, h, chunks.queries(chunk), buffers);
                    p.backward_queries(known, b, h, chunks.queries(chunk), keys.clone(), state, buffers, to);
                }
                if !chunks.is_last(chunk) {
                    p.add_loaded_keys(unit, keys, sum, buffers);
                }
            });
        }
        let add_queries = |unit: usize, chunk: i64, sum: &mut [R], buffers: &mut Buffers<R>| {
            let (b, kv_head) = p.unit(unit);
            let queries = chunks.queries(chunk);
            for h in p.heads(kv_head) {
                p.load_queries(known, b, h, queries.clone(), buffers);
                p.divide_and_add_queries(rows_of(&known.d_out, b, h, queries.start), queries.len(), sum, buffers);
            }
        };
        if to.k.is_some() || to.v.is_some() {
            scan(p, &chunks, true, add_queries, |unit, chunk, state, sum, buffers| {
                let (b, kv_head) = p.unit(unit);
                let (keys, queries) = (chunks.keys(chunk, s.keys), chunks.queries(chunk));
                p.turn(None, state, buffers);
                p.begin_keys(unit, keys.clone(), state, buffers);
                transpose(p.values(b, kv_head, keys.start), keys.len(), s.value_dim, &mut buffers.values_t, ROWS);
                let Buffers { keys: features, keys_t, .. } = buffers;
                transpose(Matrix::new(features, s.key_dim), keys.len(), s.key_dim, keys_t, ROWS);
                for h in p.heads(kv_head) {
                    let d_out = rows_of(&known.d_out, b, h, queries.start);
                    p.load_queries(known, b, h, queries.clone(), buffers);
                    p.divide_and_add_queries(d_out, queries.len(), sum, buffers);
                    p.add_seen_by(b, d_out, queries.clone(), keys.clone(), buffers);
                }
                p.end_keys(unit, keys, buffers, to);
            });
        }
    } else {
        let mut totals = Aligned::zeros(p.units() * len);
        let sum_up = |unit: usize, rows: Range<usize>, sum: &mut [R], buffers: &mut Buffers<R>| {
            let (b, kv_head) = p.unit(unit);
            let state = &known.states[unit * len..][..len];
            p.turn(Some((unit, State::Keys)), Some(state), buffers);
            for h in p.heads(kv_head) {
                p.load_queries(known, b, h, rows.clone(), buffers);
                p.backward_queries(known, b, h, rows.clone(), 0..0, Some(state), buffers, to);
                p.divide_and_add_queries(rows_of(&known.d_out, b, h, rows.start), rows.len(), sum, buffers);
            }
        };
        sum_then_visit(p, (s.queries, s.keys), &mut totals, sum_up, |unit, rows, state, buffers| {
            for rows in tiles(rows) {
                p.turn(Some((unit, State::Queries)), Some(state), buffers);
                p.begin_keys(unit, rows.clone(), Some(state), buffers);
                p.end_keys(unit, rows, buffers, to);
            }
        });
    }
}

/// Which rows a state sums up.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// S: Σ φ(k)vᵀ.
    Keys,
    /// G: Σ φ(q)/d·doutᵀ.
    Queries,
}

/// A thread's tiles.
pub(super) struct Buffers<R> {
    /// Dk and Dv.
    sizes: (usize, usize),
    /// φ(q), rows×Dk.
    queries: Aligned<R>,
    /// φ(k), rows×Dk.
    keys: Aligned<R>,
    /// 1/d, one a row.
    inverse: Aligned<R>,
    /// c, one a row; in forward, d.
    c: Aligned<R>,
    /// Weights of a band, or their gradients.
    weights: Aligned<R>,
    /// Rows under construction: out or dv (rows×Dv), and dq or dk (rows×Dk).
    wide: [Aligned<R>; 2],
    /// The state that a chunk starts from.
    pub state: Aligned<R>,
    /// S or G transposed, Dv×Dk, and of which unit it is the total, if it is one.
    turned: (Aligned<R>, Option<(usize, State)>),
    /// φ(k) transposed, Dk×[`ROWS`].
    keys_t: Aligned<R>,
    /// v transposed, Dv×[`ROWS`].
    values_t: Aligned<R>,
}

thread_local! {
    /// The buffers that this thread used last: making them anew costs more than a short sequence does.
    static KEPT: Cell<Option<Box<dyn Any>>> = const { Cell::new(None) };
}

/// A thread's buffers, given back to it when dropped.
pub(super) struct Kept<R: Real>(Option<Box<Buffers<R>>>);

impl<R: Real> Kept<R> {
    /// The thread's own, where the head sizes are those that they were made for.
    pub fn new(p: &Problem<R>) -> Self {
        let fits = |b: &Buffers<R>| b.sizes == (p.sizes.key_dim, p.sizes.value_dim);
        let kept = KEPT.take().and_then(|b| b.downcast().ok()).filter(|b| fits(b));
        let mut buffers = kept.unwrap_or_else(|| Box::new(Buffers::new(p)));
        buffers.turned.1 = None; // another call's unit
        Kept(Some(buffers))
    }

    /// To work with.
    pub fn get(&mut self) -> &mut Buffers<R> {
        self.0.as_mut().expect("there until dropped")
    }
}

impl<R: Real> Drop for Kept<R> {
    fn drop(&mut self) {
        KEPT.set(self.0.take().map(|b| b as Box<dyn Any>));
    }
}

impl<R: Real> Buffers<R> {
    fn new(p: &Problem<R>) -> Self {
        let (dk, dv) = (p.sizes.key_dim, p.sizes.value_dim);
        let zeros = Aligned::zeros;
        Buffers {
            sizes: (dk, dv),
            queries: zeros(ROWS * dk),
            keys: zeros(ROWS * dk),
            inverse: zeros(ROWS),
            c: zeros(ROWS),
            weights: zeros(BAND * ROWS),
            wide: [zeros(ROWS * dv), zeros(ROWS * dk)],
            state: zeros(p.state_len()),
            turned: (zeros(dk * dv), None),
            keys_t: zeros(dk * ROWS),
            values_t: zeros(dv * ROWS),
        }
    }
}

impl<'a, R: Real> Problem<'a, R> {
    /// φ of some rows of one head, one after another.
    fn features(&self, x: &Ref<R>, b: usize, h: usize, rows: Range<usize>, to: &mut [R]) {
        let (data, stride) = x.head(b, h);
        let dim = self.sizes.key_dim;
        let (x, to) = (data.get(rows.start * stride..).unwrap_or_default(), &mut to[..rows.len() * dim]);
        vectorise(rows::Features { map: self.map, dim, x, stride, to });
    }

    /// Rows of v as a matrix in place.
    fn values(&self, b: usize, kv_head: usize, from: usize) -> Matrix<'a, R> {
        rows_of(&self.v, b, kv_head, from)
    }

    /// S += Σ φ(x)yᵀ and z += Σ φ(x). With 1/d and c given: φ(x) is divided by d first, and summed with weight c.
    fn add_state(&self, features: &mut [R], y: Matrix<R>, divided: Option<(&[R], &[R])>, sum: &mut [R]) {
        let (dk, dv, n) = (self.sizes.key_dim, self.sizes.value_dim, features.len() / self.sizes.key_dim);
        let (matrix, vector) = sum.split_at_mut(dk * dv);
        vectorise(rows::SumRows { rows: features, divided, sum: vector });
        product((dk, dv, n), Matrix::new(features, dk).t(), y, true, matrix, dv);
    }

    /// Adds the keys that are loaded.
    fn add_loaded_keys(&self, unit: usize, rows: Range<usize>, sum: &mut [R], buffers: &mut Buffers<R>) {
        let (b, kv_head) = self.unit(unit);
        let features = &mut buffers.keys[..rows.len() * self.sizes.key_dim];
        self.add_state(features, self.values(b, kv_head, rows.start), None, sum);
    }

    /// Adds visible keys to S and z.
    fn add_keys(&self, unit: usize, rows: Range<usize>, sum: &mut [R], buffers: &mut Buffers<R>) {
        let (b, kv_head) = self.unit(unit);
        let rows = rows.start..rows.end.min(self.length(b)).max(rows.start);
        self.features(&self.k, b, kv_head, rows.clone(), &mut buffers.keys);
        self.add_loaded_keys(unit, rows, sum, buffers);
    }

    /// φ(q), 1/d and c of some rows.
    fn load_queries(&self, known: &Known<R>, b: usize, h: usize, rows: Range<usize>, buffers: &mut Buffers<R>) {
        let dv = self.sizes.value_dim;
        self.features(&self.q, b, h, rows.clone(), &mut buffers.queries);
        let n = rows.len();
        let (d_out, out) = (rows_of(&known.d_out, b, h, rows.start), rows_of(&known.out, b, h, rows.start));
        let Buffers { inverse, c, .. } = buffers;
        vectorise(rows::Dots { dim: dv, x: (d_out.data, d_out.row), y: (out.data, out.row), to: &mut c[..n] });
        c[..n].iter_mut().for_each(|c| *c = -*c);
        let d = &known.denominators[self.query(b, h, rows.start)..];
        inverse[..n].iter_mut().zip(d).for_each(|(inverse, &d)| *inverse = quotient(R::ONE, d));
    }

    /// Turns the loaded queries' φ(q) into p = φ(q)/d, in place, and adds them to G and y.
    fn divide_and_add_queries(&self, d_out: Matrix<R>, rows: usize, sum: &mut [R], buffers: &mut Buffers<R>) {
        let Buffers { queries, inverse, c, .. } = buffers;
        self.add_state(&mut queries[..rows * self.sizes.key_dim], d_out, Some((inverse, c)), sum);
    }

    /// Transposes S or G, once for all tiles of a unit if it is the unit's total.
    fn turn(&self, total_of: Option<(usize, State)>, state: Option<&[R]>, buffers: &mut Buffers<R>) {
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let (turned, of) = &mut buffers.turned;
        if let Some(state) = state
            && (total_of.is_none() || *of != total_of)
        {
            transpose(Matrix::new(state, dv), dk, dv, turned, dk);
            *of = total_of;
        }
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
        for (i, w) in weights.chunks_exact_mut(ROWS).enumerate() {
            w[self.seen(b, first + i, keys)..whole(seen)].fill(R::ZERO);
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
        let Buffers { queries, keys_t, weights, c: d, wide: [acc, divided], .. } = buffers;
        // SAFETY: each task writes its own rows, one at a time.
        let (out, kept) = unsafe { (out.head(b, h).from(rows.start), denominators.head(b, h).from(rows.start)) };
        if let Some(state) = state {
            let (x, y) = ((&queries[..], dk), (&state[dk * dv..], 0));
            vectorise(rows::Dots { dim: dk, x, y, to: &mut d[..n] });
            let s = Matrix::new(state, dv);
            if keys.is_empty() && n > 0 && rows::fits(dv, s) {
                // The denominators are known: divided by them, φ(q) gives the outputs where they belong.
                let to = Rows::of(divided, dk, dk);
                vectorise(rows::Divide { to, x: &queries[..n * dk], d: &d[..n] });
                rows::product_into((n, dv, dk), Matrix::new(divided, dk), s, false, out);
                return keep(kept, &d[..n]);
            }
            product((n, dv, dk), Matrix::new(queries, dk), s, false, acc, dv);
        } else {
            acc[..n * dv].fill(R::ZERO);
            d[..n].fill(R::ZERO);
        }
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let (m, w) = (band.len(), &mut weights[..band.len() * ROWS]);
            let q = Matrix::new(&queries[band.start * dk..], dk);
            product((m, whole(seen), dk), q, Matrix::new(keys_t, ROWS), false, w, ROWS);
            self.mask(b, rows.start + band.start, &keys, seen, w);
            let values = self.values(b, h / s.group(), keys.start);
            product((m, dv, seen), Matrix::new(w, ROWS), values, true, &mut acc[band.start * dv..], dv);
            vectorise(rows::AddRowSums { dim: seen, x: w, stride: ROWS, to: &mut d[band] });
        }
        vectorise(rows::Divide { to: out, x: &acc[..n * dv], d: &d[..n] });
        keep(kept, &d[..n]);
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
        let Buffers { queries, keys: features, inverse, c, weights, wide: [_, acc], turned, values_t, .. } = buffers;
        let d_out = rows_of(&known.d_out, b, h, rows.start);
        match state {
            Some(state) => {
                product((n, dk, dv), d_out, Matrix::new(&turned.0, dk), false, acc, dk);
                vectorise(rows::AddOuter { to: &mut acc[..n * dk], factors: Some(c), x: &state[dk * dv..] });
            }
            None => acc[..n * dk].fill(R::ZERO),
        }
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let w = &mut weights[..band.len() * ROWS];
            self.weight_gradients(&band, seen, values_t, d_out, c, w);
            self.mask(b, rows.start + band.start, &keys, seen, w);
            let acc = &mut acc[band.start * dk..];
            product((band.len(), dk, seen), Matrix::new(w, ROWS), Matrix::new(features, dk), true, acc, dk);
        }
        let (accumulate, slopes) = (to.accumulate, Some((self.map, &queries[..n * dk])));
        // SAFETY: each task writes its own rows, one at a time.
        let to = unsafe { to.to.head(b, h).from(rows.start) };
        vectorise(rows::Finish { to, dim: dk, accumulate, x: &acc[..n * dk], factors: Some(inverse), slopes });
    }

    /// doutₜ·vₛ + cₜ for a band of queries and the first keys of a chunk.
    fn weight_gradients(
        &self,
        band: &Range<usize>,
        seen: usize,
        values_t: &[R],
        d_out: Matrix<R>,
        c: &[R],
        w: &mut [R],
    ) {
        w.chunks_exact_mut(ROWS).zip(&c[band.clone()]).for_each(|(w, &c)| w[..whole(seen)].fill(c));
        let mnk = (band.len(), whole(seen), self.sizes.value_dim);
        product(mnk, below(d_out, band.start), Matrix::new(values_t, ROWS), true, w, ROWS);
    }

    /// Loads keys, and starts their dφ(k) = vGᵀ + y and dv = φ(k)G from the state of all later queries.
    fn begin_keys(&self, unit: usize, rows: Range<usize>, state: Option<&[R]>, buffers: &mut Buffers<R>) {
        let (b, kv_head) = self.unit(unit);
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let n = rows.end.min(self.length(b)).saturating_sub(rows.start);
        self.features(&self.k, b, kv_head, rows.start..rows.start + n, &mut buffers.keys);
        let Buffers { keys, wide: [d_values, d_keys], turned, .. } = buffers;
        match state {
            Some(state) if n > 0 => {
                let values = self.values(b, kv_head, rows.start);
                product((n, dk, dv), values, Matrix::new(&turned.0, dk), false, d_keys, dk);
                vectorise(rows::AddOuter { to: &mut d_keys[..n * dk], factors: None, x: &state[dk * dv..] });
                product((n, dv, dk), Matrix::new(keys, dk), Matrix::new(state, dv), false, d_values, dv);
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
        d_out: Matrix<R>,
        rows: Range<usize>,
        keys: Range<usize>,
        buffers: &mut Buffers<R>,
    ) {
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let Buffers { queries, keys_t, c, weights, wide: [d_values, d_keys], values_t, .. } = buffers;
        for (band, seen) in self.bands(b, &rows, &keys).filter(|&(_, seen)| seen > 0) {
            let (m, first) = (band.len(), rows.start + band.start);
            let w = &mut weights[..m * ROWS];
            let q = Matrix::new(&queries[band.start * dk..], dk);
            self.weight_gradients(&band, seen, values_t, d_out, c, w);
            self.mask(b, first, &keys, seen, w);
            product((seen, dk, m), Matrix::new(w, ROWS).t(), q, true, d_keys, dk);
            product((m, whole(seen), dk), q, Matrix::new(keys_t, ROWS), false, w, ROWS);
            self.mask(b, first, &keys, seen, w);
            let d_out = below(d_out, band.start);
            product((seen, dv, m), Matrix::new(w, ROWS).t(), d_out, true, d_values, dv);
        }
    }

    /// Writes dk = dφ(k)⊙φ′(k) and dv.
    fn end_keys(&self, unit: usize, rows: Range<usize>, buffers: &mut Buffers<R>, to: &Gradients<R>) {
        let (b, kv_head) = self.unit(unit);
        let (dk, dv) = (self.sizes.key_dim, self.sizes.value_dim);
        let Buffers { keys, wide: [d_values, d_keys], .. } = buffers;
        let (n, first) = (rows.len(), rows.start);
        // Keys past the length have no features; their gradient is 0 already.
        let valid = n.min(self.length(b).saturating_sub(rows.start));
        if let Some(to) = &to.k {
            let (accumulate, slopes) = (to.accumulate, Some((self.map, &keys[..valid * dk])));
            // SAFETY: each task writes its own rows, one at a time.
            let to = unsafe { to.to.head(b, kv_head).from(first) };
            vectorise(rows::Finish { to, dim: dk, accumulate, x: &d_keys[..n * dk], factors: None, slopes });
        }
        if let Some(to) = &to.v {
            let accumulate = to.accumulate;
            // SAFETY: as above.
            let to = unsafe { to.to.head(b, kv_head).from(first) };
            vectorise(rows::Finish { to, dim: dv, accumulate, x: &d_values[..n * dv], factors: None, slopes: None });
        }
    }
}

/// Writes a column, which nothing else refers to meanwhile.
fn keep<R: Real>(to: Rows<R>, x: &[R]) {
    for (i, &x) in x.iter().enumerate() {
        // SAFETY: see above.
        unsafe { to.row(i)[0] = x };
    }
}

/// `seen` rounded up to whole vectors; a chunk's rows are.
fn whole(seen: usize) -> usize {
    seen.next_multiple_of(rows::MAX_LANES)
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
