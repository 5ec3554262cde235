//! The linear layer on the CPU: products by gemm, and what stands around them while rows are hot in the cache.

use super::{Activation, Linear, Sizes, WeightLayout};
use crate::cpu::lanes::{Kernel, Simd, vectorise};
use crate::cpu::{Matrix, Real, Threads};
use crate::op::*;
use crate::ops::rows::*;
use rayon::prelude::*;

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
            Activation::Tanh => {
                *y = z.tanh();
                *slope = R::ONE - *y * *y;
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
    wide!(R, || {
        for (y, slope) in y.iter_mut().zip(slope) {
            // NaN stays: it is below nothing.
            *slope = if *y > R::ZERO { R::ONE } else { R::ZERO };
            *y = if *y < R::ZERO { R::ZERO } else { *y };
        }
    });
}

fn tanh<R: Real>(y: &mut [R], slope: &mut [R]) {
    R::tanh_in_place(y);
    wide!(R, || slope.iter_mut().zip(&*y).for_each(|(slope, &y)| *slope = R::ONE - y * y));
}

/// y ← g(y), slope ← g′(y) before.
pub(crate) fn activate<R: Real>(mode: Mode, activation: Activation, y: &mut [R], slope: &mut [R]) {
    match activation {
        _ if mode == Mode::Definition => activate_by_definition(activation, y, slope),
        Activation::GeluTanh => vectorise(GeluTanh { y, slope }),
        Activation::GeluErf => gelu_erf(y, slope),
        Activation::Relu => relu(y, slope),
        Activation::Tanh => tanh(y, slope),
    }
}

/// C ← A·B + β·C by the mode's means.
pub(crate) fn product<R: Real>(
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
                wide!(R, || y.chunks_exact_mut(s.outputs).for_each(|y| add_to(y, bias, true)));
            }
            if let (Some(activation), Some(slope)) = (self.activation, slope) {
                activate(mode, activation, y, slope);
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
                        wide!(R, || dz.iter_mut().zip(terms).for_each(|(dz, (&dy, &slope))| *dz = dy * slope));
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
                    wide!(R, || dz.chunks_exact(s.outputs).for_each(|dz| add_to(&mut bias, dz, true)));
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
