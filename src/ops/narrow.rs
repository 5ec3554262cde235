//! Rounds f32 parameters to the 16-bit copies that the ops of a 16-bit device read.

use crate::error::Result;
use crate::gpu::{Gpu, Source};

// SAFETY: each thread touches one element, whose index is below the number that the caller gives for both ranges.
const SOURCE: Source =
    unsafe { Source::new("narrow", include_str!("../../kernels/narrow.cu"), &["narrow_parameters"]) };

/// Launches it.
pub fn launch(gpu: &Gpu, from: u64, to: u64, elements: usize) -> Result<()> {
    gpu.launch_flat(&gpu.module(&SOURCE), "narrow_parameters", elements, &[&from, &to, &(elements as i64)])
}
