//! Mean-similarity attention: p = softmax over visible keys of scale·mean(qᵢ)·mean(kⱼ), out = p·v, with the mean over
//! the Dk columns of a row and scale 1 unless given (no 1/√Dk).
//!
//! It is softmax attention with Dk = 1 on the means. Saved: both means and lse. dq = dmean(q)/Dk in every column, dk likewise.

use crate::case::Case;
use crate::cpu::strided::contiguous_strides;
use crate::cpu::{Mut, Real, Ref};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Module, Source, View};
use crate::graph::{Graph, Tensor};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::attention::Sizes;
use crate::ops::attention::{ATTENTION_INPUTS, CAUSAL, SCALE, Shape, attention_case, bind};
use crate::ops::softmax_attention::{Launcher, cpu};
use crate::run_spec::{RunSpec, TensorDoc};

const ENTRIES: &[&str] = &["mean_similarity_row_means", "mean_similarity_spread"];

// SAFETY: a warp or thread touches one row or element, whose index is below the number that the place itself gives.
const SOURCE: Source = unsafe {
    Source::new("mean_similarity_attention", include_str!("../../kernels/mean_similarity_attention.cu"), ENTRIES)
};

/// Attention by mean similarity on q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv) and optionally key_lengths (B), each
/// perhaps a strided view: out (B,H,T,Dv), stored as (B,T,H,Dv).
#[derive(Debug, Clone, Copy, Default)]
pub struct MeanSimilarityAttention {
    /// Whether query t sees only keys s ≤ t + S − T.
    pub causal: bool,
    /// Factor of the scores; 1 unless given.
    pub scale: Option<f64>,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "mean-similarity-attention",
    summary: "softmax(scale·mean(q)·mean(k))·v, on the means of rows",
    cases,
    run: Some(&RUN),
    attention: Some(|g, q, k, v, causal| g.one(MeanSimilarityAttention { causal, scale: None }, &[q, k, v])),
};

static RUN: RunSpec = RunSpec {
    inputs: ATTENTION_INPUTS,
    outputs: &[TensorDoc { name: "out", shape: "(B,H,T,Dv)", optional: false }],
    options: &[CAUSAL, SCALE],
    record: |run| {
        let inputs = bind(run)?;
        let op = MeanSimilarityAttention { causal: run.switch("causal"), scale: run.option("scale", "a number")? };
        run.graph.record(op, &inputs)
    },
};

impl MeanSimilarityAttention {
    fn scale(&self) -> f64 {
        self.scale.unwrap_or(1.0)
    }

    /// Sizes of the attention on means: those of the inputs (q, k, v), but with Dk = 1.
    fn sizes_of_means(&self, [q, k, v]: [&[usize]; 3]) -> Sizes {
        let specs = [q, k, v].map(Spec::real);
        let sizes = Sizes::of(ENTRY.name, &[&specs[0], &specs[1], &specs[2]], self.causal);
        Sizes { key_dim: 1, ..sizes.expect("checked when recorded") }
    }
}

/// Shapes of mean(q) (B,H,T,1) and mean(k) (B,Hk,S,1).
fn mean_shapes(s: &Sizes) -> [[usize; 4]; 2] {
    [[s.batch, s.heads, s.queries, 1], [s.batch, s.kv_heads, s.keys, 1]]
}

impl Op for MeanSimilarityAttention {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let s = Sizes::of(ENTRY.name, inputs, self.causal)?;
        let [queries, keys] = mean_shapes(&s);
        let numel = |shape: [usize; 4]| shape.iter().product::<usize>();
        Ok(Contract {
            outputs: vec![s.output()],
            saved: vec![Spec::full(queries), Spec::full(keys), Spec::full(&queries[..3])],
            // delta, and the gradients of both means.
            scratch_backward: 2 * numel(queries) + numel(keys),
            // Of q and k, only the means.
            backward_reads_inputs: vec![false, false, true, true],
            backward_reads_outputs: vec![true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let Ok(s) = Sizes::of(ENTRY.name, inputs, self.causal) else { return Cost::default() };
        let means = (inputs[0].numel() + inputs[1].numel()) as f64;
        let dv = s.value_dim as f64;
        let rows = 4.0 * inputs[2].numel() as f64 + 4.0 * (s.batch * s.heads * s.queries) as f64 * dv;
        Cost {
            forward_flops: 2.0 * s.pairs() * (1.0 + dv) + means,
            forward_bytes: s.bytes(),
            backward_flops: 2.0 * s.pairs() * (3.0 + 2.0 * dv) + means,
            // dq and dk are written; v, out and dout read, dv written.
            backward_bytes: 4.0 * means + 2.0 * rows,
        }
    }

    fn accepts_strides(&self) -> bool {
        true
    }
}

/// The mean of every row of a (B,H,T,D) tensor, in order.
fn row_means<R: Real>(x: Ref<R>, means: &mut [R]) {
    let [_, heads, rows, columns] = x.shape[..] else { panic!("a tensor of four axes") };
    let factor = R::ONE / R::from_usize(columns);
    for (i, mean) in means.iter_mut().enumerate() {
        let row = x.row(&[i / rows / heads, i / rows % heads, i % rows]);
        *mean = row.iter().copied().sum::<R>() * factor;
    }
}

/// dx = dmean/D in every column.
fn spread<R: Real>(d_means: &[R], dx: &Gradient<Mut<R>>) {
    let [_, heads, rows, columns] = dx.to.shape[..] else { panic!("a tensor of four axes") };
    let factor = R::ONE / R::from_usize(columns);
    for (i, &d) in d_means.iter().enumerate() {
        // SAFETY: each row is visited once, on this thread.
        let row = unsafe { dx.to.row(&[i / rows / heads, i / rows % heads, i % rows]) };
        if dx.accumulate {
            row.iter_mut().for_each(|x| *x += d * factor);
        } else {
            row.fill(d * factor);
        }
    }
}

impl<R: Real> CpuOp<R> for MeanSimilarityAttention {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let sizes = self.sizes_of_means([q.shape, k.shape, v.shape]);
        let problem =
            cpu::Problem { sizes, scale: self.scale(), lengths: io.inputs.get(3).map(|l| l.ints()), features: None };
        let shapes = mean_shapes(&sizes);
        let strides = shapes.map(|s| contiguous_strides(&s));
        let [mean_q, mean_k, lse] = &mut io.saved[..] else { panic!("three tensors are saved") };
        let (mean_q, mean_k) = (mean_q.contiguous(), mean_k.contiguous());
        rayon::join(|| row_means(q, mean_q), || row_means(k, mean_k));
        let q = Ref { data: mean_q, shape: &shapes[0], strides: &strides[0] };
        let k = Ref { data: mean_k, shape: &shapes[1], strides: &strides[1] };
        cpu::forward(&problem, q, k, v, &io.outputs[0], lse.contiguous(), mode);
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let sizes = self.sizes_of_means([q.shape, k.shape, v.shape]);
        let problem =
            cpu::Problem { sizes, scale: self.scale(), lengths: io.inputs.get(3).map(|l| l.ints()), features: None };
        let shapes = mean_shapes(&sizes);
        let strides = shapes.map(|s| contiguous_strides(&s));
        let d_means = [0, 1].map(|i| io.d_inputs[i].map(|_| vec![R::ZERO; shapes[i].iter().product()]));
        let [mut dq, mut dk] = d_means;
        let gradient = |i: usize, to: &mut Option<Vec<R>>| {
            // SAFETY: the vectors outlive the call below, nothing else touches them meanwhile, and they have these shapes.
            let raw = |d: &mut Vec<R>| unsafe { Mut::from_raw(d.as_mut_ptr(), &shapes[i], &strides[i]) };
            to.as_mut().map(|d| Gradient { to: raw(d), accumulate: false })
        };
        let from = cpu::Saved {
            q: io.saved[0].real(),
            k: io.saved[1].real(),
            v,
            out: io.outputs[0].real(),
            lse: io.saved[2].all(),
            d_out: io.d_outputs[0].map(|d| d.real()),
            d_lse: None,
        };
        let (d_mean_q, d_mean_k) = (gradient(0, &mut dq), gradient(1, &mut dk));
        let to = cpu::Gradients { dq: d_mean_q, dk: d_mean_k, dv: io.d_inputs[2].take(), d_bias: None };
        cpu::backward(&problem, &from, &to, mode);
        for (means, to) in [(dq, &io.d_inputs[0]), (dk, &io.d_inputs[1])] {
            if let (Some(means), Some(to)) = (means, to) {
                spread(&means, to);
            }
        }
    }
}

/// A contiguous (B,H,T,1) tensor at an address.
fn view_of_means(address: u64, [_, heads, rows, _]: [usize; 4]) -> View {
    View { data: address, batch: (heads * rows) as i64, head: rows as i64, row: 1 }
}

fn launch_row_means(gpu: &Gpu, x: &Place, means: u64) -> Result<()> {
    let [batch, heads, rows, columns] = x.shape[..] else { panic!("a tensor of four axes") };
    let n = batch * heads * rows;
    let launch = Launch { grid: [n.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
    let sizes = [heads, rows, columns].map(|x| x as i32);
    let arguments: [&dyn Argument; 6] = [&View::of(x), &sizes[0], &sizes[1], &sizes[2], &means, &(n as i64)];
    gpu.launch(&Module::new(&SOURCE), ENTRIES[0], launch, &arguments)
}

fn launch_spread(gpu: &Gpu, d_means: u64, dx: &Gradient<Place>) -> Result<()> {
    let [_, heads, rows, columns] = dx.to.shape[..] else { panic!("a tensor of four axes") };
    let (n, view, accumulate) = (dx.to.numel(), View::of(&dx.to), dx.accumulate as i32);
    let sizes = [heads, rows, columns].map(|x| x as i32);
    let arguments: [&dyn Argument; 7] = [&d_means, &view, &sizes[0], &sizes[1], &sizes[2], &(n as i64), &accumulate];
    gpu.launch_flat(&Module::new(&SOURCE), ENTRIES[1], n, &arguments)
}

impl MeanSimilarityAttention {
    fn launcher(&self, inputs: &[Place]) -> Launcher {
        let sizes = self.sizes_of_means([&inputs[0].shape, &inputs[1].shape, &inputs[2].shape]);
        Launcher::plain(sizes, self.scale(), inputs.get(3).map_or(0, |p| p.address))
    }
}

impl GpuOp for MeanSimilarityAttention {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let launcher = self.launcher(&io.inputs);
        let shapes = mean_shapes(launcher.sizes());
        let [mean_q, mean_k, lse] = [0, 1, 2].map(|i| io.saved[i].address);
        launch_row_means(gpu, &io.inputs[0], mean_q)?;
        launch_row_means(gpu, &io.inputs[1], mean_k)?;
        let (q, k) = (view_of_means(mean_q, shapes[0]), view_of_means(mean_k, shapes[1]));
        launcher.forward(gpu, q, k, View::of(&io.inputs[2]), View::of(&io.outputs[0]), lse, 0)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let launcher = self.launcher(&io.inputs);
        let shapes = mean_shapes(launcher.sizes());
        let q = view_of_means(io.saved[0].address, shapes[0]);
        let k = view_of_means(io.saved[1].address, shapes[1]);
        let queries = 4 * shapes[0].iter().product::<usize>() as u64;
        let delta = io.scratch.address;
        let d_means = [delta + queries, delta + 2 * queries];
        let d_mean = |i: usize| io.d_inputs[i].as_ref().map(|_| (view_of_means(d_means[i], shapes[i]), false));
        let dv = io.d_inputs[2].as_ref().map(|g| (View::of(&g.to), g.accumulate));
        launcher.backward(
            gpu,
            [q, k, View::of(&io.inputs[2]), View::of(&io.outputs[0])],
            io.saved[2].address,
            (View::of_option(io.d_outputs[0].as_ref()), 0),
            delta,
            [d_mean(0), d_mean(1), dv],
            None,
        )?;
        for (d_means, to) in d_means.into_iter().zip(&io.d_inputs) {
            if let Some(to) = to {
                launch_spread(gpu, d_means, to)?;
            }
        }
        Ok(())
    }
}

/// The attention itself has softmax attention's cases (among them very many heads); these cover the means and how they
/// are passed on.
fn cases() -> Vec<Case> {
    let case = |heads, lengths, dims, causal, key_lengths: &'static [i32]| {
        let record =
            move |g: &mut Graph, inputs: &[Tensor]| g.record(MeanSimilarityAttention { causal, scale: None }, inputs);
        attention_case(Shape { heads, lengths, dims }, causal, key_lengths, record)
    };
    let packed = Case::new("packed projections read in place, causal", |g| {
        let qkv = g.normal("qkv", &[2, 37, 3 * 48]);
        let [q, k, v] = [0, 1, 2].map(|i| g.heads(qkv, i * 48..(i + 1) * 48, 3));
        let (q, k, v) = (q?, k?, v?);
        g.record(MeanSimilarityAttention { causal: true, scale: None }, &[q, k, v])
    });
    let same = Case::new("q = k = v, scale 3", |g| {
        let x = g.normal("x", &[1, 2, 37, 16]);
        g.record(MeanSimilarityAttention { causal: false, scale: Some(3.0) }, &[x, x, x])
    });
    vec![
        case((1, 1, 1), (1, 1), (1, 1), false, &[]),
        case((2, 3, 3), (37, 63), (37, 2), false, &[63, 0]),
        case((1, 4, 2), (65, 63), (64, 16), true, &[]),
        case((2, 2, 1), (63, 127), (80, 37), true, &[127, 30]).in_every_order(),
        case((1, 1, 1), (37, 65), (128, 64), false, &[]),
        case((1, 1, 1), (65, 37), (256, 128), true, &[]),
        case((1, 1, 1), (1000, 1000), (16, 8), true, &[]).large(),
        packed,
        same,
    ]
}

#[cfg(test)]
mod tests;
