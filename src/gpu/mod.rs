//! Devices that execute the kernels in `kernels/`: a GPU through cudarc, or a CPU through the emulator.

pub mod arguments;
pub mod cuda;
mod device;
pub mod driver;
pub mod emulator;
pub mod kernel;
pub mod modules;
pub mod recorder;

pub use arguments::{Argument, View};
pub use device::Gpu;
pub use driver::{Driver, Launch, Matmul};
pub use kernel::{Module, Source};
