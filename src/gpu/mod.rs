//! Devices that execute the kernels in `kernels/`: a GPU through cudarc, or a CPU through the emulator.

pub mod driver;
pub mod emulator;
pub mod kernel;
