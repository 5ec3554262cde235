//! Launches of `kernels/softmax_attention.cu` and `softmax_attention_backward.cu`.

use super::tiles::{Tile, Tiles};
use super::{ENTRY, Extra, SoftmaxAttention};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Module, Source, View};
use crate::op::*;
use crate::ops::attention::{KernelSizes, Sizes};
use bytemuck::{Pod, Zeroable};

const FORWARD: &[&str] = &["softmax_attention_forward", "softmax_attention_merge", "softmax_attention_weights"];
const BACKWARD: &[&str] = &[
    "softmax_attention_delta",
    "softmax_attention_dq",
    "softmax_attention_dkdv",
    "softmax_attention_dq_of_sums",
    "softmax_attention_dbias",
];

// SAFETY: rows and columns are compared with the sizes before each access; those come from the places themselves,
// lengths are clamped to the number of keys, and cu_seqlens are checked where they come in.
const FORWARD_SOURCE: Source =
    unsafe { Source::new("softmax_attention", include_str!("../../../kernels/softmax_attention.cu"), FORWARD) };
// SAFETY: as above.
const BACKWARD_SOURCE: Source = unsafe {
    Source::new("softmax_attention_backward", include_str!("../../../kernels/softmax_attention_backward.cu"), BACKWARD)
};

/// Elements of scratch on a GPU, in forward and in backward.
pub(super) fn scratch(op: &SoftmaxAttention, s: &Sizes) -> (usize, usize) {
    let rows = s.batch * s.heads * s.queries;
    let parts = match splits(op, s) {
        1 => 0,
        n => n * rows * (s.value_dim + 1), // out and lse of each part
    };
    // delta, and the sums of dq.
    (parts, rows + if op.unordered { rows * s.key_dim } else { 0 })
}

/// Among how many blocks the keys are split: as many as fill a large GPU where queries and heads do not, and no part
/// under 256 keys. By shape alone, so that results do not depend on the device's size.
fn splits(op: &SoftmaxAttention, s: &Sizes) -> usize {
    const BLOCKS: usize = 128;
    let blocks = s.batch * s.heads * s.queries.div_ceil(64);
    let wanted = op.splits.unwrap_or_else(|| (BLOCKS / blocks.max(1)).min(s.keys / 256));
    // A part has a step of keys at least; and a grid has no more along z.
    wanted.min(s.keys.div_ceil(16)).clamp(1, 65_535)
}

/// Bits of the define FEATURES: what changes scores or hides keys, besides causality and key lengths.
mod features {
    pub const SOFTCAP: u32 = 1;
    pub const ALIBI: u32 = 2;
    pub const BIAS: u32 = 4;
    pub const MASK: u32 = 8;
    pub const WINDOW: u32 = 16;
    pub const DROPOUT: u32 = 32;
    pub const PACKED: u32 = 64;
}

/// `Options` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Options {
    lengths: u64,
    starts_q: u64,
    starts_k: u64,
    rng: u64,
    mask: u64,
    bias: u64,
    slopes: u64,
    mask_strides: [i64; 3],
    bias_strides: [i64; 3],
    scale: f32,
    softcap: f32,
    drop: f32,
    keep: f32,
    left: i32,
    right: i32,
    sequences: i32,
    stream: u32,
}

/// Strides of (B, H, T, S), 0 along the axes that are broadcast.
fn broadcast(place: &Place) -> [i64; 3] {
    [0, 1, 2].map(|axis| if place.shape[axis] == 1 { 0 } else { place.strides[axis] as i64 })
}

/// What a launch needs to know, besides where the tensors lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launcher {
    sizes: Sizes,
    options: Options,
    features: u32,
    splits: usize,
    unordered: bool,
}

/// Which of the two modules: backward's is another where dq is summed by the blocks of dk and dv.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
    Unordered,
}

impl Launcher {
    /// Without features.
    pub fn plain(sizes: Sizes, scale: f64, lengths: u64) -> Launcher {
        let options = Options { scale: scale as f32, lengths, ..Options::zeroed() };
        Launcher { sizes, options, features: 0, splits: 1, unordered: false }
    }

    /// Sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn of(op: &SoftmaxAttention, inputs: &[Place]) -> Launcher {
        let specs: Vec<Spec> = inputs[..3].iter().map(|p| Spec { kind: p.kind, shape: p.shape.clone() }).collect();
        let specs: Vec<&Spec> = specs.iter().collect();
        let sizes = Sizes::of(ENTRY.name, &specs, op.causal).expect("checked when recorded");
        let place = |extra: Extra| op.place_of(extra).map(|i| &inputs[i]);
        let address = |extra: Extra| place(extra).map_or(0, |p| p.address);
        let mut launcher = Launcher::plain(sizes, op.scale(sizes.key_dim), address(Extra::KeyLengths));
        launcher.splits = splits(op, &sizes);
        launcher.unordered = op.unordered;
        let Launcher { options: o, features, .. } = &mut launcher;
        if let Some((left, right)) = op.window {
            *features |= features::WINDOW;
            // Farther than all keys is as good as everywhere, and cannot overflow.
            (o.left, o.right) = (left.min(1 << 30) as i32, right.min(1 << 30) as i32);
        }
        if let Some(cap) = op.softcap {
            *features |= features::SOFTCAP;
            o.softcap = cap as f32;
        }
        if let Some(dropout) = op.dropout {
            *features |= features::DROPOUT;
            (o.drop, o.keep) = (dropout.p as f32, dropout.scale() as f32);
            (o.stream, o.rng) = (dropout.stream, address(Extra::Rng));
        }
        if let Some(bias) = place(Extra::Bias) {
            *features |= features::BIAS;
            (o.bias, o.bias_strides) = (bias.address, broadcast(bias));
        }
        if let Some(mask) = place(Extra::Mask) {
            *features |= features::MASK;
            (o.mask, o.mask_strides) = (mask.address, broadcast(mask));
        }
        if let Some(slopes) = place(Extra::AlibiSlopes) {
            *features |= features::ALIBI;
            o.slopes = slopes.address;
        }
        if let Some(starts) = place(Extra::CuSeqlensQ) {
            *features |= features::PACKED;
            (o.starts_q, o.starts_k) = (starts.address, address(Extra::CuSeqlensK));
            o.sequences = starts.numel() as i32 - 1;
        }
        launcher
    }

    fn tiles(&self, gpu: &Gpu) -> Tiles {
        // Largest products are largest scores only if the scale is positive: tensor cores' kernels compare products.
        let positive = self.options.scale > 0.0;
        Tiles::of(gpu, (self.sizes.key_dim, self.sizes.value_dim), positive, self.features != 0)
    }

    fn module(&self, gpu: &Gpu, pass: Pass) -> Module {
        let tiles = self.tiles(gpu);
        match pass {
            Pass::Forward => tiles.forward_module(gpu.module(&FORWARD_SOURCE)),
            Pass::Backward => tiles.backward_module(gpu.module(&BACKWARD_SOURCE), false),
            Pass::Unordered => tiles.backward_module(gpu.module(&BACKWARD_SOURCE), true),
        }
        .define("FEATURES", self.features)
    }

    /// Launches an entry over `blocks`, times slices of columns, times parts along z.
    fn launch(
        &self,
        gpu: &Gpu,
        (pass, entry): (Pass, &str),
        tile: &Tile,
        blocks: usize,
        slices: [usize; 2],
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        let module = self.module(gpu, pass);
        let grid = [blocks as u32, slices[0] as u32, slices[1] as u32];
        let launch = Launch { grid, block: [tile.threads(), 1, 1], shared: tile.shared };
        let mut all: Vec<&dyn Argument> = Vec::with_capacity(arguments.len() + 2);
        let sizes = KernelSizes::from(&self.sizes);
        all.extend([&sizes as &dyn Argument, &self.options]);
        all.extend(arguments);
        gpu.launch(&module, entry, launch, &all)
    }

    /// Blocks that own `m` rows each of so many, of every head.
    fn blocks(&self, rows: usize, heads: usize, m: usize) -> usize {
        let sequences = self.options.sequences as usize;
        // Of packed sequences each may end within a tile.
        let tiles = if sequences > 0 { rows / m + sequences } else { self.sizes.batch * rows.div_ceil(m) };
        tiles * heads
    }

    /// Launches forward. `scratch` is what [`scratch`] says.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(&self, gpu: &Gpu, q: View, k: View, v: View, out: View, lse: u64, scratch: u64) -> Result<()> {
        let (s, tiles, n) = (&self.sizes, self.tiles(gpu), self.splits);
        let blocks = self.blocks(s.queries, s.heads, tiles.forward.rows());
        let slices = [tiles.slices(s.value_dim), n];
        if n == 1 {
            return self.launch(
                gpu,
                (Pass::Forward, FORWARD[0]),
                &tiles.forward,
                blocks,
                slices,
                &[&q, &k, &v, &out, &0u64, &lse],
            );
        }
        let rows = s.batch * s.heads * s.queries;
        let part_lse = scratch + 4 * (n * rows * s.value_dim) as u64;
        self.launch(
            gpu,
            (Pass::Forward, FORWARD[0]),
            &tiles.forward,
            blocks,
            slices,
            &[&q, &k, &v, &out, &scratch, &part_lse],
        )?;
        let warps = Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        let module = self.module(gpu, Pass::Forward);
        let (sizes, parts) = (KernelSizes::from(s), n as i32);
        gpu.launch(&module, FORWARD[1], warps, &[&sizes, &scratch, &part_lse, &parts, &out, &lse])
    }

    /// Launches backward. At `delta` is what [`scratch`] says; absent gradients are [`View::NONE`] or 0.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        gpu: &Gpu,
        [q, k, v, out]: [View; 4],
        lse: u64,
        (d_out, d_lse): (View, u64),
        delta: u64,
        [dq, dk, dv]: [Option<(View, bool)>; 3],
        d_bias: Option<(View, bool)>,
    ) -> Result<()> {
        let (s, tiles) = (&self.sizes, self.tiles(gpu));
        let sizes = KernelSizes::from(s);
        let rows = s.batch * s.heads * s.queries;
        let warps = Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        // Where dk and dv are not wanted, dq's own kernel has the fewest products.
        let unordered = self.unordered && dq.is_some() && (dk.is_some() || dv.is_some());
        let pass = if unordered { Pass::Unordered } else { Pass::Backward };
        let module = self.module(gpu, pass);
        gpu.launch(&module, BACKWARD[0], warps, &[&sizes, &out, &d_out, &d_lse, &delta])?;
        let part = |d: Option<(View, bool)>| d.map_or((View::NONE, 0), |(view, accumulate)| (view, accumulate as i32));
        let (dq, add_dq) = part(dq);
        let sum_dq = if unordered { delta + 4 * rows as u64 } else { 0 };
        if unordered {
            gpu.zero(&Place { address: sum_dq, kind: Kind::Full, shape: vec![rows * s.key_dim], strides: vec![1] })?;
        } else if dq.data != 0 {
            let blocks = self.blocks(s.queries, s.heads, tiles.dq.rows());
            let slices = [tiles.slices(s.key_dim), 1];
            let arguments: [&dyn Argument; 8] = [&q, &k, &v, &d_out, &lse, &delta, &dq, &add_dq];
            self.launch(gpu, (pass, BACKWARD[1]), &tiles.dq, blocks, slices, &arguments)?;
        }
        if dk.is_some() || dv.is_some() {
            let ((dk, add_dk), (dv, add_dv)) = (part(dk), part(dv));
            let tile = if unordered { &tiles.unordered } else { &tiles.dkdv };
            let blocks = self.blocks(s.keys, s.kv_heads, tile.rows());
            let slices = [tiles.slices(s.key_dim.max(s.value_dim)), tiles.parts];
            let arguments: [&dyn Argument; 11] =
                [&q, &k, &v, &d_out, &lse, &delta, &dk, &add_dk, &dv, &add_dv, &sum_dq];
            self.launch(gpu, (pass, BACKWARD[2]), tile, blocks, slices, &arguments)?;
        }
        if unordered {
            let arguments: [&dyn Argument; 5] = [&sizes, &self.options, &sum_dq, &dq, &add_dq];
            gpu.launch_flat(&module, BACKWARD[3], rows * s.key_dim, &arguments)?;
        }
        if let Some((d_bias, accumulate)) = d_bias {
            let accumulate = accumulate as i32;
            let along = |axis: usize, n: usize| if self.options.bias_strides[axis] == 0 { 1 } else { n };
            let places = along(0, s.batch) * along(1, s.heads) * along(2, s.queries.div_ceil(tiles.dq.rows()));
            let blocks = places * s.keys.div_ceil(tiles.dq.columns());
            let arguments: [&dyn Argument; 8] = [&q, &k, &v, &d_out, &lse, &delta, &d_bias, &accumulate];
            self.launch(gpu, (pass, BACKWARD[4]), &tiles.dq, blocks, [1, 1], &arguments)?;
        }
        Ok(())
    }

    /// Launches what writes the weights.
    fn weights(&self, gpu: &Gpu, q: View, k: View, lse: u64, weights: View) -> Result<()> {
        let (s, tiles) = (&self.sizes, self.tiles(gpu));
        let blocks = self.blocks(s.queries, s.heads, tiles.forward.rows());
        self.launch(gpu, (Pass::Forward, FORWARD[2]), &tiles.forward, blocks, [1, 1], &[&q, &k, &lse, &weights])
    }
}

impl GpuOp for SoftmaxAttention {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let (out, lse) = (View::of(&io.outputs[0]), io.outputs[1].address);
        let launcher = Launcher::of(self, &io.inputs);
        launcher.forward(gpu, q, k, v, out, lse, io.scratch.address)?;
        if let Some(weights) = io.outputs.get(2) {
            gpu.zero(weights)?;
            launcher.weights(gpu, q, k, lse, View::of(weights))?;
        }
        Ok(())
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let d_out = View::of_option(io.d_outputs[0].as_ref());
        let d_lse = io.d_outputs[1].as_ref().map_or(0, |p| p.address);
        let gradient = |i: usize| io.d_inputs[i].as_ref().map(|g| (View::of(&g.to), g.accumulate));
        let d_bias = self.place_of(Extra::Bias).and_then(|i| io.d_inputs[i].as_ref()).map(|g| {
            let [batch, head, row] = broadcast(&g.to);
            (View { data: g.to.address, batch, head, row }, g.accumulate)
        });
        Launcher::of(self, &io.inputs).backward(
            gpu,
            [q, k, v, View::of(&io.outputs[0])],
            io.outputs[1].address,
            (d_out, d_lse),
            io.scratch.address,
            [gradient(0), gradient(1), gradient(2)],
            d_bias,
        )
    }
}
