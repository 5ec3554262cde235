//! y = g(x·W + b), x (…, I), y (…, O); W is stored as PyTorch's nn.Linear has it, (O, I), or as GPT-2's Conv1D, (I, O).
//! g is the identity, a GELU or the ReLU; b may be absent.
//!
//! With such a g, g′(x·W + b) is saved rather than x·W + b: it takes the same memory, and the tanh or erf is computed once.
//! dz = dy·g′; dx = dz·Wᵀ; dW = xᵀ·dz; db = Σ dz over the rows.

use crate::case::Case;
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::{Matrix, Real, Threads};
use crate::error::{Error, Result};
use crate::gpu::{Argument, Gpu, Launch, Matmul, Module, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: rows and columns are compared with the sizes that the launch code takes from the places; `sums` holds as many
// rows as there are blocks.
const SOURCE: Source = unsafe {
    Source::new(
        "linear",
        include_str!("../../kernels/linear.cu"),
        &["linear_epilogue", "linear_column_sums", "linear_sum_partials"],
    )
};

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// (O, I), as nn.Linear stores it.
    OutIn,
    /// (I, O), as GPT-2's Conv1D stores it.
    InOut,
}

/// What a layer applies to its sums: one of the two forms of GELU, or the ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))): GPT-2's GELU.
    GeluTanh,
    /// z·Φ(z): nn.GELU's default.
    GeluErf,
    /// max(z, 0); its derivative at 0 is 0.
    Relu,
}

/// y = g(x·W + b), on [x (…, I), weight] or [x, weight, bias (O)].
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// How the weight lies in memory.
    pub weight: WeightLayout,
    /// Whether there is a bias.
    pub bias: bool,
    /// What follows; `None`: nothing.
    pub activation: Option<Activation>,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "linear",
    summary: "y = g(x·W + b), g a GELU, the ReLU or nothing",
    cases,
    run: Some(&RUN),
    attention: None,
};

struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// nn.Linear: weight (O, I), a bias, nothing after it.
    pub const TORCH: Linear = Linear { weight: WeightLayout::OutIn, bias: true, activation: None };

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
        let activated = self.activation.is_some();
        Ok(Contract {
            saved: if activated { vec![Spec::real(shape.clone())] } else { vec![] },
            outputs: vec![Output::real(shape)],
            scratch_backward: if activated { rows * outputs } else { 0 } + partials(rows) * outputs,
            backward_reads_inputs: [true, true, false][..inputs.len()].to_vec(),
            weights: [false, true, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let (x, w, y) = ((s.rows * s.inputs) as f64, (s.inputs * s.outputs) as f64, (s.rows * s.outputs) as f64);
        let saved = if self.activation.is_some() { y } else { 0.0 };
        let product = 2.0 * x * s.outputs as f64;
        Cost {
            forward_flops: product,
            forward_bytes: 4.0 * (x + w + y + saved),
            backward_flops: 2.0 * product,
            backward_bytes: 4.0 * (2.0 * x + 2.0 * w + y + saved),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

const SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)
const CUBIC: f64 = 0.044715;

/// y ← g(y), slope ← g′(y) before, straight from the formula.
fn activate_by_definition<R: Real>(activation: Activation, y: &mut [R], slope: &mut [R]) {
    let [half, three, scale, cubic] = [0.5, 3.0, SCALE, CUBIC].map(R::from_f64);
    for (slope, y) in slope.iter_mut().zip(y) {
        let z = *y;
        // Φ-like factor, and its derivative.
        let (below, density) = match activation {
            Activation::GeluTanh => {
                let t = (scale * (z + cubic * z * z * z)).tanh();
                (half * (R::ONE + t), half * (R::ONE - t * t) * scale * (R::ONE + three * cubic * z * z))
            }
            Activation::GeluErf => {
                let below = half * (R::ONE + (z * R::from_f64(0.5f64.sqrt())).erf());
                (below, R::from_f64(SCALE / 2.0) * (-half * z * z).exp())
            }
            Activation::Relu => {
                *slope = if z > R::ZERO { R::ONE } else { R::ZERO };
                *y = if z < R::ZERO { R::ZERO } else { z };
                continue;
            }
        };
        *slope = below + z * density;
        *y = z * below;
    }
}

/// (g(z), g′(z)) of the tanh form, which is z·σ(2u), u the argument of tanh: one exponential, and no cancellation at
/// negative z.
#[inline(always)]
fn gelu_tanh<R: Real, S: Simd<R>>(s: S, z: S::V) -> (S::V, S::V) {
    let [limit, scale, cubic] = [20.0, 2.0 * SCALE, 2.0 * SCALE * CUBIC].map(R::from_f64);
    let (one, three) = (s.splat(R::ONE), s.splat(R::from_f64(3.0)));
    // Beyond ±20 the derivative is 0 or 1; without the limit, infinity times 0 would come in. NaN stays.
    let near = s.min(s.splat(limit), s.max(s.splat(-limit), z));
    let square = near * near * s.splat(cubic);
    let u2 = (square + s.splat(scale)) * near;
    let slope_u2 = s.mul_add(square, three, s.splat(scale));
    let gate = one / (one + s.exp2(u2 * s.splat(R::from_f64(-std::f64::consts::LOG2_E))));
    (z * gate, s.mul_add(near * slope_u2, gate * (one - gate), gate))
}

/// y ← g(y), slope ← g′(y) before, vectorised.
struct GeluTanh<'a, R> {
    y: &'a mut [R],
    slope: &'a mut [R],
}

impl<R: Real> Kernel<R> for GeluTanh<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<R>>(self, s: S) {
        let whole = self.y.len() / S::LANES * S::LANES;
        let (y, y_rest) = self.y.split_at_mut(whole);
        let (slope, slope_rest) = self.slope.split_at_mut(whole);
        for (y, slope) in y.chunks_exact_mut(S::LANES).zip(slope.chunks_exact_mut(S::LANES)) {
            let (value, derivative) = gelu_tanh(s, s.load(y));
            s.store(value, y);
            s.store(derivative, slope);
        }
        let mut padded = [[R::ZERO; 16]; 2];
        padded[0][..y_rest.len()].copy_from_slice(y_rest);
        let (value, derivative) = gelu_tanh(s, s.load(&padded[0]));
        s.store(value, &mut padded[0]);
        s.store(derivative, &mut padded[1]);
        y_rest.copy_from_slice(&padded[0][..y_rest.len()]);
        slope_rest.copy_from_slice(&padded[1][..slope_rest.len()]);
    }
}

fn gelu_erf<R: Real>(y: &mut [R], slope: &mut [R]) {
    const TILE: usize = 256;
    let [half, root, peak] = [0.5, 0.5f64.sqrt(), SCALE / 2.0].map(R::from_f64);
    for (y, slope) in y.chunks_mut(TILE).zip(slope.chunks_mut(TILE)) {
        let mut density = [R::ZERO; TILE];
        let density = &mut density[..y.len()];
        density.iter_mut().zip(&*y).for_each(|(d, &z)| *d = -half * z * z);
        R::exp_in_place(density);
        slope.iter_mut().zip(&*y).for_each(|(slope, &z)| *slope = z * root);
        R::erf_in_place(slope);
        for ((slope, y), &d) in slope.iter_mut().zip(y).zip(&*density) {
            let below = half * (R::ONE + *slope);
            *slope = below + *y * peak * d;
            *y *= below;
        }
    }
}

fn relu<R: Real>(y: &mut [R], slope: &mut [R]) {
    wide::<R, _>(|| {
        for (y, slope) in y.iter_mut().zip(slope) {
            // NaN stays: it is below nothing.
            *slope = if *y > R::ZERO { R::ONE } else { R::ZERO };
            *y = if *y < R::ZERO { R::ZERO } else { *y };
        }
    });
}

/// C ← A·B + β·C by the mode's means.
fn product<R: Real>(
    (mode, threads): (Mode, Threads),
    (m, n, k): (usize, usize, usize),
    a: Matrix<R>,
    b: Matrix<R>,
    accumulate: bool,
    c: &mut [R],
) {
    if mode == Mode::Fast {
        let beta = if accumulate { R::ONE } else { R::ZERO };
        return R::gemm((m, n, k), R::ONE, a, b, beta, c, n, threads);
    }
    for i in 0..m {
        for j in 0..n {
            let term = |k: usize| a.data[i * a.row + k * a.column] * b.data[k * b.row + j * b.column];
            let before = if accumulate { c[i * n + j] } else { R::ZERO };
            c[i * n + j] = before + (0..k).map(term).sum::<R>();
        }
    }
}

/// How the CPU divides the work: by shape and mode alone.
struct Division {
    /// Rows of a part.
    rows: usize,
    /// Whether each part does its own products, on one thread, with everything around them while rows are hot in the
    /// cache. Otherwise the weight is large, and each product is one on all threads.
    own_products: bool,
}

impl Division {
    fn of(s: &Sizes, mode: Mode) -> Division {
        if mode == Mode::Definition {
            return Division { rows: s.rows.max(1), own_products: true };
        }
        // At most 16 parts, as each has its own sum of the weight's gradient; at least 256 rows, for gemm's sake.
        let rows = s.rows.div_ceil(16).next_multiple_of(64).max(256);
        Division { rows, own_products: s.inputs * s.outputs <= 1 << 16 }
    }
}

/// A tensor's parts of `len` elements, or as many times nothing.
fn parts<R>(tensor: Option<&mut [R]>, len: usize, count: usize) -> Vec<Option<&mut [R]>> {
    match tensor {
        Some(all) => all.chunks_mut(len).map(Some).collect(),
        None => (0..count).map(|_| None).collect(),
    }
}

impl<R: Real> CpuOp<R> for Linear {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let s = self.sizes(io.inputs[0].real().shape, io.inputs[1].real().shape);
        let (x, w) = (io.inputs[0].all(), self.matrix(io.inputs[1].all(), &s));
        let bias = if self.bias { io.inputs[2].all() } else { &[] };
        let y = io.outputs[0].contiguous();
        let slope = io.saved.first_mut().map(|m| m.contiguous());
        let division = Division::of(&s, mode);
        if !division.own_products {
            product((mode, Threads::All), (s.rows, s.outputs, s.inputs), Matrix::new(x, s.inputs), w, false, y);
        }
        let (len, count) = (division.rows * s.outputs, s.rows.div_ceil(division.rows));
        let slopes = parts(slope, len, count).into_par_iter();
        y.par_chunks_mut(len).zip(x.par_chunks(division.rows * s.inputs)).zip(slopes).for_each(|((y, x), slope)| {
            if division.own_products {
                let mnk = (y.len() / s.outputs, s.outputs, s.inputs);
                product((mode, Threads::One), mnk, Matrix::new(x, s.inputs), w, false, y);
            }
            if self.bias {
                wide::<R, _>(|| y.chunks_exact_mut(s.outputs).for_each(|y| add_to(y, bias, true)));
            }
            match (self.activation, slope) {
                (Some(activation), Some(slope)) if mode == Mode::Definition => {
                    activate_by_definition(activation, y, slope)
                }
                (Some(Activation::GeluTanh), Some(slope)) => vectorise(GeluTanh { y, slope }),
                (Some(Activation::GeluErf), Some(slope)) => gelu_erf(y, slope),
                (Some(Activation::Relu), Some(slope)) => relu(y, slope),
                _ => (),
            }
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let s = self.sizes(io.inputs[0].real().shape, io.inputs[1].real().shape);
        let Some(dy) = &io.d_outputs[0] else { return };
        let (x, dy) = (io.inputs[0].all(), dy.all());
        let w = self.matrix(io.inputs[1].all(), &s);
        let slope = io.saved.first().map(|slope| slope.all());
        // dW as it is stored is the product of two of xᵀ, x, dzᵀ, dz.
        let d_weight = |how: (Mode, Threads), x: &[R], dz: &[R], accumulate: bool, to: &mut [R]| {
            let (rows, x, dz) = (x.len() / s.inputs, Matrix::new(x, s.inputs), Matrix::new(dz, s.outputs));
            match self.weight {
                WeightLayout::OutIn => product(how, (s.outputs, s.inputs, rows), dz.t(), x, accumulate, to),
                WeightLayout::InOut => product(how, (s.inputs, s.outputs, rows), x.t(), dz, accumulate, to),
            }
        };
        let division = Division::of(&s, mode);
        let own = division.own_products;
        let (wants_weight, wants_bias) = (io.d_inputs[1].is_some(), io.d_inputs.get(2).is_some_and(Option::is_some));
        let add_dx = io.d_inputs[0].is_some_and(|d| d.accumulate);
        let mut all_dx = io.d_inputs[0].map(|mut d| d.to.contiguous());
        let mut all_dz = slope.map(|_| &mut io.scratch.contiguous()[..s.rows * s.outputs]);

        // Part by part: dz, dx, and sums for dW and db.
        let (rows, count) = (division.rows, s.rows.div_ceil(division.rows));
        let dx_parts = parts(all_dx.as_deref_mut().filter(|_| own), rows * s.inputs, count).into_par_iter();
        let dz_parts = parts(all_dz.as_deref_mut(), rows * s.outputs, count).into_par_iter();
        let sums: Vec<(Vec<R>, Vec<R>)> = (dx_parts.zip(dz_parts).enumerate())
            .map(|(part, (dx, dz))| {
                let range = part * rows..((part + 1) * rows).min(s.rows);
                let x = &x[range.start * s.inputs..range.end * s.inputs];
                let outputs = range.start * s.outputs..range.end * s.outputs;
                let dy = &dy[outputs.clone()];
                let dz: &[R] = match (dz, slope) {
                    (Some(dz), Some(slope)) => {
                        let terms = dy.iter().zip(&slope[outputs]);
                        wide::<R, _>(|| dz.iter_mut().zip(terms).for_each(|(dz, (&dy, &slope))| *dz = dy * slope));
                        dz
                    }
                    _ => dy,
                };
                if let Some(dx) = dx {
                    let mnk = (range.len(), s.inputs, s.outputs);
                    product((mode, Threads::One), mnk, Matrix::new(dz, s.outputs), w.t(), add_dx, dx);
                }
                let mut weight = vec![R::ZERO; if wants_weight && own { s.inputs * s.outputs } else { 0 }];
                if wants_weight && own {
                    d_weight((mode, Threads::One), x, dz, false, &mut weight);
                }
                let mut bias = vec![R::ZERO; if wants_bias { s.outputs } else { 0 }];
                if wants_bias {
                    wide::<R, _>(|| dz.chunks_exact(s.outputs).for_each(|dz| add_to(&mut bias, dz, true)));
                }
                (weight, bias)
            })
            .collect();
        if !own {
            let dz = all_dz.as_deref().unwrap_or(dy);
            if let Some(dx) = all_dx {
                let mnk = (s.rows, s.inputs, s.outputs);
                product((mode, Threads::All), mnk, Matrix::new(dz, s.outputs), w.t(), add_dx, dx);
            }
            if let Some(d) = &mut io.d_inputs[1] {
                d_weight((mode, Threads::All), x, dz, d.accumulate, d.to.contiguous());
            }
        } else if let Some(d) = io.d_inputs[1] {
            let d = d.added();
            sums.iter().for_each(|(weight, _)| add_to(d, weight, true));
        }
        if let Some(Some(d)) = io.d_inputs.get(2) {
            let d = d.added();
            sums.iter().for_each(|(_, bias)| add_to(d, bias, true));
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
    fn module(&self, gpu: &Gpu) -> Module {
        let activation = match self.activation {
            None => 0,
            Some(Activation::GeluTanh) => 1,
            Some(Activation::GeluErf) => 2,
            Some(Activation::Relu) => 3,
        };
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

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(…,I)", optional: false },
        TensorDoc { name: "weight", shape: "(O,I)", optional: false },
        TensorDoc { name: "bias", shape: "(O)", optional: true },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(…,O)", optional: false }],
    options: &[OptionDoc { name: "gelu", value: Some("tanh|erf"), help: "applies this GELU to the result" }],
    record: |run| {
        let activation = match run.options.get("gelu").map(String::as_str) {
            None => None,
            Some("tanh") => Some(Activation::GeluTanh),
            Some("erf") => Some(Activation::GeluErf),
            Some(other) => return Err(Error::argument(format!("--gelu {other}"), "is no GELU", "give tanh or erf")),
        };
        let mut inputs = vec![run.real_of_any_shape("x")?, run.real("weight", "(O,I)")?];
        if run.has("bias") {
            inputs.push(run.real("bias", "(O)")?);
        }
        let op = Linear { weight: WeightLayout::OutIn, bias: inputs.len() == 3, activation };
        run.graph.record(op, &inputs)
    },
};

fn cases() -> Vec<Case> {
    use WeightLayout::{InOut, OutIn};
    let case = |x: &'static [usize], outputs: usize, weight, bias, activation: Option<Activation>| {
        let name = format!("{x:?} to {outputs} {weight:?} bias {bias} {activation:?}");
        Case::new(name, move |g| {
            let inputs = x[x.len() - 1];
            let shape = if weight == OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let mut tensors = vec![g.normal("x", x), g.scaled("weight", &shape, (inputs as f64).powf(-0.5))];
            if bias {
                tensors.push(g.normal("bias", &[outputs]));
            }
            g.record(Linear { weight, bias, activation }, &tensors)
        })
    };
    // The ReLU's slope jumps at 0, where rounding would decide it: all sums here are halves of odd integers, in every
    // precision exactly.
    let relu = |rows: usize, inputs: usize, outputs: usize, weight, bias| {
        Case::new(format!("[{rows}, {inputs}] to {outputs} {weight:?} bias {bias} ReLU"), move |g| {
            let shape = if weight == OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let input = |i: usize| if weight == OutIn { i % inputs } else { i / outputs };
            let x = |i: usize| if i.is_multiple_of(inputs) { 0.5 } else { (i * 7 % 5) as f64 - 2.0 };
            let w = |i: usize| if input(i) == 0 { 1.0 } else { (i * 11 % 7 % 3) as f64 - 1.0 };
            let mut tensors = vec![
                g.given("x", &[rows, inputs], (0..rows * inputs).map(x).collect()),
                g.given("weight", &shape, (0..inputs * outputs).map(w).collect()),
            ];
            if bias {
                tensors.push(g.given("bias", &[outputs], (0..outputs).map(|o| (o % 3) as f64 - 1.0).collect()));
            }
            g.record(Linear { weight, bias, activation: Some(Activation::Relu) }, &tensors)
        })
    };
    // A layer used twice: the second use's gradients are added to the first's.
    let twice = Case::new("one layer twice", |g| {
        let x = g.normal("x", &[300, 37]);
        let (w, b) = (g.scaled("weight", &[37, 37], 0.2), g.normal("bias", &[37]));
        let op = Linear { activation: Some(Activation::GeluTanh), ..Linear::TORCH };
        let y = g.one(op, &[x, w, b])?;
        g.record(op, &[y, w, b])
    });
    // Parameters, which a 16-bit device keeps in f32 beside what the layer reads.
    let trained = Case::new("a layer of parameters", |g| {
        let x = g.normal("x", &[37, 65]);
        let (w, b) = (g.weight("weight", &[33, 65], 0.1), g.weight("bias", &[33], 1.0));
        g.record(Linear::TORCH, &[x, w, b])
    });
    vec![
        case(&[1], 1, OutIn, true, None),
        case(&[37, 65], 1, InOut, true, Some(Activation::GeluErf)),
        case(&[2, 5, 37], 65, OutIn, true, Some(Activation::GeluTanh)).in_every_order(),
        case(&[300, 1], 37, OutIn, true, Some(Activation::GeluErf)).in_every_order(),
        case(&[300, 5], 33, InOut, true, None),
        case(&[37, 128], 128, InOut, false, Some(Activation::GeluTanh)),
        case(&[65, 65], 37, OutIn, false, None),
        case(&[3, 1000], 128, InOut, true, Some(Activation::GeluTanh)),
        case(&[3, 128], 1000, OutIn, true, None),
        case(&[0, 37], 65, OutIn, true, Some(Activation::GeluTanh)),
        // More rows than one part has on the CPU; a weight that is large to it.
        case(&[600, 5], 7, InOut, true, Some(Activation::GeluErf)),
        case(&[3, 300], 300, InOut, true, Some(Activation::GeluErf)),
        relu(3, 5, 37, OutIn, true),
        relu(300, 17, 33, InOut, false).in_every_order(),
        twice,
        trained,
    ]
}
