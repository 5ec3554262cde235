//! The command line: one file a command.

pub mod devices;
pub mod kernels;
