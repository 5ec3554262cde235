//! AdamW (Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019), in the order of torch.optim.AdamW:
//! θ ← θ·(1 − lr·decay); m ← m + (1 − β1)·(g − m); v ← β2·v + (1 − β2)·g²;
//! θ ← θ − lr/(1 − β1^t) · m / (√v / √(1 − β2^t) + ε).

use super::{BLOCK, Optimizer, split_behind};
use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Module, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::wide;
use rayon::prelude::*;
use std::sync::Arc;

// SAFETY: each thread touches the element of its index in four buffers of n elements, and the first hyper-parameters.
const SOURCE: Source = unsafe { Source::new("adamw", include_str!("../../kernels/adamw.cu"), &["adamw"]) };

/// What PyTorch calls m and v.
pub(super) const MEANS: &[&str] = &["exp_avg", "exp_avg_sq"];

/// What to write as hyper-parameters for step `t`, the first being 1: the rate, 1 − β1^t, 1 − β2^t.
pub(super) fn hyper(rate: f64, t: u64, beta1: f64, beta2: f64) -> [f64; 3] {
    let correction = |beta: f64| 1.0 - beta.powf(t as f64);
    [rate, correction(beta1), correction(beta2)]
}

/// The update; its buffers are parameters, gradients, m, v, hyper = [lr, 1 − β1^t, 1 − β2^t, …].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How slowly the mean of gradients follows.
    pub beta1: f64,
    /// How slowly the mean of squares follows.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Part of each decayed parameter that is lost a step, times the learning rate.
    pub weight_decay: f64,
    /// How many elements, from the first on, decay ([`crate::Plan::parameter_elements`]).
    pub decayed: usize,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "adamw", summary: "the optimiser's update of all parameters", cases, run: None, attention: None };

impl AdamW {
    /// minGPT's constants; nothing decays until `decayed` is set.
    pub const MINGPT: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, decayed: 0 };

    fn means(&self) -> Means {
        let AdamW { beta1, beta2, eps, weight_decay, decayed } = *self;
        Means { beta1, beta2, eps, shrink: weight_decay, l2: 0.0, decayed }
    }
}

impl Optimizer for AdamW {
    fn state(&self) -> &'static [&'static str] {
        MEANS
    }

    fn hyper(&self, rate: f64, t: u64) -> [f64; 3] {
        hyper(rate, t, self.beta1, self.beta2)
    }
}

impl Update for AdamW {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        self.means().update_gpu(gpu, buffers)
    }
}

impl<R: Real> CpuUpdate<R> for AdamW {
    fn update_cpu(&self, buffers: Vec<&mut [R]>, _: Mode) {
        self.means().update_cpu(buffers);
    }
}

/// AdamW and Adam, which differ in where decay comes in alone.
pub(super) struct Means {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decayed parameters are first multiplied with 1 − rate·shrink.
    pub shrink: f64,
    /// Part of each decayed parameter that is added to its gradient.
    pub l2: f64,
    pub decayed: usize,
}

impl Means {
    /// Launches it; buffers as [`AdamW`]'s.
    pub fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        let [parameters, gradients, m, v, hyper] = [0, 1, 2, 3, 4].map(|i| buffers[i].address);
        let n = buffers[0].numel();
        gpu.launch_flat(
            &Module::new(&SOURCE),
            "adamw",
            n,
            &[
                &parameters,
                &gradients,
                &m,
                &v,
                &hyper,
                &(n as i64),
                &(self.decayed as i64),
                &((1.0 - self.beta1) as f32),
                &(self.beta2 as f32),
                &((1.0 - self.beta2) as f32),
                &(self.eps as f32),
                &(self.shrink as f32),
                &(self.l2 as f32),
            ],
        )
    }

    /// Runs it; buffers as [`AdamW`]'s.
    pub fn update_cpu<R: Real>(&self, buffers: Vec<&mut [R]>) {
        let Ok([parameters, gradients, m, v, hyper]) = <[&mut [R]; 5]>::try_from(buffers) else {
            panic!("parameters, gradients, m, v, hyper")
        };
        let rate = hyper[0];
        // Multiplied, not divided by: of the two divisions and the root per element, one less to wait for.
        let (step, over_root) = (rate / hyper[1], R::ONE / hyper[2].sqrt());
        let [one_minus_beta1, beta2, one_minus_beta2, eps] =
            [1.0 - self.beta1, self.beta2, 1.0 - self.beta2, self.eps].map(R::from_f64);
        let kept = R::ONE - rate * R::from_f64(self.shrink);
        let parts = split_behind(self.decayed, [parameters, gradients, m, v]);
        for ([theta, g, m, v], (kept, l2)) in parts.into_iter().zip([(kept, R::from_f64(self.l2)), (R::ONE, R::ZERO)]) {
            let parts = theta.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK));
            let means = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
            parts.zip(means).for_each(|((theta, g), (m, v))| {
                wide!(R, || {
                    for ((theta, &g), (m, v)) in theta.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                        let g = g + l2 * *theta;
                        *m += one_minus_beta1 * (g - *m);
                        *v = *v * beta2 + one_minus_beta2 * g * g;
                        *theta = *theta * kept - step * (*m / (v.sqrt() * over_root + eps));
                    }
                });
            });
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |elements: usize, decayed: usize| {
        let name = format!("{elements} elements, {decayed} decayed");
        let parameters = Case::new(name, move |g| Ok(vec![g.trained("theta", &[elements], true)?]));
        let adamw = AdamW { decayed, ..AdamW::MINGPT };
        parameters.followed_by(vec![Arc::new(adamw)], MEANS.len(), |t| AdamW::MINGPT.hyper(0.01, t).to_vec())
    };
    vec![case(1, 1), case(1000, 0), case(1000, 300)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps worked out by hand for one decayed and one other parameter.
    #[test]
    fn steps_as_worked_out_by_hand() {
        let adamw = AdamW { beta1: 0.5, beta2: 0.75, eps: 0.0, weight_decay: 0.5, decayed: 1 };
        let (mut theta, mut m, mut v) = (vec![1.0, 1.0], vec![0.0; 2], vec![0.0; 2]);
        let mut step = |t: u64, g: f64, theta: &mut Vec<f64>| {
            let (mut g, mut hyper) = (vec![g; 2], adamw.hyper(0.1, t).to_vec());
            adamw.update_cpu(vec![theta, &mut g, &mut m, &mut v, &mut hyper], Mode::Fast);
        };
        // Step 1: m = 1, v = 1; corrected 2 and 4: each moves by 0.1·2/√4 = 0.1 after the decay by 0.05.
        step(1, 2.0, &mut theta);
        assert!((theta[0] - 0.85).abs() < 1e-15 && (theta[1] - 0.9).abs() < 1e-15, "{theta:?}");
        // Step 2, g = −2: m = −0.5, corrected −2/3; v = 1.75, corrected 4: it moves by +0.1/3.
        step(2, -2.0, &mut theta);
        let moved = 0.1 / 3.0;
        assert!((theta[0] - (0.85 * 0.95 + moved)).abs() < 1e-15 && (theta[1] - (0.9 + moved)).abs() < 1e-15);
    }
}
