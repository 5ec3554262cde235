//! Launches: a block a sequence.

use super::{HeadPooling, Sizes};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Source};
use crate::op::*;

// SAFETY: sequences, places, heads and columns are compared with the sizes that the launch code takes from the places;
// tokens and lengths lie in the ranges that the graph declares and the plan enforces; scratch is as large as `Scratch` says.
const SOURCE: Source = unsafe {
    Source::new(
        "head_pooling",
        include_str!("../../../kernels/head_pooling.cu"),
        &[
            "head_pooling_forward",
            "head_pooling_backward",
            "head_pooling_backward_heads",
            "head_pooling_backward_table",
            "head_pooling_backward_positions",
        ],
    )
};

/// What backward keeps between its launches.
pub(super) struct Scratch {
    /// Where each sequence's dH (B,h,E) begins.
    heads: usize,
    /// Where dx (B,T,E) begins.
    x: usize,
    /// All of it; ds (B,h,T) comes first.
    pub elements: usize,
}

impl Scratch {
    pub fn of(s: &Sizes) -> Scratch {
        let heads = s.batch * s.heads * s.length;
        let x = heads + s.batch * s.heads * s.width;
        Scratch { heads, x, elements: x + s.batch * s.length * s.width }
    }
}

impl GpuOp for HeadPooling {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (tokens, heads) = (&io.inputs[0], &io.inputs[3]);
        let s = Sizes::of(&tokens.shape, &heads.shape);
        let positions = io.inputs.get(4).map_or(0, |p| p.address);
        let arguments: [&dyn Argument; 10] = [
            &tokens.address,
            &io.inputs[1].address,
            &io.inputs[2].address,
            &heads.address,
            &positions,
            &io.outputs[0].address,
            &io.outputs[1].address,
            &(s.length as i32),
            &(s.width as i32),
            &(s.heads as i32),
        ];
        let launch = Launch { grid: [s.batch as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        gpu.launch(&gpu.module(&SOURCE), "head_pooling_forward", launch, &arguments)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let (tokens, lengths, heads) = (&io.inputs[0], &io.inputs[1], &io.inputs[3]);
        let s = Sizes::of(&tokens.shape, &heads.shape);
        let Scratch { heads: heads_at, x: x_at, .. } = Scratch::of(&s);
        let of_element = |at: usize| io.scratch.address + 4 * at as u64;
        let (ds, d_h, dx) = (of_element(0), of_element(heads_at), of_element(x_at));
        let d_positions = io.d_inputs.get(4).and_then(Option::as_ref);
        let with_x = io.d_inputs[2].is_some() || d_positions.is_some();
        let positions = io.inputs.get(4).map_or(0, |p| p.address);
        let (length, width, count) = (s.length as i32, s.width as i32, s.heads as i32);
        let module = gpu.module(&SOURCE);
        let arguments: [&dyn Argument; 14] = [
            &tokens.address,
            &lengths.address,
            &io.inputs[2].address,
            &heads.address,
            &positions,
            &io.outputs[0].address,
            &io.outputs[1].address,
            &dy.address,
            &ds,
            &d_h,
            &if with_x { dx } else { 0u64 },
            &length,
            &width,
            &count,
        ];
        let launch = Launch { grid: [s.batch as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        gpu.launch(&module, "head_pooling_backward", launch, &arguments)?;
        let batch = s.batch as i32;
        if let Some(d) = &io.d_inputs[3] {
            let to = gpu.added(d)?.address;
            let arguments: [&dyn Argument; 5] = [&d_h, &to, &batch, &width, &count];
            gpu.launch_flat(&module, "head_pooling_backward_heads", s.width * s.heads, &arguments)?;
        }
        if let Some(d) = &io.d_inputs[2] {
            let to = gpu.added(d)?.address;
            let places = s.batch * s.length;
            let arguments: [&dyn Argument; 7] =
                [&tokens.address, &lengths.address, &dx, &to, &(places as i64), &length, &width];
            let grid = [places.div_ceil(8) as u32, s.width.div_ceil(128) as u32, 1];
            let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
            gpu.launch(&module, "head_pooling_backward_table", launch, &arguments)?;
        }
        if let Some(d) = d_positions {
            let to = gpu.added(d)?.address;
            let n = s.length * s.width;
            let arguments: [&dyn Argument; 6] = [&dx, &lengths.address, &to, &batch, &(n as i64), &width];
            gpu.launch_flat(&module, "head_pooling_backward_positions", n, &arguments)?;
        }
        Ok(())
    }
}
