//! NVIDIA GPUs: the driver over cudarc, the compiler (NVRTC), the cubin cache and the kernel gate.
//! Nothing here needs a CUDA toolkit to build; whatever is missing at run time is an error with its remedy.

pub mod arch;
pub mod cache;
mod cublaslt;
mod devices;
mod driver;
pub mod gate;
pub mod install;
mod library;
mod loaded;
pub mod machine;
pub mod nvdisasm;
pub mod nvrtc;
mod report;
pub mod sass;
mod upload;
mod usage;

pub use arch::Arch;
pub use devices::{CudaDevice, devices};
pub use driver::Cuda;
