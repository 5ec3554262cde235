//! Attention kernels, driven from Rust.

#![warn(missing_docs)]

pub mod case;
pub mod cli;
pub mod cpu;
pub mod data;
pub mod device;
pub mod error;
pub mod gpu;
pub mod graph;
pub mod io;
pub mod model;
pub mod op;
pub mod ops;
pub mod optimizer;
pub mod philox;
pub mod plan;
pub mod run_spec;
pub mod train;
pub mod validate;

pub use device::Device;
pub use error::{Error, Result};
pub use graph::{Graph, Tensor};
pub use op::Op;
pub use plan::{Plan, PlanOptions};
