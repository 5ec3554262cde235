//! Adam (Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015), in the order of torch.optim.Adam, whose
//! weight decay is an L2 penalty's gradient: g ← g + decay·θ; m ← m + (1 − β1)·(g − m); v ← β2·v + (1 − β2)·g²;
//! θ ← θ − lr/(1 − β1^t) · m / (√v / √(1 − β2^t) + ε). (AdamW's decay does not pass
//! through m and v.) The kernel is AdamW's, which has both kinds of decay.

use super::Optimizer;
use super::adamw::{MEANS, Means, hyper};
use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::op::*;
use crate::ops::Entry;
use std::sync::Arc;

/// The update; its buffers are parameters, gradients, m, v, hyper = [lr, 1 − β1^t, 1 − β2^t, …].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// How slowly the mean of gradients follows.
    pub beta1: f64,
    /// How slowly the mean of squares follows.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Part of each decayed parameter that is added to its gradient.
    pub weight_decay_l2: f64,
    /// How many elements, from the first on, decay ([`crate::Plan::parameter_elements`]).
    pub decayed: usize,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "adam", summary: "Adam's update, weight decay in the gradient", cases, run: None, attention: None };

impl Adam {
    /// torch.optim.Adam's constants.
    pub const TORCH: Adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay_l2: 0.0, decayed: 0 };

    fn means(&self) -> Means {
        let Adam { beta1, beta2, eps, weight_decay_l2, decayed } = *self;
        Means { beta1, beta2, eps, shrink: 0.0, l2: weight_decay_l2, decayed }
    }
}

impl Optimizer for Adam {
    fn state(&self) -> &'static [&'static str] {
        MEANS
    }

    fn hyper(&self, rate: f64, t: u64) -> [f64; 3] {
        hyper(rate, t, self.beta1, self.beta2)
    }
}

impl Update for Adam {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        self.means().update_gpu(gpu, buffers)
    }
}

impl<R: Real> CpuUpdate<R> for Adam {
    fn update_cpu(&self, buffers: Vec<&mut [R]>, _: Mode) {
        self.means().update_cpu(buffers);
    }
}

fn cases() -> Vec<Case> {
    let case = |elements: usize, decayed: usize| {
        let name = format!("{elements} elements, {decayed} decayed");
        let parameters = Case::new(name, move |g| Ok(vec![g.trained("theta", &[elements], true)?]));
        let adam = Adam { decayed, weight_decay_l2: 0.1, ..Adam::TORCH };
        parameters.followed_by(vec![Arc::new(adam)], MEANS.len(), |t| Adam::TORCH.hyper(0.01, t).to_vec())
    };
    vec![case(1, 1), case(1000, 0), case(1000, 300)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step worked out by hand: the decayed parameter's gradient is 2 + 0.5·4 = 4, the other's 2. Both move by the
    /// rate, as m/√v of one gradient is its sign; m and v tell them apart.
    #[test]
    fn a_step_as_worked_out_by_hand() {
        let adam = Adam { beta1: 0.5, beta2: 0.75, eps: 0.0, weight_decay_l2: 0.5, decayed: 1 };
        let (mut theta, mut m, mut v) = (vec![4.0, 4.0], vec![0.0; 2], vec![0.0; 2]);
        let step = |t: u64, g: f64, theta: &mut Vec<f64>, m: &mut Vec<f64>, v: &mut Vec<f64>| {
            let (mut g, mut hyper) = (vec![g; 2], adam.hyper(0.1, t).to_vec());
            adam.update_cpu(vec![theta, &mut g, m, v, &mut hyper], Mode::Fast);
        };
        step(1, 2.0, &mut theta, &mut m, &mut v);
        assert_eq!((&m[..], &v[..]), (&[2.0, 1.0][..], &[4.0, 1.0][..]));
        assert!(theta.iter().all(|x| (x - 3.9f64).abs() < 1e-15), "{theta:?}");
        // g = −1.95 + 0.5·3.9 = 0 for the decayed: m = 1, corrected 4/3; v = 3, corrected 48/7.
        step(2, -1.95, &mut theta, &mut m, &mut v);
        let moved = 0.1 * (4.0 / 3.0) / (48.0f64 / 7.0).sqrt();
        assert!((theta[0] - (3.9 - moved)).abs() < 1e-14, "{theta:?}");
    }
}
