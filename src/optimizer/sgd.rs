//! Stochastic gradient descent with momentum, in the order of torch.optim.SGD (dampening 0, no Nesterov):
//! g ← g + decay·θ; b ← momentum·b + g; θ ← θ − lr·b. Without momentum nothing is kept: θ ← θ − lr·g.

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

// SAFETY: each thread touches the element of its index in buffers of n elements, and the first hyper-parameter.
const SOURCE: Source = unsafe { Source::new("sgd", include_str!("../../kernels/sgd.cu"), &["sgd", "sgd_momentum"]) };

/// The update; its buffers are parameters, gradients, b where there is momentum, hyper = [lr, …].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Part of the last direction that goes on; 0: none, and no buffer.
    pub momentum: f64,
    /// Part of each decayed parameter that is added to its gradient.
    pub weight_decay_l2: f64,
    /// How many elements, from the first on, decay ([`crate::Plan::parameter_elements`]).
    pub decayed: usize,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "sgd",
    summary: "gradient descent's update, with or without momentum",
    cases,
    run: None,
    attention: None,
};

impl Optimizer for Sgd {
    fn state(&self) -> &'static [&'static str] {
        if self.momentum > 0.0 { &["momentum_buffer"] } else { &[] }
    }

    fn hyper(&self, rate: f64, _: u64) -> [f64; 3] {
        [rate, 0.0, 0.0]
    }
}

impl Update for Sgd {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        let address = |i: usize| buffers[i].address;
        let (parameters, gradients, hyper) = (address(0), address(1), address(buffers.len() - 1));
        let n = buffers[0].numel();
        let (elements, decayed) = (n as i64, self.decayed as i64);
        let (l2, momentum) = (self.weight_decay_l2 as f32, self.momentum as f32);
        let module = Module::new(&SOURCE);
        if self.momentum > 0.0 {
            let arguments: &[&dyn crate::gpu::Argument] =
                &[&parameters, &gradients, &address(2), &hyper, &elements, &decayed, &l2, &momentum];
            return gpu.launch_flat(&module, "sgd_momentum", n, arguments);
        }
        gpu.launch_flat(&module, "sgd", n, &[&parameters, &gradients, &hyper, &elements, &decayed, &l2])
    }
}

impl<R: Real> CpuUpdate<R> for Sgd {
    fn update_cpu(&self, mut buffers: Vec<&mut [R]>, _: Mode) {
        let rate = buffers.pop().expect("hyper-parameters come last")[0];
        let (momentum, l2) = (R::from_f64(self.momentum), [R::from_f64(self.weight_decay_l2), R::ZERO]);
        let mut buffers = buffers.into_iter();
        match (buffers.next(), buffers.next(), buffers.next()) {
            (Some(theta), Some(g), Some(b)) => {
                for ([theta, g, b], l2) in split_behind(self.decayed, [theta, g, b]).into_iter().zip(l2) {
                    let parts = theta.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(b.par_chunks_mut(BLOCK));
                    parts.for_each(|((theta, g), b)| {
                        wide!(R, || {
                            for ((theta, &g), b) in theta.iter_mut().zip(g).zip(b) {
                                *b = *b * momentum + (g + l2 * *theta);
                                *theta -= rate * *b;
                            }
                        });
                    });
                }
            }
            (Some(theta), Some(g), None) => {
                for ([theta, g], l2) in split_behind(self.decayed, [theta, g]).into_iter().zip(l2) {
                    theta.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).for_each(|(theta, g)| {
                        wide!(R, || {
                            theta.iter_mut().zip(g).for_each(|(theta, &g)| *theta -= rate * (g + l2 * *theta));
                        });
                    });
                }
            }
            _ => panic!("parameters, gradients, [b], hyper"),
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |elements: usize, decayed: usize, momentum: f64| {
        let name = format!("{elements} elements, {decayed} decayed, momentum {momentum}");
        let parameters = Case::new(name, move |g| Ok(vec![g.trained("theta", &[elements], true)?]));
        let sgd = Sgd { momentum, weight_decay_l2: 0.1, decayed };
        parameters.followed_by(vec![Arc::new(sgd)], sgd.state().len(), |_| vec![0.01])
    };
    vec![case(1, 1, 0.0), case(1000, 300, 0.0), case(1, 0, 0.9), case(1000, 300, 0.9)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps worked out by hand for one decayed and one other parameter.
    #[test]
    fn steps_as_worked_out_by_hand() {
        let sgd = Sgd { momentum: 0.5, weight_decay_l2: 0.25, decayed: 1 };
        let (mut theta, mut b) = (vec![4.0, 4.0], vec![0.0; 2]);
        let mut step = |g: f64, theta: &mut Vec<f64>| {
            sgd.update_cpu(vec![theta, &mut [g, g], &mut b, &mut [0.5]], Mode::Fast);
            b.clone()
        };
        // Gradients 1 + 0.25·4 = 2 and 1.
        assert_eq!(step(1.0, &mut theta), [2.0, 1.0]);
        assert_eq!(theta, [3.0, 3.5]);
        // Gradients 1 + 0.75 and 1, beside half of what was.
        assert_eq!(step(1.0, &mut theta), [2.75, 1.5]);
        assert_eq!(theta, [1.625, 2.75]);
        let plain = Sgd { momentum: 0.0, ..sgd };
        plain.update_cpu(vec![&mut theta, &mut [1.0, 1.0], &mut [0.5]], Mode::Fast);
        assert_eq!(theta, [1.625 - 0.5 * (1.0 + 0.25 * 1.625), 2.25]);
    }
}
