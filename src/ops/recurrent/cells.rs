//! One step of one hidden unit: what the definition computes, and what the fast code does vector by vector.
//!
//! The order of gates is PyTorch's: r, z, n.

use super::Cell;
use crate::cpu::Real;
use crate::cpu::lanes::Simd;

/// σ(x) = 1/(1 + e⁻ˣ). At −∞ the exponential is infinite, and the result 0.
fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

impl Cell {
    /// The new state from the gates of x and of h, and the state before; what is saved goes to `saved`.
    pub(super) fn forward<R: Real>(self, a: [R; 3], c: [R; 3], h: R, saved: &mut [R; 4]) -> R {
        match self {
            Cell::Gru => {
                let (r, z) = (sigmoid(a[0] + c[0]), sigmoid(a[1] + c[1]));
                let n = (a[2] + r * c[2]).tanh();
                *saved = [r, z, n, c[2]];
                (R::ONE - z) * n + z * h
            }
            Cell::Tanh => (a[0] + c[0]).tanh(),
            Cell::Relu => (a[0] + c[0]).maximum(R::ZERO),
            Cell::Identity => a[0] + c[0],
        }
    }

    /// From the gradient of the new state: those of the gates of x and of h, and of the state before as far as it does
    /// not go through W_hh. `before` and `after` are the states.
    pub(super) fn backward<R: Real>(self, d: R, saved: [R; 4], before: R, after: R) -> ([R; 3], [R; 3], R) {
        let all = |x: R| ([x, R::ZERO, R::ZERO], [x, R::ZERO, R::ZERO], R::ZERO);
        match self {
            Cell::Gru => {
                let [r, z, n, c] = saved;
                let dn = d * (R::ONE - z) * (R::ONE - n * n);
                let dz = d * (before - n) * z * (R::ONE - z);
                let dr = dn * c * r * (R::ONE - r);
                ([dr, dz, dn], [dr, dz, dn * r], d * z)
            }
            Cell::Tanh => all(d * (R::ONE - after * after)),
            Cell::Relu => all(if after > R::ZERO { d } else { R::ZERO }),
            Cell::Identity => all(d),
        }
    }

    /// [`Cell::forward`] of a vector of units.
    #[inline(always)]
    pub(super) fn forward_vector<R: Real, S: Simd<R>>(
        self,
        s: S,
        a: [S::V; 3],
        c: [S::V; 3],
        h: S::V,
    ) -> (S::V, [S::V; 4]) {
        let zero = s.splat(R::ZERO);
        match self {
            Cell::Gru => {
                let (r, z) = (sigmoid_vector(s, a[0] + c[0]), sigmoid_vector(s, a[1] + c[1]));
                let n = tanh_vector(s, s.mul_add(r, c[2], a[2]));
                (s.mul_add(z, h - n, n), [r, z, n, c[2]])
            }
            Cell::Tanh => (tanh_vector(s, a[0] + c[0]), [zero; 4]),
            // The second operand where either is NaN, so that NaN stays.
            Cell::Relu => (s.max(zero, a[0] + c[0]), [zero; 4]),
            Cell::Identity => (a[0] + c[0], [zero; 4]),
        }
    }

    /// [`Cell::backward`] of a vector of units.
    #[inline(always)]
    pub(super) fn backward_vector<R: Real, S: Simd<R>>(
        self,
        s: S,
        d: S::V,
        [r, z, n, c]: [S::V; 4],
        (before, after): (S::V, S::V),
    ) -> ([S::V; 3], [S::V; 3], S::V) {
        let (zero, one) = (s.splat(R::ZERO), s.splat(R::ONE));
        let all = |x: S::V| ([x, zero, zero], [x, zero, zero], zero);
        match self {
            Cell::Gru => {
                let dn = d * (one - z) * (one - n * n);
                let dz = d * (before - n) * z * (one - z);
                let dr = dn * c * r * (one - r);
                ([dr, dz, dn], [dr, dz, dn * r], d * z)
            }
            Cell::Tanh => all(d * (one - after * after)),
            Cell::Relu => all(s.if_less(zero, after, d, zero)),
            Cell::Identity => all(d),
        }
    }
}

/// 1/(1 + 2^(−x·log₂e)).
#[inline(always)]
fn sigmoid_vector<R: Real, S: Simd<R>>(s: S, x: S::V) -> S::V {
    let one = s.splat(R::ONE);
    one / (one + s.exp2(x * s.splat(R::from_f64(-std::f64::consts::LOG2_E))))
}

/// 2·σ(2x) − 1: exact to a unit in the last place of 1, which is what the gates need.
#[inline(always)]
fn tanh_vector<R: Real, S: Simd<R>>(s: S, x: S::V) -> S::V {
    let two = s.splat(R::from_f64(2.0));
    two * sigmoid_vector(s, two * x) - s.splat(R::ONE)
}
