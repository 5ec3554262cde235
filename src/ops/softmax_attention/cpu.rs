//! Softmax attention on the CPU: from the definition here, tiled in the modules below.
//!
//! With x the score of scale·q·k over the visible keys: lse = ln Σ eˣ, P = eˣ⁻ˡˢᵉ, out = P·v.
//! Backward, with D = Σ dO∘O of a row: dv = Pᵀ·dO, dS = P∘(dO·vᵀ − D + dlse), dq = scale·dS·k, dk = scale·dSᵀ·q.
//! With dropout's factors Z: out = (P∘Z)·v, dv = (P∘Z)ᵀ·dO, dS = P∘(Z∘(dO·vᵀ) − D + dlse). A bias's gradient is dS; dq and
//! dk take dS times ∂x/∂(scale·q·k).

mod backward;
mod d_bias;
pub mod features;
mod forward;
#[cfg(test)]
mod tests;
mod tiles;
mod weights;

use crate::cpu::{Mut, Real, Ref};
use crate::op::{Gradient, Mode};
use crate::ops::attention::Sizes;
use features::{Features, broadcast};

/// What to compute.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, R> {
    /// Shapes and mask.
    pub sizes: Sizes,
    /// The factor of q·k.
    pub scale: f64,
    /// Keys of each batch (B), from 0 to S; `None`: all.
    pub lengths: Option<&'a [i32]>,
    /// What else; `None` where nothing is.
    pub features: Option<Features<'a, R>>,
}

/// The gradients of q, k, v and the bias; `None` where one is not needed.
#[derive(Debug, Clone, Copy)]
pub struct Gradients<'a, R> {
    /// Shaped as q.
    pub dq: Option<Gradient<Mut<'a, R>>>,
    /// Shaped as k.
    pub dk: Option<Gradient<Mut<'a, R>>>,
    /// Shaped as v.
    pub dv: Option<Gradient<Mut<'a, R>>>,
    /// Shaped as the bias.
    pub d_bias: Option<Gradient<Mut<'a, R>>>,
}

/// What backward reads.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a, R> {
    /// As in forward.
    pub q: Ref<'a, R>,
    /// As in forward.
    pub k: Ref<'a, R>,
    /// As in forward.
    pub v: Ref<'a, R>,
    /// As forward left it.
    pub out: Ref<'a, R>,
    /// As forward left it.
    pub lse: &'a [R],
    /// The gradient of out; `None` stands for zeros.
    pub d_out: Option<Ref<'a, R>>,
    /// The gradient of lse; `None` stands for zeros.
    pub d_lse: Option<&'a [R]>,
}

/// out (B,H,T,Dv) and lse (B,H,T, contiguous: natural logarithm of the sum of exponentials, scale included, −∞ where no
/// key is visible) from q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv). The last axis of each has unit stride.
pub fn forward<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, v: Ref<R>, out: &Mut<R>, lse: &mut [R], mode: Mode) {
    match mode {
        Mode::Definition => define_forward(p, q, k, v, out, lse),
        Mode::Fast => forward::forward(p, q, k, v, out, lse),
    }
}

/// The weights (B,H,T,S, contiguous) before dropout, again from q, k and lse: 0 for a hidden key.
pub fn weights<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, lse: &[R], weights: &mut [R], mode: Mode) {
    match mode {
        Mode::Definition => define_weights(p, q, k, lse, weights),
        Mode::Fast => weights::weights(p, q, k, lse, weights),
    }
}

/// The gradients from those of out and lse.
pub fn backward<R: Real>(p: &Problem<R>, from: &Saved<R>, to: &Gradients<R>, mode: Mode) {
    match mode {
        Mode::Definition => define_backward(p, from, to),
        Mode::Fast => {
            backward::backward(p, from, to);
            if let Some(d_bias) = &to.d_bias {
                d_bias::d_bias(p, from, d_bias);
            }
        }
    }
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// y ← y + a·x.
fn add<R: Real>(y: &mut [R], a: R, x: &[R]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x);
}

/// Batch, query head and query of every row.
fn rows(s: Sizes) -> impl Iterator<Item = [usize; 3]> {
    (0..s.batch).flat_map(move |b| (0..s.heads).flat_map(move |h| (0..s.queries).map(move |t| [b, h, t])))
}

/// The visible keys of a query: which, the score, and ∂score/∂(scale·q·k).
fn scores<'a, R: Real>(
    p: &'a Problem<R>,
    q: Ref<'a, R>,
    k: Ref<'a, R>,
    [b, h, t]: [usize; 3],
) -> impl Iterator<Item = (usize, R, R)> + 'a {
    let kv = h / p.sizes.group();
    p.range(b, t).filter_map(move |s| {
        let x = R::from_f64(p.scale) * dot(q.row(&[b, h, t]), k.row(&[b, kv, s]));
        p.score(x, [b, h, t, s]).map(|(x, slope)| (s, x, slope))
    })
}

fn define_forward<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, v: Ref<R>, out: &Mut<R>, lse: &mut [R]) {
    for ([b, h, t], lse) in rows(p.sizes).zip(lse) {
        // SAFETY: each row is visited once, on this thread.
        let out = unsafe { out.row(&[b, h, t]) };
        out.fill(R::ZERO);
        *lse = R::NEG_INFINITY;
        let x: Vec<(usize, R)> = scores(p, q, k, [b, h, t]).map(|(s, x, _)| (s, x)).collect();
        if x.is_empty() {
            continue;
        }
        let max = x.iter().fold(R::NEG_INFINITY, |max, &(_, x)| max.maximum(x));
        let sum: R = x.iter().map(|&(_, x)| (x - max).exp()).sum();
        for (s, x) in x {
            let weight = (x - max).exp() / sum;
            add(out, weight * p.kept([b, h, t, s]), v.row(&[b, h / p.sizes.group(), s]));
        }
        *lse = max + sum.ln();
    }
}

fn define_weights<R: Real>(p: &Problem<R>, q: Ref<R>, k: Ref<R>, lse: &[R], weights: &mut [R]) {
    weights.fill(R::ZERO);
    for (i, at) in rows(p.sizes).enumerate() {
        for (s, x, _) in scores(p, q, k, at) {
            weights[i * p.sizes.keys + s] = (x - lse[i]).exp();
        }
    }
}

fn define_backward<R: Real>(p: &Problem<R>, from: &Saved<R>, to: &Gradients<R>) {
    for gradient in [to.dq, to.dk, to.dv, to.d_bias].into_iter().flatten().filter(|g| !g.accumulate) {
        let mut all = gradient.to;
        all.fill(R::ZERO);
    }
    let scale = R::from_f64(p.scale);
    let zeros = vec![R::ZERO; p.sizes.value_dim];
    for (i, [b, h, t]) in rows(p.sizes).enumerate() {
        let kv = h / p.sizes.group();
        let d_out = from.d_out.map_or(&zeros[..], |d| d.row(&[b, h, t]));
        let d_lse = from.d_lse.map_or(R::ZERO, |d| d[i]);
        let d = dot(d_out, from.out.row(&[b, h, t]));
        for (s, x, slope) in scores(p, from.q, from.k, [b, h, t]) {
            let prob = (x - from.lse[i]).exp();
            let kept = p.kept([b, h, t, s]);
            let ds = prob * (kept * dot(d_out, from.v.row(&[b, kv, s])) - d + d_lse);
            // SAFETY: one row at a time, on this thread.
            unsafe {
                if let Some(dq) = &to.dq {
                    add(dq.to.row(&[b, h, t]), scale * slope * ds, from.k.row(&[b, kv, s]));
                }
                if let Some(dk) = &to.dk {
                    add(dk.to.row(&[b, kv, s]), scale * slope * ds, from.q.row(&[b, h, t]));
                }
                if let Some(dv) = &to.dv {
                    add(dv.to.row(&[b, kv, s]), prob * kept, d_out);
                }
                if let Some(d_bias) = &to.d_bias {
                    d_bias.to.row(&broadcast(d_bias.to.shape, [b, h, t]))[s] += ds;
                }
            }
        }
    }
}
