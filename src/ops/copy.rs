//! y = x. Nothing is saved. dx = dy.
//!
//! Makes a view contiguous, and keeps gradients apart where one tensor is used twice by an op.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;

// SAFETY: each thread touches one element, whose index is below the sizes that the launch code takes from the place.
const SOURCE: Source = unsafe { Source::new("copy", include_str!("../../kernels/copy.cu"), &["copy_strided"]) };

/// y = x.
#[derive(Debug, Clone, Copy)]
pub struct Copy;

/// In the registry.
pub static ENTRY: Entry = Entry { name: "copy", summary: "y = x", cases, run: None, attention: None };

impl Op for Copy {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 1, "x")?;
        expect(self.name(), "x", inputs[0], Spec::real(inputs[0].shape.clone()))?;
        let outputs = vec![Output::real(inputs[0].shape.clone())];
        Ok(Contract { outputs, backward_reads_inputs: vec![false], ..Default::default() })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let bytes = 8.0 * inputs[0].numel() as f64;
        Cost { forward_bytes: bytes, backward_bytes: bytes, ..Default::default() }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// Every index but the last axis's, in order.
fn rows(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    let leading = &shape[..shape.len().saturating_sub(1)];
    (0..leading.iter().product::<usize>()).map(move |mut i| {
        let mut index = vec![0; leading.len()];
        for axis in (0..leading.len()).rev() {
            index[axis] = i % leading[axis];
            i /= leading[axis];
        }
        index
    })
}

impl<R: Real> CpuOp<R> for Copy {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let x = io.inputs[0].real();
        let y = io.outputs[0].contiguous();
        let columns = x.shape.last().copied().unwrap_or(1).max(1);
        for (index, y) in rows(x.shape).zip(y.chunks_exact_mut(columns)) {
            y.copy_from_slice(if x.shape.is_empty() { x.data } else { x.row(&index) });
        }
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return };
        let columns = dx.to.shape.last().copied().unwrap_or(1).max(1);
        for (index, dy) in rows(dx.to.shape).zip(dy.all().chunks_exact(columns)) {
            // SAFETY: each row is visited once, on this thread.
            let row = unsafe { dx.to.row(&index) };
            if dx.accumulate {
                row.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy);
            } else {
                row.copy_from_slice(dy);
            }
        }
    }
}

/// Four axes: sizes and strides, padded in front with 1.
fn four(place: &Place) -> [i64; 8] {
    let mut out = [1i64, 1, 1, 1, 0, 0, 0, 0];
    let skip = 4 - place.shape.len();
    for axis in 0..place.shape.len() {
        out[skip + axis] = place.shape[axis] as i64;
        out[4 + skip + axis] = place.strides[axis] as i64;
    }
    out
}

pub(crate) fn launch(gpu: &Gpu, from: &Place, to: &Place, accumulate: bool) -> Result<()> {
    let (n, accumulate) = (to.numel(), accumulate as i32);
    let (from_axes, to_axes) = (four(from), four(to));
    gpu.launch_flat(
        &gpu.module(&SOURCE),
        "copy_strided",
        n,
        &[&from.address, &from_axes, &to.address, &to_axes, &(n as i64), &accumulate],
    )
}

impl GpuOp for Copy {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        launch(gpu, &io.inputs[0], &io.outputs[0], false)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        launch(gpu, dy, &dx.to, dx.accumulate)
    }
}

fn cases() -> Vec<Case> {
    let contiguous = Case::new("contiguous", |g| {
        let x = g.normal("x", &[3, 37]);
        g.record(Copy, &[x])
    });
    let view = Case::new("view of packed columns", |g| {
        let x = g.normal("x", &[2, 5, 24]);
        let part = g.heads(x, 8..16, 2)?;
        g.record(Copy, &[part])
    });
    vec![contiguous, view]
}
