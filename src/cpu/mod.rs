//! The CPU: element types, vectorised functions, matrix products, tensors with strides.

mod device;
pub mod gemm;
pub mod lanes;
pub mod product;
pub mod real;
pub mod scratch;
pub mod simd;
pub mod strided;
pub mod tasks;

pub use device::{Cpu, Typed};
pub use gemm::{Gemm, Matrix, Threads};
pub use real::Real;
pub use strided::{Mut, Ref, Rows};
