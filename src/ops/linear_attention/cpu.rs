//! What linear attention reads and writes on the CPU, and its definition in plain loops.

use super::{FeatureMap, LinearAttention};
use crate::cpu::{Mut, Real, Ref};
use crate::op::{Gradient, Input};
use crate::ops::attention::Sizes;
use std::ops::Range;

/// What both directions read.
pub(super) struct Problem<'a, R> {
    pub sizes: Sizes,
    pub map: FeatureMap,
    pub q: Ref<'a, R>,
    pub k: Ref<'a, R>,
    pub v: Ref<'a, R>,
    lengths: Option<&'a [i32]>,
}

/// What backward reads besides.
pub(super) struct Known<'a, R> {
    pub out: Ref<'a, R>,
    pub d_out: Ref<'a, R>,
    /// (B,H,T).
    pub denominators: &'a [R],
    /// Without a mask: S and z of each (B,Hk).
    pub states: &'a [R],
}

/// What backward writes.
pub(super) struct Gradients<'a, R> {
    pub q: Option<Gradient<Mut<'a, R>>>,
    pub k: Option<Gradient<Mut<'a, R>>>,
    pub v: Option<Gradient<Mut<'a, R>>>,
}

impl<'a, R: Real> Problem<'a, R> {
    pub fn new(op: &LinearAttention, inputs: &[Input<'a, R>]) -> Self {
        let (q, k, v) = (inputs[0].real(), inputs[1].real(), inputs[2].real());
        let sizes = Sizes {
            batch: q.shape[0],
            heads: q.shape[1],
            kv_heads: k.shape[1],
            queries: q.shape[2],
            keys: k.shape[2],
            key_dim: q.shape[3],
            value_dim: v.shape[3],
            causal: op.causal,
        };
        Problem { sizes, map: op.feature_map, q, k, v, lengths: inputs.get(3).map(|l| l.ints()) }
    }

    /// Elements of a state: S (Dk×Dv), then z (Dk).
    pub fn state_len(&self) -> usize {
        super::gpu::state_len(&self.sizes)
    }

    /// The number of (batch, key head) pairs.
    pub fn units(&self) -> usize {
        self.sizes.batch * self.sizes.kv_heads
    }

    /// Batch and key head of a unit.
    pub fn unit(&self, unit: usize) -> (usize, usize) {
        (unit / self.sizes.kv_heads, unit % self.sizes.kv_heads)
    }

    /// The query heads that read a key head.
    pub fn heads(&self, kv_head: usize) -> Range<usize> {
        let group = self.sizes.group();
        kv_head * group..(kv_head + 1) * group
    }

    /// Position of a query's number among (B,H,T).
    pub fn query(&self, b: usize, h: usize, t: usize) -> usize {
        (b * self.sizes.heads + h) * self.sizes.queries + t
    }

    /// The number of keys that batch `b` has.
    pub fn length(&self, b: usize) -> usize {
        self.sizes.length(self.lengths, b)
    }
}

/// to += factor·x.
pub(super) fn add_scaled<R: Real>(to: &mut [R], factor: R, x: &[R]) {
    to.iter_mut().zip(x).for_each(|(to, &x)| *to += factor * x);
}

pub(super) fn add<R: Real>(to: &mut [R], x: &[R]) {
    to.iter_mut().zip(x).for_each(|(to, &x)| *to += x);
}

/// x/d; 0 where nothing was seen.
pub(super) fn quotient<R: Real>(x: R, d: R) -> R {
    if d == R::ZERO { R::ZERO } else { x / d }
}

/// Writes or adds one row of a gradient.
pub(super) fn put<R: Real>(to: &Gradient<Mut<R>>, index: [usize; 3], row: &[R]) {
    // SAFETY: each task writes its own rows, one at a time.
    let to_row = unsafe { to.to.row(&index) };
    if to.accumulate { add(to_row, row) } else { to_row.copy_from_slice(row) }
}

/// Straight from the formula: one row of weights at a time.
pub(super) fn forward_by_definition<R: Real>(p: &Problem<R>, out: &Mut<R>, denominators: &Mut<R>) {
    let s = &p.sizes;
    for unit in 0..p.units() {
        let (b, kv_head) = p.unit(unit);
        let keys = features_by_definition(p, &p.k, b, kv_head);
        for h in p.heads(kv_head) {
            let queries = features_by_definition(p, &p.q, b, h);
            for t in 0..s.queries {
                let w = weights(s, &queries, &keys, t, s.visible(t, p.length(b)));
                let d: R = w.iter().copied().sum();
                // SAFETY: the only thread, one row at a time.
                let (row, denominator) = unsafe { (out.row(&[b, h, t]), denominators.row(&[b, h, t])) };
                denominator[0] = d;
                for (e, out) in row.iter_mut().enumerate() {
                    let sum: R = w.iter().enumerate().map(|(i, &w)| w * p.v.row(&[b, kv_head, i])[e]).sum();
                    *out = quotient(sum, d);
                }
            }
        }
    }
}

/// φ of a whole head, element by element.
fn features_by_definition<R: Real>(p: &Problem<R>, x: &Ref<R>, b: usize, h: usize) -> Vec<R> {
    (0..x.shape[2]).flat_map(|t| x.row(&[b, h, t]).iter().map(|&x| p.map.apply(x))).collect()
}

/// φ(qₜ)·φ(kₛ) for the keys that query t sees.
fn weights<R: Real>(s: &Sizes, queries: &[R], keys: &[R], t: usize, visible: usize) -> Vec<R> {
    let d = s.key_dim;
    let q = &queries[t * d..(t + 1) * d];
    keys.chunks_exact(d).take(visible).map(|k| q.iter().zip(k).map(|(&q, &k)| q * k).sum()).collect()
}

/// Straight from the formula: outₜ = Σₛ wₜₛvₛ / Σₛ wₜₛ, so dwₜₛ = (doutₜ·vₛ − doutₜ·outₜ)/dₜ.
pub(super) fn backward_by_definition<R: Real>(p: &Problem<R>, known: &Known<R>, to: &Gradients<R>) {
    let s = &p.sizes;
    let (dk, dv) = (s.key_dim, s.value_dim);
    for unit in 0..p.units() {
        let (b, kv_head) = p.unit(unit);
        let keys = features_by_definition(p, &p.k, b, kv_head);
        let mut d_keys = vec![R::ZERO; s.keys * dk];
        let mut d_values = vec![R::ZERO; s.keys * dv];
        for h in p.heads(kv_head) {
            let queries = features_by_definition(p, &p.q, b, h);
            for t in 0..s.queries {
                let w = weights(s, &queries, &keys, t, s.visible(t, p.length(b)));
                let d: R = w.iter().copied().sum();
                let (d_out, out) = (known.d_out.row(&[b, h, t]), known.out.row(&[b, h, t]));
                let mean: R = d_out.iter().zip(out).map(|(&a, &b)| a * b).sum();
                let q = &queries[t * dk..(t + 1) * dk];
                let mut d_query = vec![R::ZERO; dk];
                for (i, &w) in w.iter().enumerate() {
                    let value = p.v.row(&[b, kv_head, i]);
                    let along: R = d_out.iter().zip(value).map(|(&a, &b)| a * b).sum();
                    let dw = quotient(along - mean, d);
                    add_scaled(&mut d_query, dw, &keys[i * dk..(i + 1) * dk]);
                    add_scaled(&mut d_keys[i * dk..(i + 1) * dk], dw, q);
                    add_scaled(&mut d_values[i * dv..(i + 1) * dv], quotient(w, d), d_out);
                }
                if let Some(to) = &to.q {
                    d_query.iter_mut().zip(q).for_each(|(d, &f)| *d *= p.map.slope(f));
                    put(to, [b, h, t], &d_query);
                }
            }
        }
        d_keys.iter_mut().zip(&keys).for_each(|(d, &f)| *d *= p.map.slope(f));
        for i in 0..s.keys {
            if let Some(to) = &to.k {
                put(to, [b, kv_head, i], &d_keys[i * dk..(i + 1) * dk]);
            }
            if let Some(to) = &to.v {
                put(to, [b, kv_head, i], &d_values[i * dv..(i + 1) * dv]);
            }
        }
    }
}
