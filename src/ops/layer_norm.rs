//! y = (x − mean)·rstd·weight + bias over the last axis, rstd = 1/√(variance + ε), the variance biased and in two passes.
//!
//! Saves mean and rstd of each row. With x̂ = (x − mean)·rstd and g = dy·weight:
//! dx = rstd·(g − mean(g) − x̂·mean(g·x̂)); dweight = Σ dy·x̂ and dbias = Σ dy over the rows.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: rows and columns are compared with the sizes that the launch code takes from the places; `partial` holds two
// rows for each block.
const SOURCE: Source = unsafe {
    Source::new(
        "layer_norm",
        include_str!("../../kernels/layer_norm.cu"),
        &["layer_norm_forward", "layer_norm_backward", "layer_norm_partial_sums", "layer_norm_sums"],
    )
};

/// Normalises each row of [x (…, C), weight (C), bias (C)].
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "layer-norm",
    summary: "(x − mean)·rstd·weight + bias over the last axis",
    cases,
    run: Some(&RUN),
    attention: None,
};

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 3, "x, weight, bias")?;
        let (rows, columns) = rows_and_columns(self.name(), "x", inputs[0])?;
        expect(self.name(), "weight", inputs[1], Spec::real([columns]))?;
        expect(self.name(), "bias", inputs[2], Spec::real([columns]))?;
        Ok(Contract {
            outputs: vec![Output::real(inputs[0].shape.clone())],
            saved: vec![Spec::full([rows]), Spec::full([rows])],
            scratch_backward: 2 * partials(rows) * columns,
            backward_reads_inputs: vec![true, true, false],
            weights: vec![false, true, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 8.0 * n, forward_bytes: 8.0 * n, backward_flops: 14.0 * n, backward_bytes: 12.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// y from x, a row of each; returns mean and rstd.
#[inline(always)]
fn forward_row<R: Real>(x: &[R], (weight, bias): (&[R], &[R]), eps: R, y: &mut [R], mode: Mode) -> (R, R) {
    let n = R::from_usize(x.len());
    let mean = if mode == Mode::Definition { x.iter().copied().sum::<R>() } else { short_sum(x) } / n;
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - mean);
    let squares = if mode == Mode::Definition { y.iter().map(|&y| y * y).sum::<R>() } else { short_dot(y, y) };
    let rstd = R::ONE / (squares / n + eps).sqrt();
    y.iter_mut().zip(weight.iter().zip(bias)).for_each(|(y, (&w, &b))| *y = *y * rstd * w + b);
    (mean, rstd)
}

/// dx from x and dy, a row of each. `g` and `normal` are working memory of a row.
#[inline(always)]
fn backward_row<R: Real>(
    (x, dy, weight): (&[R], &[R], &[R]),
    (mean, rstd): (R, R),
    (g, normal): (&mut [R], &mut [R]),
    (dx, accumulate): (&mut [R], bool),
    mode: Mode,
) {
    let n = R::from_usize(x.len());
    g.iter_mut().zip(dy.iter().zip(weight)).for_each(|(g, (&dy, &w))| *g = dy * w);
    normal.iter_mut().zip(x).for_each(|(normal, &x)| *normal = (x - mean) * rstd);
    let (sum, dot) = if mode == Mode::Definition {
        (g.iter().copied().sum::<R>(), g.iter().zip(&*normal).map(|(&g, &x)| g * x).sum::<R>())
    } else {
        (short_sum(g), short_dot(g, normal))
    };
    let (mean_g, projection) = (sum / n, dot / n);
    g.iter_mut().zip(&*normal).for_each(|(g, &x)| *g = rstd * (*g - mean_g - x * projection));
    add_to(dx, g, accumulate);
}

/// dweight += dy·x̂ and dbias += dy, a row of each.
#[inline(always)]
fn add_row<R: Real>(x: &[R], dy: &[R], (mean, rstd): (R, R), d_weight: &mut [R], d_bias: &mut [R]) {
    d_weight.iter_mut().zip(x.iter().zip(dy)).for_each(|(d, (&x, &dy))| *d += dy * ((x - mean) * rstd));
    d_bias.iter_mut().zip(dy).for_each(|(d, &dy)| *d += dy);
}

impl<R: Real> CpuOp<R> for LayerNorm {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let (x, weight, bias) = (io.inputs[0].all(), io.inputs[1].all(), io.inputs[2].all());
        let (columns, eps) = (weight.len(), R::from_f64(self.eps));
        let (y, mean, rstd) = (io.outputs[0].contiguous(), io.saved[0].contiguous(), io.saved[1].contiguous());
        let rows = block_rows(columns);
        (y.par_chunks_mut(rows * columns).zip(x.par_chunks(rows * columns)))
            .zip(mean.par_chunks_mut(rows).zip(rstd.par_chunks_mut(rows)))
            .for_each(|((y, x), (mean, rstd))| {
                let rows = y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(mean.iter_mut().zip(rstd));
                wide!(R, || {
                    for ((y, x), (mean, rstd)) in rows {
                        (*mean, *rstd) = forward_row(x, (weight, bias), eps, y, mode);
                    }
                });
            });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let (x, weight, dy) = (io.inputs[0].all(), io.inputs[1].all(), dy.all());
        let (mean, rstd) = (io.saved[0].all(), io.saved[1].all());
        let (columns, rows) = (weight.len(), mean.len());
        let [d_x, d_weight, d_bias] = &mut io.d_inputs[..] else { unreachable!("three inputs") };
        let row_of = |i: usize| (&x[i * columns..][..columns], &dy[i * columns..][..columns], (mean[i], rstd[i]));

        if let Some(d) = d_x {
            let (block, accumulate) = (block_rows(columns), d.accumulate);
            d.to.contiguous().par_chunks_mut(block * columns).enumerate().for_each(|(b, dx)| {
                let (mut g, mut normal) = (vec![R::ZERO; columns], vec![R::ZERO; columns]);
                wide!(R, || {
                    for (i, dx) in dx.chunks_exact_mut(columns).enumerate() {
                        let (x, dy, statistics) = row_of(b * block + i);
                        let working = (&mut g[..], &mut normal[..]);
                        backward_row((x, dy, weight), statistics, working, (dx, accumulate), mode);
                    }
                });
            });
        }
        if d_weight.is_none() && d_bias.is_none() {
            return;
        }
        let sums = block_sums(
            rows,
            columns,
            2 * columns,
            #[inline(always)]
            |range, sums| {
                let (d_weight, d_bias) = sums.split_at_mut(columns);
                for i in range {
                    let (x, dy, statistics) = row_of(i);
                    add_row(x, dy, statistics, d_weight, d_bias);
                }
            },
        );
        for (d, sums) in [d_weight, d_bias].into_iter().zip(sums.chunks_exact(columns)) {
            if let Some(d) = d {
                add_to(d.to.contiguous(), sums, d.accumulate);
            }
        }
    }
}

/// Rows that one block adds up, at least, for the gradients of weight and bias.
const CHUNK: usize = 64;
/// Partial sums of a column, at most.
const PARTIALS: usize = 256;

/// Into how many partial sums the rows go.
fn partials(rows: usize) -> usize {
    rows.div_ceil(CHUNK).min(PARTIALS)
}

/// One warp a row.
fn launch_rows(rows: usize) -> Launch {
    Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 }
}

impl GpuOp for LayerNorm {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (rows, columns) = (io.saved[0].numel(), io.inputs[1].numel());
        let [x, weight, bias] = [0, 1, 2].map(|i| io.inputs[i].address);
        let (y, mean, rstd) = (io.outputs[0].address, io.saved[0].address, io.saved[1].address);
        gpu.launch(
            &gpu.module(&SOURCE),
            "layer_norm_forward",
            launch_rows(rows),
            &[&x, &weight, &bias, &y, &mean, &rstd, &(rows as i64), &(columns as i32), &(self.eps as f32)],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let (rows, columns) = (io.saved[0].numel(), io.inputs[1].numel());
        let module = gpu.module(&SOURCE);
        let (x, weight, dy) = (io.inputs[0].address, io.inputs[1].address, dy.address);
        let (mean, rstd) = (io.saved[0].address, io.saved[1].address);
        let (long_rows, int_columns) = (rows as i64, columns as i32);
        if let Some(dx) = &io.d_inputs[0] {
            let accumulate = dx.accumulate as i32;
            gpu.launch(
                &module,
                "layer_norm_backward",
                launch_rows(rows),
                &[&x, &weight, &mean, &rstd, &dy, &dx.to.address, &long_rows, &int_columns, &accumulate],
            )?;
        }
        if io.d_inputs[1].is_none() && io.d_inputs[2].is_none() {
            return Ok(());
        }
        let (parts, tiles) = (partials(rows), columns.div_ceil(32) as u32);
        let (chunk, partial) = (rows.div_ceil(parts.max(1)) as i32, io.scratch.address);
        gpu.launch(
            &module,
            "layer_norm_partial_sums",
            Launch { grid: [parts as u32, tiles, 1], block: [256, 1, 1], shared: 0 },
            &[&x, &mean, &rstd, &dy, &long_rows, &int_columns, &chunk, &partial],
        )?;
        let target = |i: usize| {
            let d: Option<&Gradient<Place>> = io.d_inputs[i].as_ref();
            (d.map_or(0, |d| d.to.address), d.is_some_and(|d| d.accumulate) as i32)
        };
        let ((d_weight, to_weight), (d_bias, to_bias)) = (target(1), target(2));
        gpu.launch(
            &module,
            "layer_norm_sums",
            Launch { grid: [tiles, 2, 1], block: [256, 1, 1], shared: 0 },
            &[&partial, &(parts as i32), &int_columns, &d_weight, &to_weight, &d_bias, &to_bias],
        )
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(…,C)", optional: false },
        TensorDoc { name: "weight", shape: "(C)", optional: false },
        TensorDoc { name: "bias", shape: "(C)", optional: false },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(…,C)", optional: false }],
    options: &[OptionDoc { name: "eps", value: Some("X"), help: "added to the variance; 1e-5 unless given" }],
    record: |run| {
        let eps = run.option("eps", "a number")?.unwrap_or(1e-5);
        if !(0.0..1.0).contains(&eps) {
            return Err(Error::argument(format!("--eps {eps}"), "is out of range", "give 0 or more, below 1"));
        }
        let inputs = [run.real_of_any_shape("x")?, run.real("weight", "(C)")?, run.real("bias", "(C)")?];
        run.graph.record(LayerNorm { eps }, &inputs)
    },
};

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize], eps: f64| {
        Case::new(format!("{shape:?} eps {eps}"), move |g| {
            let c = shape[shape.len() - 1];
            let (x, weight, bias) = (g.normal("x", shape), g.normal("weight", &[c]), g.normal("bias", &[c]));
            g.record(LayerNorm { eps }, &[x, weight, bias])
        })
    };
    // Far from zero, where a one-pass variance would cancel.
    let shifted = Case::new("mean 1000, deviation 1", |g| {
        let values = g.draw(3 * 65, 1.0).iter().map(|v| (v + 1000.0) as f32 as f64).collect();
        let (x, weight, bias) = (g.given("x", &[3, 65], values), g.normal("weight", &[65]), g.normal("bias", &[65]));
        g.record(LayerNorm { eps: 1e-5 }, &[x, weight, bias])
    });
    let twice = Case::new("one layer twice", |g| {
        let (x, weight, bias) = (g.normal("x", &[37, 5]), g.normal("weight", &[5]), g.normal("bias", &[5]));
        let y = g.one(LayerNorm { eps: 1e-5 }, &[x, weight, bias])?;
        g.record(LayerNorm { eps: 1e-5 }, &[y, weight, bias])
    });
    vec![
        case(&[1, 1], 1e-5),
        case(&[37, 1], 1e-5),
        case(&[2, 5, 37], 1e-5).in_every_order(),
        case(&[300, 65], 1e-5).in_every_order(),
        case(&[3, 1000], 0.1),
        case(&[37, 128], 1e-5),
        case(&[0, 37], 1e-5),
        shifted,
        twice,
    ]
}
