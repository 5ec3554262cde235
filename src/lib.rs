//! Attention kernels, driven from Rust.

pub mod error;
pub mod gpu;

pub use error::{Error, Result};
