//! Launches of `kernels/linear_attention.cu`.

use super::{FeatureMap, LinearAttention};
use crate::error::Result;
use crate::gpu::{Gpu, Launch, Module, Source, View};
use crate::op::*;
use crate::ops::attention::Sizes;
use bytemuck::{Pod, Zeroable};

// SAFETY: rows, columns, heads and segments are compared with the sizes in `Problem` before each access; those, the
// strides and the lengths of saved and scratch tensors come from the same inputs as the contract that allocated them.
const SOURCE: Source = unsafe {
    Source::new(
        "linear_attention",
        include_str!("../../../kernels/linear_attention.cu"),
        &[
            "linear_attention_sum_keys",
            "linear_attention_sum_queries",
            "linear_attention_accumulate_segments",
            "linear_attention_forward",
            "linear_attention_backward_q",
            "linear_attention_backward_k",
            "linear_attention_backward_v",
            "linear_attention_prepare_queries",
        ],
    )
};

/// Rows and columns of a tile.
const TILE: usize = 64;

/// Elements of a state: S (Dk×Dv), then z (Dk).
pub(super) fn state_len(s: &Sizes) -> usize {
    s.key_dim * (s.value_dim + 1)
}

/// How queries and keys are divided for the sums. It depends on shapes only, as what is summed where decides the bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segments {
    /// Queries of a segment: a multiple of [`TILE`].
    pub query_segment: usize,
    /// Their number, at least 1.
    pub queries: usize,
    /// Keys of a segment; with a mask, as many as queries.
    pub key_segment: usize,
    /// Their number, at least 1.
    pub keys: usize,
    /// Segment 0 of the keys starts this far before key 0.
    pub pad: usize,
    /// The keys' segment that the mask pairs with segment 0 of the queries; negative where queries start before keys.
    pub first: i64,
}

impl Segments {
    pub fn of(s: &Sizes) -> Self {
        if s.causal {
            // States are written and read for every segment, products within one grow with its length. At twice the
            // head size, states are as many bytes as k and v, and the products no more than the states' own.
            let segment = (2 * s.key_dim.max(s.value_dim)).next_multiple_of(TILE).clamp(TILE, 4 * TILE);
            let offset = s.keys as i64 - s.queries as i64;
            let pad = (-offset).rem_euclid(segment as i64);
            Segments {
                query_segment: segment,
                queries: s.queries.div_ceil(segment).max(1),
                key_segment: segment,
                keys: (s.keys + pad as usize).div_ceil(segment).max(1),
                pad: pad as usize,
                first: (offset + pad) / segment as i64,
            }
        } else {
            // Enough blocks to fill a large GPU, but no more states than that.
            let wanted = 512usize.div_ceil((s.batch * s.kv_heads).max(1));
            let segment = |rows: usize| rows.div_ceil(wanted).max(2 * TILE).next_multiple_of(TILE);
            let (query_segment, key_segment) = (segment(s.queries), segment(s.keys));
            Segments {
                query_segment,
                queries: s.queries.div_ceil(query_segment).max(1),
                key_segment,
                keys: s.keys.div_ceil(key_segment).max(1),
                pad: 0,
                first: 0,
            }
        }
    }
}

/// `Problem` of the kernel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    heads: i32,
    kv_heads: i32,
    queries: i32,
    keys: i32,
    key_dim: i32,
    value_dim: i32,
    query_segment: i32,
    query_segments: i32,
    key_segment: i32,
    key_segments: i32,
    pad: i32,
    first: i32,
    q: View,
    k: View,
    v: View,
    d_out: View,
    lengths: u64,
    inverse: u64,
    shift: u64,
    states: u64,
}

/// What the launches of one direction share.
struct Launches<'a> {
    gpu: &'a Gpu,
    module: Module,
    sizes: Sizes,
    segments: Segments,
    problem: Problem,
}

impl<'a> Launches<'a> {
    fn new(op: &LinearAttention, gpu: &'a Gpu, inputs: &[Place], states: u64) -> Result<Self> {
        let specs: Vec<Spec> = inputs.iter().map(|p| Spec { kind: p.kind, shape: p.shape.clone() }).collect();
        let sizes = op.sizes(&specs.iter().collect::<Vec<_>>())?;
        let map = FeatureMap::ALL.iter().position(|&m| m == op.feature_map).expect("ALL lists every feature map");
        let module = Module::new(&SOURCE).define("CAUSAL", sizes.causal as i32).define("FEATURE_MAP", map);
        let segments = Segments::of(&sizes);
        let problem = Problem {
            heads: sizes.heads as i32,
            kv_heads: sizes.kv_heads as i32,
            queries: sizes.queries as i32,
            keys: sizes.keys as i32,
            key_dim: sizes.key_dim as i32,
            value_dim: sizes.value_dim as i32,
            query_segment: segments.query_segment as i32,
            query_segments: segments.queries as i32,
            key_segment: segments.key_segment as i32,
            key_segments: segments.keys as i32,
            pad: segments.pad as i32,
            first: segments.first as i32,
            q: View::of(&inputs[0]),
            k: View::of(&inputs[1]),
            v: View::of(&inputs[2]),
            d_out: View::NONE,
            lengths: inputs.get(3).map_or(0, |l| l.address),
            inverse: 0,
            shift: 0,
            states,
        };
        Ok(Launches { gpu, module, sizes, segments, problem })
    }

    /// Sums of every segment, then running sums (in `reverse` from the last segment on).
    fn sum(&self, entry: &str, states: u64, segments: usize, reverse: bool) -> Result<()> {
        let s = &self.sizes;
        let (units, len) = (s.batch * s.kv_heads, state_len(s));
        let tiles = s.key_dim.div_ceil(TILE) * s.value_dim.div_ceil(TILE);
        let grid = [(units * segments) as u32, tiles as u32, 1];
        let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
        self.gpu.launch(&self.module, entry, launch, &[&self.problem, &states])?;
        if segments == 1 {
            return Ok(());
        }
        let sizes = [units as i64, len as i64];
        let (segments, reverse) = (segments as i32, reverse as i32);
        let arguments: [&dyn crate::gpu::Argument; 5] = [&states, &sizes[0], &segments, &sizes[1], &reverse];
        self.gpu.launch_flat(&self.module, "linear_attention_accumulate_segments", units * len, &arguments)
    }

    /// Computes the rows of one result: `rows` a head, `columns` wide.
    fn rows(
        &self,
        entry: &str,
        heads: usize,
        rows: usize,
        columns: usize,
        last: [&dyn crate::gpu::Argument; 2],
    ) -> Result<()> {
        let tiles = self.sizes.batch * heads * rows.div_ceil(TILE);
        let grid = [tiles as u32, columns.div_ceil(TILE) as u32, 1];
        let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
        self.gpu.launch(&self.module, entry, launch, &[&self.problem, last[0], last[1]])
    }
}

impl GpuOp for LinearAttention {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let [denominators, states] = [io.saved[0].address, io.saved[1].address];
        let launches = Launches::new(self, gpu, &io.inputs, states)?;
        let s = &launches.sizes;
        launches.sum("linear_attention_sum_keys", states, launches.segments.keys, false)?;
        launches.rows(
            "linear_attention_forward",
            s.heads,
            s.queries,
            s.value_dim,
            [&View::of(&io.outputs[0]), &denominators],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(d_out) = &io.d_outputs[0] else { return Ok(()) };
        let [denominators, states] = [io.saved[0].address, io.saved[1].address];
        let mut launches = Launches::new(self, gpu, &io.inputs, states)?;
        let s = launches.sizes;
        let n = s.batch * s.heads * s.queries;
        // Scratch: 1/d, c, then the sums over queries.
        let [inverse, shift] = [io.scratch.address, io.scratch.address + 4 * n as u64];
        let sums = shift + 4 * n as u64;
        launches.problem = Problem { d_out: View::of(d_out), inverse, shift, ..launches.problem };

        let grid = [n.div_ceil(8) as u32, 1, 1];
        let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
        let out = View::of(&io.outputs[0]);
        let arguments: [&dyn crate::gpu::Argument; 6] =
            [&launches.problem, &out, &denominators, &inverse, &shift, &(n as i64)];
        gpu.launch(&launches.module, "linear_attention_prepare_queries", launch, &arguments)?;

        if let Some(dq) = &io.d_inputs[0] {
            let last: [&dyn crate::gpu::Argument; 2] = [&View::of(&dq.to), &(dq.accumulate as i32)];
            launches.rows("linear_attention_backward_q", s.heads, s.queries, s.key_dim, last)?;
        }
        if io.d_inputs[1].is_none() && io.d_inputs[2].is_none() {
            return Ok(());
        }
        launches.problem.states = sums;
        launches.sum("linear_attention_sum_queries", sums, launches.segments.queries, true)?;
        let rows = s.keys + launches.segments.pad;
        for (entry, gradient, columns) in [
            ("linear_attention_backward_k", &io.d_inputs[1], s.key_dim),
            ("linear_attention_backward_v", &io.d_inputs[2], s.value_dim),
        ] {
            if let Some(gradient) = gradient {
                let last: [&dyn crate::gpu::Argument; 2] = [&View::of(&gradient.to), &(gradient.accumulate as i32)];
                launches.rows(entry, s.kv_heads, rows, columns, last)?;
            }
        }
        Ok(())
    }
}
