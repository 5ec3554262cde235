//! Adagrad (Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", JMLR
//! 2011, section 1.1), as torch.optim.Adagrad with lr_decay 0 and an initial sum of 0: g ← g + decay·θ; s ← s + g²;
//! θ ← θ − lr·g / (√s + ε).

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

// SAFETY: each thread touches the element of its index in three buffers of n elements, and the first hyper-parameter.
const SOURCE: Source = unsafe { Source::new("adagrad", include_str!("../../kernels/adagrad.cu"), &["adagrad"]) };

/// The update; its buffers are parameters, gradients, s, hyper = [lr, …].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adagrad {
    /// Added to the root.
    pub eps: f64,
    /// Part of each decayed parameter that is added to its gradient.
    pub weight_decay_l2: f64,
    /// How many elements, from the first on, decay ([`crate::Plan::parameter_elements`]).
    pub decayed: usize,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "adagrad", summary: "Adagrad's update of all parameters", cases, run: None, attention: None };

impl Optimizer for Adagrad {
    fn state(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn hyper(&self, rate: f64, _: u64) -> [f64; 3] {
        [rate, 0.0, 0.0]
    }
}

impl Update for Adagrad {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        let [parameters, gradients, sum, hyper] = [0, 1, 2, 3].map(|i| buffers[i].address);
        let n = buffers[0].numel();
        let (elements, decayed) = (n as i64, self.decayed as i64);
        let (eps, l2) = (self.eps as f32, self.weight_decay_l2 as f32);
        let arguments: &[&dyn crate::gpu::Argument] =
            &[&parameters, &gradients, &sum, &hyper, &elements, &decayed, &eps, &l2];
        gpu.launch_flat(&Module::new(&SOURCE), "adagrad", n, arguments)
    }
}

impl<R: Real> CpuUpdate<R> for Adagrad {
    fn update_cpu(&self, buffers: Vec<&mut [R]>, _: Mode) {
        let Ok([parameters, gradients, sum, hyper]) = <[&mut [R]; 4]>::try_from(buffers) else {
            panic!("parameters, gradients, s, hyper")
        };
        let (rate, eps) = (hyper[0], R::from_f64(self.eps));
        let parts = split_behind(self.decayed, [parameters, gradients, sum]);
        for ([theta, g, sum], l2) in parts.into_iter().zip([R::from_f64(self.weight_decay_l2), R::ZERO]) {
            let parts = theta.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(sum.par_chunks_mut(BLOCK));
            parts.for_each(|((theta, g), sum)| {
                wide!(R, || {
                    for ((theta, &g), sum) in theta.iter_mut().zip(g).zip(sum) {
                        let g = g + l2 * *theta;
                        *sum += g * g;
                        *theta -= rate * (g / (sum.sqrt() + eps));
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
        let adagrad = Adagrad { eps: 1e-10, weight_decay_l2: 0.1, decayed };
        parameters.followed_by(vec![Arc::new(adagrad)], adagrad.state().len(), |_| vec![0.01])
    };
    vec![case(1, 1), case(1000, 0), case(1000, 300)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps worked out by hand for one decayed and one other parameter.
    #[test]
    fn steps_as_worked_out_by_hand() {
        let adagrad = Adagrad { eps: 1.0, weight_decay_l2: 0.5, decayed: 1 };
        let (mut theta, mut sum) = (vec![2.0, 2.0], vec![0.0; 2]);
        let mut step = |g: [f64; 2], theta: &mut Vec<f64>| {
            adagrad.update_cpu(vec![theta, &mut g.clone(), &mut sum, &mut [0.5]], Mode::Fast);
            sum.clone()
        };
        // Gradients 2 + 0.5·2 = 3 and 3: sums 9; each moves by 0.5·3/(3 + 1).
        assert_eq!(step([2.0, 3.0], &mut theta), [9.0, 9.0]);
        assert_eq!(theta, [1.625, 1.625]);
        // Gradients 3.1875 + 0.5·1.625 = 4 and 4: sums 25; each moves by 0.5·4/(5 + 1).
        assert_eq!(step([3.1875, 4.0], &mut theta), [25.0, 25.0]);
        assert!(theta.iter().all(|x| (x - (1.625 - 1.0 / 3.0)).abs() < 1e-15), "{theta:?}");
    }
}
