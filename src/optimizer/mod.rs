//! What happens between backward and the next step: gradients are clipped, parameters updated.
//!
//! Hyper-parameters ([`crate::Plan::write_hyper`]): learning rate, 1 − β1^t, 1 − β2^t, and a place for the gradient norm.

pub mod adamw;
pub mod clip;

pub use adamw::{AdamW, SLOTS};
pub use clip::ClipGradientNorm;

/// The hyper-parameter that receives the gradients' norm.
pub const NORM: usize = 3;
