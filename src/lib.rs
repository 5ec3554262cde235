//! Attention kernels written by hand in CUDA, driven from Rust, and proven on machines without a GPU.
//!
//! A model is recorded forward only on a [`Graph`]; a [`Plan`] places every buffer once on a [`Device`] and runs it
//! forward and backward. Devices are [`cpu::Cpu`] in f32 or f64, and [`gpu::Gpu`] over a driver: CUDA, or the emulator,
//! which runs the very same kernels on the CPU.
//!
//! # Run an op
//! ```
//! use attn_engine::{Graph, Plan, PlanOptions, cpu::Cpu, ops::softmax_attention::SoftmaxAttention};
//! use std::sync::Arc;
//! # fn main() -> attn_engine::Result<()> {
//! let mut g = Graph::new();
//! let q = g.variable("q", &[1, 2, 5, 8]); // batch, heads, queries, head_dim
//! let k = g.variable("k", &[1, 2, 7, 8]);
//! let v = g.variable("v", &[1, 2, 7, 3]);
//! let out = g.record(SoftmaxAttention::causal(true), &[q, k, v])?[0];
//!
//! let options = PlanOptions { roots: vec![out], keep: vec![out], ..Default::default() };
//! let plan = Plan::new(g, Arc::new(Cpu::<f32>::new(0)), &options)?;
//! plan.write(q, &[0.1; 80])?;
//! plan.write(k, &[0.2; 112])?;
//! plan.write(v, &[0.5; 42])?;
//! plan.forward()?;
//! assert!(plan.read(out)?.iter().all(|x| (x - 0.5).abs() < 1e-6));
//!
//! plan.seed(out, &[1.0; 30])?; // the gradient that flows in
//! plan.backward()?;
//! assert_eq!(plan.read_gradient(q)?.len(), 80);
//! # Ok(())
//! # }
//! ```
//!
//! # Bring an op of your own
//! A kernel, its twin on the CPU, what it costs, and cases: then it is validated, benchmarked and emulated like the
//! others. Here it runs on the emulator and is compared with its twin in f64.
//!
//! This one knows f32 only, and a device that stores 16 bits refuses it. Kernels that take `real` for `float`, `widen` what
//! they read and `narrow` what they write (`numbers.cuh`), launched from [`gpu::Gpu::module`], run on any device:
//! [`Op::precisions`] then says so.
//! ```
//! # use attn_engine::{Device, Op, Result, case::Case, cpu::Real, gpu::emulator::Emulator, gpu::{Gpu, Module, Source}};
//! # use attn_engine::{op::*, ops::Entry, validate::validate};
//! # use std::sync::Arc;
//! const TEXT: &str = r#"#include "prelude.cuh"
//! KERNEL(square, 256)(const float* x, float* y, int n) {
//!     int i = blockIdx.x * 256 + threadIdx.x;
//!     if (i < n) y[i] = x[i] * x[i];
//! }
//! KERNEL(square_backward, 256)(const float* x, const float* dy, float* dx, int n) {
//!     int i = blockIdx.x * 256 + threadIdx.x;
//!     if (i < n) dx[i] += 2.f * x[i] * dy[i];
//! }"#;
//! // SAFETY: every access is guarded by n, the number of elements.
//! const SOURCE: Source = unsafe { Source::new("square", TEXT, &["square", "square_backward"]) };
//!
//! #[derive(Debug)]
//! struct Square;
//!
//! impl Op for Square {
//!     fn name(&self) -> &'static str {
//!         "square"
//!     }
//!     fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
//!         Ok(Contract { outputs: vec![Output::real(inputs[0].shape.clone())], ..Default::default() })
//!     }
//!     fn cost(&self, inputs: &[&Spec]) -> Cost {
//!         Cost { forward_flops: inputs[0].numel() as f64, ..Default::default() }
//!     }
//! }
//! impl<R: Real> CpuOp<R> for Square {
//!     fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
//!         io.outputs[0].contiguous().iter_mut().zip(io.inputs[0].all()).for_each(|(y, &x)| *y = x * x);
//!     }
//!     fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
//!         let (Some(dy), Some(dx)) = (&io.d_outputs[0], io.d_inputs[0].take()) else { return };
//!         for ((dx, &dy), &x) in dx.added().iter_mut().zip(dy.all()).zip(io.inputs[0].all()) {
//!             *dx += (x + x) * dy;
//!         }
//!     }
//! }
//! impl GpuOp for Square {
//!     fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
//!         let (x, y) = (&io.inputs[0], &io.outputs[0]);
//!         gpu.launch_flat(&Module::new(&SOURCE), "square", x.numel(), &[&x.address, &y.address, &(x.numel() as i32)])
//!     }
//!     fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
//!         let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
//!         let (x, dx) = (&io.inputs[0], gpu.added(dx)?);
//!         let arguments: [&dyn attn_engine::gpu::Argument; 4] = [&x.address, &dy.address, &dx.address, &(x.numel() as i32)];
//!         gpu.launch_flat(&Module::new(&SOURCE), "square_backward", x.numel(), &arguments)
//!     }
//! }
//! fn cases() -> Vec<Case> {
//!     vec![Case::new("1000 numbers", |g| {
//!         let x = g.normal("x", &[1000]);
//!         g.record(Square, &[x])
//!     })]
//! }
//! static ENTRY: Entry = Entry { name: "square", summary: "y = x²", cases, run: None, attention: None };
//!
//! # fn main() -> Result<()> {
//! let device: Arc<dyn Device> = Arc::new(Gpu::new("emulator", Arc::new(Emulator::new(Default::default())?)));
//! let mut rows = Vec::new();
//! validate(&[&ENTRY], &device, &|_| vec![(String::new(), Box::new(|| ()))], &mut |new| rows.extend_from_slice(new))?;
//! assert!(rows.len() == 2 && rows.iter().all(|row| row.passed));
//! # Ok(())
//! # }
//! ```

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
pub mod plot;
pub mod precision;
pub mod probe;
pub mod run_spec;
pub mod train;
pub mod validate;
pub mod vectors;

pub use device::Device;
pub use error::{Error, Result};
pub use graph::{Graph, Tensor};
pub use op::Op;
pub use plan::{Plan, PlanOptions};
pub use precision::Precision;
