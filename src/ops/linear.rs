//! y = g(x·W + b), x (…, I), y (…, O); W is stored as PyTorch's nn.Linear has it, (O, I), or as GPT-2's Conv1D, (I, O).
//! g is the identity or a GELU; b may be absent.
//!
//! With a GELU, g′(x·W + b) is saved rather than x·W + b: it takes the same memory, and the tanh or erf is computed once.
//! dz = dy·g′; dx = dz·Wᵀ; dW = xᵀ·dz; db = Σ dz over the rows.

use crate::case::Case;
use crate::cpu::{Matrix, Mut, Real, Threads};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Matmul, Module, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: rows and columns are compared with the sizes that the launch code takes from the places; `sums` holds as many
// rows as there are blocks.
const SOURCE: Source = unsafe {
    Source::new("linear", include_str!("../../kernels/linear.cu"), &["linear_epilogue", "linear_column_sums"])
};

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// (O, I), as nn.Linear stores it.
    OutIn,
    /// (I, O), as GPT-2's Conv1D stores it.
    InOut,
}

/// The two forms of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))): GPT-2's.
    Tanh,
    /// z·Φ(z): nn.GELU's default.
    Erf,
}

/// y = g(x·W + b), on [x (…, I), weight] or [x, weight, bias (O)].
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// How the weight lies in memory.
    pub weight: WeightLayout,
    /// Whether there is a bias.
    pub bias: bool,
    /// What follows; `None`: nothing.
    pub gelu: Option<Gelu>,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "linear", summary: "y = gelu(x·W + b)", cases, run: Some(&RUN), attention: None };

struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// nn.Linear: weight (O, I), a bias, nothing after it.
    pub const TORCH: Linear = Linear { weight: WeightLayout::OutIn, bias: true, gelu: None };

    fn sizes(&self, x: &[usize], weight: &[usize]) -> Sizes {
        let outputs = if self.weight == WeightLayout::OutIn { weight[0] } else { weight[1] };
        Sizes { rows: x[..x.len() - 1].iter().product(), inputs: x[x.len() - 1], outputs }
    }

    /// W as a matrix (I, O).
    fn matrix<'a, R>(&self, weight: &'a [R], s: &Sizes) -> Matrix<'a, R> {
        match self.weight {
            WeightLayout::OutIn => Matrix::new(weight, s.inputs).t(),
            WeightLayout::InOut => Matrix::new(weight, s.outputs),
        }
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2 + self.bias as usize, "x, weight and the bias if there is one")?;
        let (rows, columns) = rows_and_columns(self.name(), "x", inputs[0])?;
        let out_in = self.weight == WeightLayout::OutIn;
        let outputs = match inputs[1].shape[..] {
            [o, i] if inputs[1].kind == Kind::Real && out_in && i == columns && o > 0 => o,
            [i, o] if inputs[1].kind == Kind::Real && !out_in && i == columns && o > 0 => o,
            _ => {
                let expected = if out_in { format!("real (O, {columns})") } else { format!("real ({columns}, O)") };
                return Err(Error::shape(self.name(), "weight", expected, inputs[1].to_string()));
            }
        };
        if self.bias {
            expect(self.name(), "bias", inputs[2], Spec::real([outputs]))?;
        }
        let mut shape = inputs[0].shape.clone();
        *shape.last_mut().expect("at least one axis") = outputs;
        let gelu = self.gelu.is_some();
        Ok(Contract {
            saved: if gelu { vec![shape.clone()] } else { vec![] },
            outputs: vec![Output::real(shape)],
            scratch_backward: if gelu { rows * outputs } else { 0 } + partials(rows) * outputs,
            backward_reads_inputs: [true, true, false][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let (x, w, y) = ((s.rows * s.inputs) as f64, (s.inputs * s.outputs) as f64, (s.rows * s.outputs) as f64);
        let saved = if self.gelu.is_some() { y } else { 0.0 };
        let product = 2.0 * x * s.outputs as f64;
        Cost {
            forward_flops: product,
            forward_bytes: 4.0 * (x + w + y + saved),
            backward_flops: 2.0 * product,
            backward_bytes: 4.0 * (2.0 * x + 2.0 * w + y + saved),
        }
    }
}

const SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)
const CUBIC: f64 = 0.044715;

/// y ← g(y), slope ← g′(y) before.
fn apply_gelu<R: Real>(gelu: Gelu, y: &mut [R], slope: &mut [R]) {
    let [half, three] = [0.5, 3.0].map(R::from_f64);
    match gelu {
        Gelu::Tanh => {
            let (scale, cubic) = (R::from_f64(SCALE), R::from_f64(CUBIC));
            slope.iter_mut().zip(&*y).for_each(|(t, &z)| *t = scale * (z + cubic * z * z * z));
            R::tanh_in_place(slope);
            for (slope, y) in slope.iter_mut().zip(y) {
                let (z, t) = (*y, *slope);
                *slope = half * (R::ONE + t) + half * z * (R::ONE - t * t) * scale * (R::ONE + three * cubic * z * z);
                *y = half * z * (R::ONE + t);
            }
        }
        Gelu::Erf => {
            let (root, density) = (R::from_f64(0.5f64.sqrt()), R::from_f64(SCALE / 2.0));
            for (slope, y) in slope.iter_mut().zip(y) {
                let z = *y;
                let below = half * (R::ONE + (z * root).erf());
                *slope = below + z * density * (-half * z * z).exp();
                *y = z * below;
            }
        }
    }
}

impl<R: Real> CpuOp<R> for Linear {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let s = self.sizes(io.inputs[0].real().shape, io.inputs[1].real().shape);
        let (x, w) = (io.inputs[0].all(), self.matrix(io.inputs[1].all(), &s));
        let zeros = vec![R::ZERO; s.outputs];
        let bias = if self.bias { io.inputs[2].all() } else { &zeros };
        let y = io.outputs[0].contiguous();
        let slope = io.saved.first_mut().map_or(Default::default(), |m| m.contiguous());
        if mode == Mode::Definition {
            for (x, y) in x.chunks_exact(s.inputs).zip(y.chunks_exact_mut(s.outputs)) {
                for (o, y) in y.iter_mut().enumerate() {
                    let terms = x.iter().enumerate().map(|(i, &x)| x * w.data[i * w.row + o * w.column]);
                    *y = terms.sum::<R>() + bias[o];
                }
            }
            self.gelu.iter().for_each(|&g| apply_gelu(g, y, slope));
            return;
        }
        R::gemm(
            (s.rows, s.outputs, s.inputs),
            R::ONE,
            Matrix::new(x, s.inputs),
            w,
            R::ZERO,
            y,
            s.outputs,
            Threads::All,
        );
        let block = block_rows(s.outputs) * s.outputs;
        let finish = |y: &mut [R], slope: &mut [R]| {
            if self.bias {
                y.chunks_exact_mut(s.outputs).for_each(|y| add_to(y, bias, true));
            }
            self.gelu.iter().for_each(|&g| apply_gelu(g, y, slope));
        };
        if self.gelu.is_some() {
            y.par_chunks_mut(block).zip(slope.par_chunks_mut(block)).for_each(|(y, slope)| finish(y, slope));
        } else if self.bias {
            y.par_chunks_mut(block).for_each(|y| finish(y, &mut []));
        }
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let s = self.sizes(io.inputs[0].real().shape, io.inputs[1].real().shape);
        let Some(dy) = &io.d_outputs[0] else { return };
        let (x, w, dy) = (io.inputs[0].all(), io.inputs[1].all(), dy.all());
        let block = block_rows(s.outputs) * s.outputs;
        let dz: &[R] = if self.gelu.is_some() {
            let slope = io.saved[0].all();
            let dz = &mut io.scratch.contiguous()[..s.rows * s.outputs];
            let blocks = dz.par_chunks_mut(block).zip(dy.par_chunks(block)).zip(slope.par_chunks(block));
            blocks.for_each(|((dz, dy), slope)| {
                dz.iter_mut().zip(dy).zip(slope).for_each(|((dz, &dy), &slope)| *dz = dy * slope)
            });
            dz
        } else {
            dy
        };
        let beta = |accumulate: bool| if accumulate { R::ONE } else { R::ZERO };
        let gemm = |mnk: (usize, usize, usize), a: Matrix<R>, b: Matrix<R>, g: &Gradient<Mut<R>>| {
            let mut to = g.to;
            let c = to.contiguous();
            if mode == Mode::Fast {
                return R::gemm(mnk, R::ONE, a, b, beta(g.accumulate), c, mnk.1, Threads::All);
            }
            for i in 0..mnk.0 {
                for j in 0..mnk.1 {
                    let term = |k: usize| a.data[i * a.row + k * a.column] * b.data[k * b.row + j * b.column];
                    let before = if g.accumulate { c[i * mnk.1 + j] } else { R::ZERO };
                    c[i * mnk.1 + j] = before + (0..mnk.2).map(term).sum::<R>();
                }
            }
        };
        let (x, dz_rows) = (Matrix::new(x, s.inputs), Matrix::new(dz, s.outputs));
        if let Some(dx) = &io.d_inputs[0] {
            gemm((s.rows, s.inputs, s.outputs), dz_rows, self.matrix(w, &s).t(), dx);
        }
        if let Some(dw) = &io.d_inputs[1] {
            match self.weight {
                WeightLayout::OutIn => gemm((s.outputs, s.inputs, s.rows), dz_rows.t(), x, dw),
                WeightLayout::InOut => gemm((s.inputs, s.outputs, s.rows), x.t(), dz_rows, dw),
            }
        }
        if let Some(Some(db)) = io.d_inputs.get_mut(2) {
            let sums = block_sums(s.rows, s.outputs, s.outputs, |rows, sum| {
                let dz = &dz[rows.start * s.outputs..rows.end * s.outputs];
                dz.chunks_exact(s.outputs).for_each(|dz| add_to(sum, dz, true));
            });
            add_to(db.to.contiguous(), &sums, db.accumulate);
        }
    }
}

/// Rows that a block of the epilogue covers; mirrors the kernel's ROWS.
const ROWS: usize = 32;
/// Rows that one block of the column sums adds up, at least.
const CHUNK: usize = 128;
/// Partial sums of a column, at most: a second launch of one block a column adds them.
const PARTIALS: usize = 256;

/// Into how many partial sums the rows go.
fn partials(rows: usize) -> usize {
    rows.div_ceil(CHUNK).min(PARTIALS)
}

impl Linear {
    fn module(&self) -> Module {
        let gelu = match self.gelu {
            None => 0,
            Some(Gelu::Tanh) => 1,
            Some(Gelu::Erf) => 2,
        };
        Module::new(&SOURCE).define("BIAS", self.bias as i32).define("GELU", gelu)
    }
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
        })?;
        if !self.bias && self.gelu.is_none() {
            return Ok(());
        }
        let bias = if self.bias { io.inputs[2].address } else { 0 };
        let slope = io.saved.first().map_or(0, |p| p.address);
        let grid = [s.rows.div_ceil(ROWS) as u32, s.outputs.div_ceil(32) as u32, 1];
        gpu.launch(
            &self.module(),
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
        let dz = if self.gelu.is_some() { io.scratch.address } else { dy.address };

        if self.gelu.is_some() || d_bias.is_some() {
            let parts = partials(s.rows);
            let partial_sums =
                io.scratch.address + if self.gelu.is_some() { 4 * (s.rows * s.outputs) as u64 } else { 0 };
            let sum = |from: u64, slope: u64, rows: usize, parts: usize, to: u64, accumulate: bool| {
                let chunk = rows.div_ceil(parts.max(1));
                gpu.launch(
                    &self.module(),
                    "linear_column_sums",
                    Launch { grid: [parts as u32, s.outputs.div_ceil(32) as u32, 1], block: [256, 1, 1], shared: 0 },
                    &[
                        &from,
                        &slope,
                        &dz,
                        &(rows as i64),
                        &(s.outputs as i32),
                        &(chunk as i32),
                        &to,
                        &(accumulate as i32),
                    ],
                )
            };
            match d_bias {
                None => sum(dy.address, slope, s.rows, parts, 0, false)?,
                // One block even for no rows: the gradient is then written as zeros.
                Some(d) if parts <= 1 => sum(dy.address, slope, s.rows, 1, d.to.address, d.accumulate)?,
                Some(d) => {
                    sum(dy.address, slope, s.rows, parts, partial_sums, false)?;
                    sum(partial_sums, 0, parts, 1, d.to.address, d.accumulate)?;
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
            })?;
        }
        Ok(())
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(…,I)", optional: false },
        TensorDoc { name: "weight", shape: "(O,I)", optional: false },
        TensorDoc { name: "bias", shape: "(O)", optional: true },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(…,O)", optional: false }],
    options: &[OptionDoc { name: "gelu", value: Some("tanh|erf"), help: "applies this GELU to the result" }],
    record: |run| {
        let gelu = match run.options.get("gelu").map(String::as_str) {
            None => None,
            Some("tanh") => Some(Gelu::Tanh),
            Some("erf") => Some(Gelu::Erf),
            Some(other) => return Err(Error::argument(format!("--gelu {other}"), "is no GELU", "give tanh or erf")),
        };
        let mut inputs = vec![run.real_of_any_shape("x")?, run.real("weight", "(O,I)")?];
        if run.has("bias") {
            inputs.push(run.real("bias", "(O)")?);
        }
        let op = Linear { weight: WeightLayout::OutIn, bias: inputs.len() == 3, gelu };
        run.graph.record(op, &inputs)
    },
};

fn cases() -> Vec<Case> {
    use WeightLayout::{InOut, OutIn};
    let case = |x: &'static [usize], outputs: usize, weight, bias, gelu: Option<Gelu>| {
        let name = format!("{x:?} to {outputs} {weight:?} bias {bias} gelu {gelu:?}");
        Case::new(name, move |g| {
            let inputs = x[x.len() - 1];
            let shape = if weight == OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let mut tensors = vec![g.normal("x", x), g.scaled("weight", &shape, (inputs as f64).powf(-0.5))];
            if bias {
                tensors.push(g.normal("bias", &[outputs]));
            }
            g.record(Linear { weight, bias, gelu }, &tensors)
        })
    };
    // A layer used twice: the second use's gradients are added to the first's.
    let twice = Case::new("one layer twice", |g| {
        let x = g.normal("x", &[300, 37]);
        let (w, b) = (g.scaled("weight", &[37, 37], 0.2), g.normal("bias", &[37]));
        let op = Linear { gelu: Some(Gelu::Tanh), ..Linear::TORCH };
        let y = g.one(op, &[x, w, b])?;
        g.record(op, &[y, w, b])
    });
    vec![
        case(&[1], 1, OutIn, true, None),
        case(&[37, 65], 1, InOut, true, Some(Gelu::Erf)),
        case(&[2, 5, 37], 65, OutIn, true, Some(Gelu::Tanh)).in_every_order(),
        case(&[300, 1], 37, OutIn, true, Some(Gelu::Erf)).in_every_order(),
        case(&[300, 5], 33, InOut, true, None),
        case(&[37, 128], 128, InOut, false, Some(Gelu::Tanh)),
        case(&[65, 65], 37, OutIn, false, None),
        case(&[3, 1000], 128, InOut, true, Some(Gelu::Tanh)),
        case(&[3, 128], 1000, OutIn, true, None),
        case(&[0, 37], 65, OutIn, true, Some(Gelu::Tanh)),
        twice,
    ]
}
