//! The launches of the fused feed-forward layer; `kernels/ffnn.cu`. The one large gradient, that of the first weight, is
//! the library's product.

use super::{Ffnn, Sizes};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Matmul, Module, Source};
use crate::op::*;
use crate::ops::linear::activation_define;
use crate::precision::Precision;
use bytemuck::{Pod, Zeroable};

// SAFETY: rows, inputs, hidden units and outputs are compared with the sizes that the launch code takes from the places;
// the contract bounds the latter two by what the tiles hold.
const SOURCE: Source = unsafe {
    Source::new("ffnn", include_str!("../../../kernels/ffnn.cu"), &["ffnn_forward", "ffnn_backward", "ffnn_sums"])
};

/// Rows of a tile; mirrors the kernel's ROWS.
const ROWS: usize = 32;
/// Blocks of backward, at most: each has partial sums of its own, which a last launch adds.
const PARTIALS: usize = 128;

/// Blocks of backward: one even for no rows, where gradients are written as zeros.
fn parts(rows: usize) -> usize {
    rows.div_ceil(ROWS).min(PARTIALS)
}

/// Sums of dW2, db2 and db1.
fn sums(s: &Sizes) -> usize {
    s.outputs * s.hidden + s.outputs + s.hidden
}

/// dz, and each block's sums.
pub(super) fn scratch_backward(s: &Sizes) -> usize {
    s.rows * s.hidden + parts(s.rows) * sums(s)
}

/// `Inputs` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Inputs {
    tensors: [u64; 5],
    rows: i64,
    inputs: i32,
    hidden: i32,
    outputs: i32,
    unused: i32,
}

/// `Targets` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Targets {
    to: [u64; 3],
    accumulate: [i32; 3],
    unused: i32,
}

impl Ffnn {
    fn module(&self, gpu: &Gpu, s: &Sizes) -> Module {
        let activation = activation_define(Some(self.activation));
        gpu.module(&SOURCE).define("ACTIVATION", activation).define("UNITS", s.hidden.div_ceil(32))
    }
}

fn inputs(s: &Sizes, places: &[Place]) -> Inputs {
    Inputs {
        tensors: std::array::from_fn(|i| places[i].address),
        rows: s.rows as i64,
        inputs: s.inputs as i32,
        hidden: s.hidden as i32,
        outputs: s.outputs as i32,
        unused: 0,
    }
}

fn blocks(count: usize) -> Launch {
    Launch { grid: [count as u32, 1, 1], block: [256, 1, 1], shared: 0 }
}

impl GpuOp for Ffnn {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let s = Sizes::of(&io.inputs[0].shape, &io.inputs[3].shape);
        let arguments: [&dyn Argument; 2] = [&inputs(&s, &io.inputs), &io.outputs[0].address];
        gpu.launch(&self.module(gpu, &s), "ffnn_forward", blocks(s.rows.div_ceil(ROWS)), &arguments)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let s = Sizes::of(&io.inputs[0].shape, &io.inputs[3].shape);
        let (module, parts) = (self.module(gpu, &s), parts(s.rows));
        let dz = io.scratch.address;
        let partial = dz + 4 * (s.rows * s.hidden) as u64;
        let (dx, accumulate) = io.d_inputs[0].as_ref().map_or((0, 0), |d| (d.to.address, d.accumulate as i32));
        gpu.launch(
            &module,
            "ffnn_backward",
            blocks(parts),
            &[&inputs(&s, &io.inputs), &dy.address, &dz, &dx, &accumulate, &partial],
        )?;
        let target = [3, 4, 2].map(|i| io.d_inputs[i].as_ref());
        if target.iter().any(Option::is_some) {
            let targets = Targets {
                to: target.map(|d| d.map_or(0, |d| d.to.address)),
                accumulate: target.map(|d| d.is_some_and(|d| d.accumulate) as i32),
                unused: 0,
            };
            gpu.launch(
                &module,
                "ffnn_sums",
                blocks(sums(&s).div_ceil(256)),
                &[&partial, &(parts as i32), &(s.hidden as i32), &(s.outputs as i32), &targets],
            )?;
        }
        let Some(dw) = &io.d_inputs[1] else { return Ok(()) };
        gpu.matmul(&Matmul {
            m: s.hidden,
            n: s.inputs,
            k: s.rows,
            a: dz,
            lda: s.hidden,
            transpose_a: true,
            b: io.inputs[0].address,
            ldb: s.inputs,
            transpose_b: false,
            c: dw.to.address,
            ldc: s.inputs,
            beta: dw.accumulate as i32 as f32,
            factors: gpu.storage(),
            product: Precision::F32,
        })
    }
}
