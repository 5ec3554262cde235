//! Files: tensors in the safetensors format, and writing that leaves nothing half-written.

mod atomic;
pub mod tensors;

pub use atomic::{Target, write_atomically};
