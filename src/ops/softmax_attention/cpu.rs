//! Softmax attention on the CPU: from the definition here, tiled in the modules below.
//!
//! With x = scale·q·k over the visible keys: lse = ln Σ eˣ, P = eˣ⁻ˡˢᵉ, out = P·v.
//! Backward, with D = Σ dO∘O of a row: dv = Pᵀ·dO, dS = P∘(dO·vᵀ − D + dlse), dq = scale·dS·k, dk = scale·dSᵀ·q.

mod backward;
mod forward;
#[cfg(test)]
mod tests;
mod tiles;

use crate::cpu::{Mut, Real, Ref};
use crate::op::{Gradient, Mode};
use crate::ops::attention::Sizes;

/// What to compute.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Shapes and mask.
    pub sizes: Sizes,
    /// The factor of q·k.
    pub scale: f64,
    /// Keys of each batch (B), from 0 to S; `None`: all.
    pub lengths: Option<&'a [i32]>,
}

/// The gradients of q, k and v; `None` where one is not needed.
#[derive(Debug, Clone, Copy)]
struct Gradients<'a, R> {
    dq: Option<Gradient<Mut<'a, R>>>,
    dk: Option<Gradient<Mut<'a, R>>>,
    dv: Option<Gradient<Mut<'a, R>>>,
}

/// out (B,H,T,Dv) and lse (B,H,T, contiguous: natural logarithm of the sum of exponentials, scale included, −∞ where no
/// key is visible) from q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv). The last axis of each has unit stride.
pub fn forward<R: Real>(p: &Problem, q: Ref<R>, k: Ref<R>, v: Ref<R>, out: &Mut<R>, lse: &mut [R], mode: Mode) {
    match mode {
        Mode::Definition => define_forward(p, q, k, v, out, lse),
        Mode::Fast => forward::forward(p, q, k, v, out, lse),
    }
}

/// The gradients of q, k and v (shaped as they are) from those of out and lse, where `None` stands for zeros.
/// `out` and `lse` are as forward left them.
#[allow(clippy::too_many_arguments)]
pub fn backward<'a, R: Real>(
    p: &Problem,
    q: Ref<R>,
    k: Ref<R>,
    v: Ref<R>,
    out: Ref<R>,
    lse: &[R],
    d_out: Option<Ref<R>>,
    d_lse: Option<&[R]>,
    dq: Option<Gradient<Mut<'a, R>>>,
    dk: Option<Gradient<Mut<'a, R>>>,
    dv: Option<Gradient<Mut<'a, R>>>,
    mode: Mode,
) {
    let to = Gradients { dq, dk, dv };
    match mode {
        Mode::Definition => define_backward(p, q, k, v, out, lse, d_out, d_lse, &to),
        Mode::Fast => {
            let from = backward::Saved { q, k, v, out, lse, d_out, d_lse };
            backward::backward(p, &from, &to);
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
fn rows(s: Sizes) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..s.batch).flat_map(move |b| (0..s.heads).flat_map(move |h| (0..s.queries).map(move |t| (b, h, t))))
}

fn define_forward<R: Real>(p: &Problem, q: Ref<R>, k: Ref<R>, v: Ref<R>, out: &Mut<R>, lse: &mut [R]) {
    let scale = R::from_f64(p.scale);
    for ((b, h, t), lse) in rows(p.sizes).zip(lse) {
        let (kv, keys) = (h / p.sizes.group(), p.sizes.visible(t, p.sizes.length(p.lengths, b)));
        // SAFETY: each row is visited once, on this thread.
        let out = unsafe { out.row(&[b, h, t]) };
        out.fill(R::ZERO);
        *lse = R::NEG_INFINITY;
        if keys == 0 {
            continue;
        }
        let x: Vec<R> = (0..keys).map(|s| scale * dot(q.row(&[b, h, t]), k.row(&[b, kv, s]))).collect();
        let max = x.iter().fold(R::NEG_INFINITY, |max, &x| max.maximum(x));
        let e: Vec<R> = x.iter().map(|&x| (x - max).exp()).collect();
        let sum: R = e.iter().copied().sum();
        for (s, &e) in e.iter().enumerate() {
            add(out, e / sum, v.row(&[b, kv, s]));
        }
        *lse = max + sum.ln();
    }
}

#[allow(clippy::too_many_arguments)]
fn define_backward<R: Real>(
    p: &Problem,
    q: Ref<R>,
    k: Ref<R>,
    v: Ref<R>,
    out: Ref<R>,
    lse: &[R],
    d_out: Option<Ref<R>>,
    d_lse: Option<&[R]>,
    to: &Gradients<R>,
) {
    for gradient in [to.dq, to.dk, to.dv].into_iter().flatten().filter(|g| !g.accumulate) {
        let mut all = gradient.to;
        all.fill(R::ZERO);
    }
    let scale = R::from_f64(p.scale);
    let zeros = vec![R::ZERO; p.sizes.value_dim];
    for (i, (b, h, t)) in rows(p.sizes).enumerate() {
        let kv = h / p.sizes.group();
        let d_out = d_out.map_or(&zeros[..], |d| d.row(&[b, h, t]));
        let d_lse = d_lse.map_or(R::ZERO, |d| d[i]);
        let d = dot(d_out, out.row(&[b, h, t]));
        for s in 0..p.sizes.visible(t, p.sizes.length(p.lengths, b)) {
            let (q, k, v) = (q.row(&[b, h, t]), k.row(&[b, kv, s]), v.row(&[b, kv, s]));
            let prob = (scale * dot(q, k) - lse[i]).exp();
            let ds = scale * prob * (dot(d_out, v) - d + d_lse);
            // SAFETY: one row at a time, on this thread.
            unsafe {
                if let Some(dq) = &to.dq {
                    add(dq.to.row(&[b, h, t]), ds, k);
                }
                if let Some(dk) = &to.dk {
                    add(dk.to.row(&[b, kv, s]), ds, q);
                }
                if let Some(dv) = &to.dv {
                    add(dv.to.row(&[b, kv, s]), prob, d_out);
                }
            }
        }
    }
}
