//! s = scale·q·kᵀ, p = softmax over visible keys, out = p·v, lse = log Σ exp(s).
//!
//! Keeps out and lse for backward; T×S is never in memory. With delta = Σ dout∘out − dlse and ds = p∘(dout·vᵀ − delta):
//! dv = pᵀ·dout, dq = scale·ds·k, dk = scale·dsᵀ·q. (Dao, "FlashAttention-2", 2023, section 3.)
//! A row with no visible key gives zeros, lse = −inf and zero gradients.

pub mod cpu;

use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Launch, Module, Source, View};
use crate::graph::{Graph, Tensor};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::attention::{ATTENTION_INPUTS, CAUSAL, KernelSizes, SCALE, Shape, Sizes, attention_case, bind};
use crate::precision::Precision;
use crate::run_spec::{RunSpec, TensorDoc};

const ENTRIES: &[&str] =
    &["softmax_attention_forward", "softmax_attention_delta", "softmax_attention_dq", "softmax_attention_dkdv"];

// SAFETY: rows and columns are compared with the sizes before each access; those come from the places themselves, and
// lengths are clamped to the number of keys.
const SOURCE: Source =
    unsafe { Source::new("softmax_attention", include_str!("../../kernels/softmax_attention.cu"), ENTRIES) };

/// Softmax attention on [q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv)] and perhaps key_lengths int (B), all strided as they
/// like: gives out (B,H,T,Dv), stored as (B,T,H,Dv), and lse (B,H,T), the natural logarithm.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftmaxAttention {
    /// Whether the mask is causal, aligned bottom-right.
    pub causal: bool,
    /// Factor of the scores; 1/√Dk unless given.
    pub scale: Option<f64>,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "softmax-attention",
    summary: "softmax(scale·q·kᵀ)·v, tiled, T×S never in memory",
    cases,
    run: Some(&RUN),
    attention: Some(|g, q, k, v, causal| Ok(g.record(SoftmaxAttention { causal, scale: None }, &[q, k, v])?[0])),
};

impl SoftmaxAttention {
    fn scale(&self, key_dim: usize) -> f64 {
        self.scale.unwrap_or(1.0 / (key_dim as f64).sqrt())
    }
}

impl Op for SoftmaxAttention {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let s = Sizes::of(self.name(), inputs, self.causal)?;
        Ok(Contract {
            outputs: vec![s.output(), Output::full([s.batch, s.heads, s.queries])],
            scratch_backward: s.batch * s.heads * s.queries, // delta
            backward_reads_outputs: vec![true, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let Ok(s) = Sizes::of(self.name(), inputs, self.causal) else { return Cost::default() };
        let (dk, dv) = (s.key_dim as f64, s.value_dim as f64);
        Cost {
            forward_flops: 2.0 * s.pairs() * (dk + dv),
            forward_bytes: s.bytes(),
            // Five products: the scores again, dout·vᵀ, and one for each gradient.
            backward_flops: 2.0 * s.pairs() * (3.0 * dk + 2.0 * dv),
            backward_bytes: 2.0 * s.bytes() + 4.0 * (s.batch * s.heads * s.queries * s.value_dim) as f64,
        }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for SoftmaxAttention {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let lse = io.outputs[1].contiguous();
        let problem = problem(self, &io.inputs);
        cpu::forward(&problem, q, k, v, &io.outputs[0], lse, mode);
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let mut gradient = |i: usize| io.d_inputs[i].take();
        let (dq, dk, dv) = (gradient(0), gradient(1), gradient(2));
        let d_out = io.d_outputs[0].map(|d| d.real());
        let d_lse = io.d_outputs[1].map(|d| d.all());
        let (out, lse) = (io.outputs[0].real(), io.outputs[1].all());
        cpu::backward(&problem(self, &io.inputs), q, k, v, out, lse, d_out, d_lse, dq, dk, dv, mode);
    }
}

fn problem<'a, R: Real>(op: &SoftmaxAttention, inputs: &[Input<'a, R>]) -> cpu::Problem<'a> {
    let (q, k, v) = (inputs[0].real(), inputs[1].real(), inputs[2].real());
    let specs = [q, k, v].map(|x| Spec::real(x.shape));
    let sizes = Sizes::of(ENTRY.name, &[&specs[0], &specs[1], &specs[2]], op.causal).expect("checked when recorded");
    cpu::Problem { sizes, scale: op.scale(sizes.key_dim), lengths: inputs.get(3).map(|l| l.ints()) }
}

/// What a launch needs to know, besides where the tensors lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launcher {
    /// Sizes.
    pub sizes: Sizes,
    /// Factor of the scores.
    pub scale: f32,
    /// Address of key_lengths, or 0.
    pub lengths: u64,
}

/// Rows and columns of a tile of scores, in `kernels/attention.cuh`.
const TILE: usize = 64;

impl Launcher {
    fn of(op: &SoftmaxAttention, inputs: &[Place]) -> Launcher {
        let specs: Vec<Spec> = inputs.iter().map(|p| Spec { kind: p.kind, shape: p.shape.clone() }).collect();
        let specs: Vec<&Spec> = specs.iter().collect();
        let sizes = Sizes::of(ENTRY.name, &specs, op.causal).expect("checked when recorded");
        Launcher { sizes, scale: op.scale(sizes.key_dim) as f32, lengths: inputs.get(3).map_or(0, |p| p.address) }
    }

    /// The module whose blocks write slices of `columns`, and a launch over `tiles` × slices.
    fn launch(&self, gpu: &Gpu, tiles: usize, columns: usize) -> (Module, Launch) {
        let slice = [16, 32, 64].into_iter().find(|&s| columns <= s).unwrap_or(128);
        // Two chunks of 64 rows of 32 + 4 columns (a tile of weights overlays them), and 64 rows of a slice.
        let shared = 4 * (2 * TILE * 36 + TILE * slice);
        let grid = [tiles as u32, columns.div_ceil(slice) as u32, 1];
        (gpu.module(&SOURCE).define("COLUMNS", slice), Launch { grid, block: [256, 1, 1], shared: shared as u32 })
    }

    /// Launches forward.
    pub fn forward(&self, gpu: &Gpu, q: View, k: View, v: View, out: View, lse: u64) -> Result<()> {
        let s = &self.sizes;
        let tiles = s.batch * s.heads * s.queries.div_ceil(TILE);
        let (module, launch) = self.launch(gpu, tiles, s.value_dim);
        let sizes = KernelSizes::from(s);
        let arguments: [&dyn crate::gpu::Argument; 8] = [&sizes, &self.scale, &q, &k, &v, &out, &lse, &self.lengths];
        gpu.launch(&module, ENTRIES[0], launch, &arguments)
    }

    /// Launches backward. `delta` is scratch of (B,H,T) elements; absent gradients are [`View::NONE`] or 0.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        gpu: &Gpu,
        [q, k, v, out]: [View; 4],
        lse: u64,
        (d_out, d_lse): (View, u64),
        delta: u64,
        [dq, dk, dv]: [Option<(View, bool)>; 3],
    ) -> Result<()> {
        let s = &self.sizes;
        let sizes = KernelSizes::from(s);
        let rows = s.batch * s.heads * s.queries;
        let warps = Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        let (module, launch) = self.launch(gpu, s.batch * s.heads * s.queries.div_ceil(TILE), s.key_dim);
        gpu.launch(&module, ENTRIES[1], warps, &[&sizes, &out, &d_out, &d_lse, &delta])?;
        if let Some((dq, accumulate)) = dq {
            let accumulate = accumulate as i32;
            gpu.launch(
                &module,
                ENTRIES[2],
                launch,
                &[&sizes, &self.scale, &q, &k, &v, &d_out, &lse, &delta, &dq, &accumulate, &self.lengths],
            )?;
        }
        if dk.is_none() && dv.is_none() {
            return Ok(());
        }
        let tiles = s.batch * s.kv_heads * s.keys.div_ceil(TILE);
        let (module, launch) = self.launch(gpu, tiles, s.key_dim.max(s.value_dim));
        let part = |d: Option<(View, bool)>| d.map_or((View::NONE, 0), |(view, accumulate)| (view, accumulate as i32));
        let ((dk, accumulate_dk), (dv, accumulate_dv)) = (part(dk), part(dv));
        gpu.launch(
            &module,
            ENTRIES[3],
            launch,
            &[
                &sizes,
                &self.scale,
                &q,
                &k,
                &v,
                &d_out,
                &lse,
                &delta,
                &dk,
                &accumulate_dk,
                &dv,
                &accumulate_dv,
                &self.lengths,
            ],
        )
    }
}

impl GpuOp for SoftmaxAttention {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let out = View::of(&io.outputs[0]);
        Launcher::of(self, &io.inputs).forward(gpu, q, k, v, out, io.outputs[1].address)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let d_out = View::of_option(io.d_outputs[0].as_ref());
        let d_lse = io.d_outputs[1].as_ref().map_or(0, |p| p.address);
        let gradient = |i: usize| io.d_inputs[i].as_ref().map(|g| (View::of(&g.to), g.accumulate));
        Launcher::of(self, &io.inputs).backward(
            gpu,
            [q, k, v, View::of(&io.outputs[0])],
            io.outputs[1].address,
            (d_out, d_lse),
            io.scratch.address,
            [gradient(0), gradient(1), gradient(2)],
        )
    }
}

static RUN: RunSpec = RunSpec {
    inputs: ATTENTION_INPUTS,
    outputs: &[
        TensorDoc { name: "out", shape: "(B,H,T,Dv)", optional: false },
        TensorDoc { name: "lse", shape: "(B,H,T)", optional: false },
    ],
    options: &[CAUSAL, SCALE],
    record: |run| {
        let inputs = bind(run)?;
        let op = SoftmaxAttention { causal: run.switch("causal"), scale: run.option("scale", "a number")? };
        run.graph.record(op, &inputs)
    },
};

/// One covering list: each awkward size, mask and layout at least once, alone and beside others.
fn cases() -> Vec<Case> {
    let case = |heads, lengths, dims, causal, key_lengths: &'static [i32]| {
        let record = move |g: &mut Graph, inputs: &[Tensor]| g.record(SoftmaxAttention { causal, scale: None }, inputs);
        attention_case(Shape { heads, lengths, dims }, causal, key_lengths, record)
    };
    let packed = Case::new("packed projections read in place, causal", |g| {
        let qkv = g.normal("qkv", &[2, 37, 3 * 48]);
        let [q, k, v] = [0, 1, 2].map(|i| g.heads(qkv, i * 48..(i + 1) * 48, 3));
        let (q, k, v) = (q?, k?, v?);
        Ok(vec![g.record(SoftmaxAttention { causal: true, scale: None }, &[q, k, v])?[0]])
    });
    let same = Case::new("q = k = v, scale 0.3", |g| {
        let x = g.normal("x", &[1, 2, 37, 16]);
        g.record(SoftmaxAttention { causal: false, scale: Some(0.3) }, &[x, x, x])
    });
    let only_lse = Case::new("a gradient through lse alone", |g| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.normal(name, &[1, 2, 70, 16]));
        Ok(vec![g.record(SoftmaxAttention { causal: true, scale: None }, &[q, k, v])?[1]])
    });
    let large = Case::new("scores of several hundred", |g| {
        let (q, k, v) = (
            g.scaled("q", &[1, 1, 65, 16], 20.0),
            g.scaled("k", &[1, 1, 65, 16], 20.0),
            g.normal("v", &[1, 1, 65, 16]),
        );
        g.record(SoftmaxAttention { causal: true, scale: None }, &[q, k, v])
    });
    vec![
        case((1, 1, 1), (1, 1), (1, 1), false, &[]),
        case((2, 3, 3), (37, 37), (37, 2), false, &[]),
        case((1, 2, 2), (63, 65), (16, 16), true, &[]),
        case((1, 2, 1), (65, 63), (64, 64), true, &[]).in_every_order(),
        case((3, 4, 2), (70, 130), (40, 24), true, &[130, 0, 77]).in_every_order(),
        case((2, 2, 2), (127, 200), (80, 80), false, &[1, 150]),
        case((1, 1, 1), (130, 127), (128, 128), true, &[]),
        case((1, 1, 1), (40, 70), (256, 37), false, &[]),
        case((1, 1, 1), (33, 66), (300, 260), true, &[50]),
        case((2, 6, 2), (5, 1), (8, 8), false, &[1, 0]),
        case((1, 2, 2), (100, 3), (16, 16), true, &[]),
        case((2, 2, 2), (0, 4), (16, 16), false, &[]),
        case((2, 2, 2), (4, 0), (16, 16), false, &[]),
        case((66_000, 1, 1), (2, 2), (1, 1), true, &[]).large(),
        case((1, 1, 1), (1000, 1000), (64, 64), true, &[]).large(),
        packed,
        same,
        only_lse,
        large,
    ]
}
