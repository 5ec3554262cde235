//! Files: tensors in the safetensors format and in PyTorch's, and writing that leaves nothing half-written.

mod atomic;
pub mod pytorch;
pub mod tensors;

pub use atomic::{Target, write_atomically};
