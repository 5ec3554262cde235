//! What happens between backward and the next step: gradients are clipped, parameters updated.
//!
//! Optimisers have torch.optim's formulas, in its order of operations. What changes from step to step lies in
//! hyper-parameters on the device ([`crate::Plan::write_hyper`]), so that a captured step can be replayed: the learning
//! rate, two corrections that Adam's optimisers need, and a place for the gradients' norm.

pub mod adagrad;
pub mod adam;
pub mod adamw;
pub mod clip;
mod settings;
pub mod sgd;

pub use adagrad::Adagrad;
pub use adam::Adam;
pub use adamw::AdamW;
pub use clip::ClipGradientNorm;
pub use settings::{OptimizerName, OptimizerSettings};
pub use sgd::Sgd;

use crate::op::Update;

/// The hyper-parameter that receives the gradients' norm.
pub const NORM: usize = 3;

/// An update that follows the gradients.
pub trait Optimizer: Update {
    /// Its parameter-sized buffers, as PyTorch calls them; all start as zeros.
    fn state(&self) -> &'static [&'static str];
    /// What to write as hyper-parameters for step `t`, the first being 1.
    fn hyper(&self, rate: f64, t: u64) -> [f64; 3];
}

/// Elements that a thread of the CPU takes at a time.
const BLOCK: usize = 1 << 14;

/// Each buffer up to the end of the elements that have weight decay, and each from there on.
fn split_behind<R, const N: usize>(decayed: usize, buffers: [&mut [R]; N]) -> [[&mut [R]; N]; 2] {
    let mut tails = buffers;
    let heads = tails.each_mut().map(|buffer| {
        let whole = std::mem::take(buffer);
        let (head, tail) = whole.split_at_mut(decayed.min(whole.len()));
        *buffer = tail;
        head
    });
    [heads, tails]
}
