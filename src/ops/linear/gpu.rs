//! Launches of the linear layer: the library's products, and `kernels/linear.cu` for what they leave over.

use super::{Activation, Linear, WeightLayout};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Matmul, Module, Source};
use crate::op::*;
use crate::precision::Precision;

// SAFETY: rows and columns are compared with the sizes that the launch code takes from the places; `sums` holds as many
// rows as there are blocks.
const SOURCE: Source = unsafe {
    Source::new(
        "linear",
        include_str!("../../../kernels/linear.cu"),
        &["linear_epilogue", "linear_column_sums", "linear_sum_partials"],
    )
};

/// Rows that a block of the epilogue covers; mirrors the kernel's ROWS.
const ROWS: usize = 32;
/// Rows that one block of the column sums adds up, at least.
const CHUNK: usize = 128;
/// Partial sums of a column, at most: a second launch of one block a column adds them.
const PARTIALS: usize = 256;

/// Into how many partial sums the rows go.
pub(super) fn partials(rows: usize) -> usize {
    rows.div_ceil(CHUNK).min(PARTIALS)
}

/// ACTIVATION of `kernels/activation.cuh`.
pub(crate) fn activation_define(activation: Option<Activation>) -> i32 {
    match activation {
        None => 0,
        Some(Activation::GeluTanh) => 1,
        Some(Activation::GeluErf) => 2,
        Some(Activation::Relu) => 3,
        Some(Activation::Tanh) => 4,
    }
}

impl Linear {
    fn module(&self, gpu: &Gpu) -> Module {
        let activation = activation_define(self.activation);
        gpu.module(&SOURCE).define("BIAS", self.bias as i32).define("ACTIVATION", activation)
    }
}

/// Elements of scratch that [`sum_columns`] needs.
pub(crate) fn sum_scratch(rows: usize, columns: usize) -> usize {
    partials(rows) * columns
}

/// Sums of the columns of a contiguous f32 matrix into a gradient, itself f32.
pub(crate) fn sum_columns(
    gpu: &Gpu,
    matrix: u64,
    (rows, columns): (usize, usize),
    scratch: u64,
    to: &Gradient<Place>,
) -> Result<()> {
    let module = Module::new(&SOURCE).define("BIAS", 0).define("ACTIVATION", 0);
    let parts = partials(rows).max(1);
    let blocks =
        |parts: usize| Launch { grid: [parts as u32, columns.div_ceil(32) as u32, 1], block: [256, 1, 1], shared: 0 };
    let sum = |from: u64, rows: usize, parts: usize, sums: u64, accumulate: bool| {
        let (chunk, accumulate) = (rows.div_ceil(parts) as i32, accumulate as i32);
        let arguments: [&dyn Argument; 8] =
            [&from, &0u64, &0u64, &(rows as i64), &(columns as i32), &chunk, &sums, &accumulate];
        gpu.launch(&module, "linear_column_sums", blocks(parts), &arguments)
    };
    if parts == 1 {
        return sum(matrix, rows, 1, to.to.address, to.accumulate);
    }
    sum(matrix, rows, parts, scratch, false)?;
    sum(scratch, parts, 1, to.to.address, to.accumulate)
}

impl GpuOp for Linear {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, weight, y) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
        let s = self.sizes(&x.shape, &weight.shape);
        gpu.matmul(&Matmul {
            m: s.rows,
            n: s.outputs,
            k: s.inputs,
            a: x.address,
            lda: s.inputs,
            transpose_a: false,
            b: weight.address,
            ldb: weight.shape[1],
            transpose_b: self.weight == WeightLayout::OutIn,
            c: y.address,
            ldc: s.outputs,
            beta: 0.0,
            factors: gpu.storage(),
            product: gpu.storage(),
        })?;
        if !self.bias && self.activation.is_none() {
            return Ok(());
        }
        let bias = if self.bias { io.inputs[2].address } else { 0 };
        let slope = io.saved.first().map_or(0, |p| p.address);
        let grid = [s.rows.div_ceil(ROWS) as u32, s.outputs.div_ceil(32) as u32, 1];
        gpu.launch(
            &self.module(gpu),
            "linear_epilogue",
            Launch { grid, block: [256, 1, 1], shared: 0 },
            &[&y.address, &bias, &slope, &(s.rows as i64), &(s.outputs as i32)],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let (x, weight) = (&io.inputs[0], &io.inputs[1]);
        let s = self.sizes(&x.shape, &weight.shape);
        let d_bias = io.d_inputs.get(2).and_then(Option::as_ref);
        let slope = io.saved.first().map_or(0, |p| p.address);
        let dz = if self.activation.is_some() { io.scratch.address } else { dy.address };

        if self.activation.is_some() || d_bias.is_some() {
            let parts = partials(s.rows);
            let partial_sums =
                io.scratch.address + if self.activation.is_some() { 4 * (s.rows * s.outputs) as u64 } else { 0 };
            let (module, columns) = (self.module(gpu), s.outputs as i32);
            let blocks = |parts: usize| Launch {
                grid: [parts as u32, s.outputs.div_ceil(32) as u32, 1],
                block: [256, 1, 1],
                shared: 0,
            };
            let sum = |parts: usize, to: u64, accumulate: bool| {
                let (rows, chunk) = (s.rows as i64, s.rows.div_ceil(parts.max(1)) as i32);
                let arguments: [&dyn Argument; 8] =
                    [&dy.address, &slope, &dz, &rows, &columns, &chunk, &to, &(accumulate as i32)];
                gpu.launch(&module, "linear_column_sums", blocks(parts), &arguments)
            };
            match d_bias {
                None => sum(parts, 0, false)?,
                // One block even for no rows: the gradient is then written as zeros.
                Some(d) if parts <= 1 => sum(1, d.to.address, d.accumulate)?,
                Some(d) => {
                    sum(parts, partial_sums, false)?;
                    let arguments: [&dyn Argument; 5] =
                        [&partial_sums, &(parts as i32), &columns, &d.to.address, &(d.accumulate as i32)];
                    gpu.launch(&module, "linear_sum_partials", blocks(1), &arguments)?;
                }
            }
        }
        let beta = |accumulate: bool| accumulate as i32 as f32;
        if let Some(dx) = &io.d_inputs[0] {
            gpu.matmul(&Matmul {
                m: s.rows,
                n: s.inputs,
                k: s.outputs,
                a: dz,
                lda: s.outputs,
                transpose_a: false,
                b: weight.address,
                ldb: weight.shape[1],
                transpose_b: self.weight == WeightLayout::InOut,
                c: dx.to.address,
                ldc: s.inputs,
                beta: beta(dx.accumulate),
                factors: gpu.storage(),
                product: gpu.storage(),
            })?;
        }
        if let Some(dw) = &io.d_inputs[1] {
            let x_rows = (x.address, s.inputs);
            let dz_rows = (dz, s.outputs);
            let ((a, m), (b, n)) =
                if self.weight == WeightLayout::OutIn { (dz_rows, x_rows) } else { (x_rows, dz_rows) };
            gpu.matmul(&Matmul {
                m,
                n,
                k: s.rows,
                a,
                lda: m,
                transpose_a: true,
                b,
                ldb: n,
                transpose_b: false,
                c: dw.to.address,
                ldc: n,
                beta: beta(dw.accumulate),
                factors: gpu.storage(),
                product: Precision::F32,
            })?;
        }
        Ok(())
    }
}
