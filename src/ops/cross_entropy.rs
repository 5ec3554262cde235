//! loss = mean over the targets that are not ignored of lse(logits) − logits\[target\]; none left gives 0.
//! The sum over rows is taken in a fixed order. NaN logits of a row that counts give NaN.
//!
//! Beside the mean come the terms themselves, token_losses (…), 0 where the target is ignored: what perplexities of
//! documents and parts of a text are made of. They are for reading: no gradient flows through them.
//!
//! Saves lse of each row and the number of targets that count.
//! d_logits = (softmax(logits) − onehot(target))·dloss/count, 0 where the target is ignored.

use crate::case::Case;
use crate::cpu::Real;
use crate::cpu::simd::sum;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Source};
use crate::graph::Tensor;
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{Given, OptionDoc, RunGraph, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: rows and columns are compared with the sizes that the launch code takes from the places; targets are the
// ignored value or lie in the range that the graph declares and the plan enforces.
const SOURCE: Source = unsafe {
    Source::new(
        "cross_entropy",
        include_str!("../../kernels/cross_entropy.cu"),
        &["cross_entropy_lse", "cross_entropy_mean", "cross_entropy_backward"],
    )
};

/// The mean cross-entropy of [logits (…, V), targets int (…)], a tensor of shape \[1\]; and each target's, (…).
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy {
    /// Targets of this value do not count. All others lie in 0..V.
    pub ignore: i32,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "cross-entropy",
    summary: "mean of lse(logits) − logits[target]",
    cases,
    run: Some(&RUN),
    attention: None,
};

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "logits, targets")?;
        let (rows, _) = rows_and_columns(self.name(), "logits", inputs[0])?;
        let (_, leading) = inputs[0].shape.split_last().expect("at least one axis");
        expect(self.name(), "targets", inputs[1], Spec::int(leading))?;
        Ok(Contract {
            outputs: vec![Output::full([1]), Output::full(leading)],
            constant_outputs: vec![1],
            saved: vec![Spec::full([rows]), Spec::full([1])],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 4.0 * n, forward_bytes: 4.0 * n, backward_flops: 4.0 * n, backward_bytes: 8.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// ln Σ eˣ, shifted by the maximum.
pub(crate) fn lse<R: Real>(x: &[R], mode: Mode) -> R {
    let highest = x.iter().copied().fold(R::NEG_INFINITY, R::maximum);
    if mode == Mode::Definition {
        return highest + x.iter().map(|&x| (x - highest).exp()).sum::<R>().ln();
    }
    let mut tile = [R::ZERO; 256];
    let mut total = R::ZERO;
    for x in x.chunks(tile.len()) {
        let tile = &mut tile[..x.len()];
        tile.iter_mut().zip(x).for_each(|(t, &x)| *t = x - highest);
        R::exp_in_place(tile);
        total += sum(tile);
    }
    highest + total.ln()
}

impl<R: Real> CpuOp<R> for CrossEntropy {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let (logits, targets) = (io.inputs[0].all(), io.inputs[1].ints());
        let columns = io.inputs[0].real().shape.last().copied().unwrap_or(1);
        let lses = io.saved[0].contiguous();
        let block = block_rows(columns);
        lses.par_chunks_mut(block).zip(logits.par_chunks(block * columns)).for_each(|(lses, logits)| {
            lses.iter_mut().zip(logits.chunks_exact(columns)).for_each(|(l, x)| *l = lse(x, mode));
        });
        // Summed in f64: one term after another, f32 would lose a digit over a few thousand targets.
        let (mut total, mut count) = (0.0, 0);
        let token_losses = io.outputs[1].contiguous();
        for (i, (x, &target)) in logits.chunks_exact(columns).zip(targets).enumerate() {
            let counts = target != self.ignore;
            token_losses[i] = if counts { lses[i] - x[target as usize] } else { R::ZERO };
            total += token_losses[i].to_f64();
            count += counts as usize;
        }
        io.outputs[0].fill(if count > 0 { R::from_f64(total / count as f64) } else { R::ZERO });
        io.saved[1].fill(R::from_usize(count));
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, mode: Mode) {
        let (Some(d_loss), Some(d)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        let (logits, targets) = (io.inputs[0].all(), io.inputs[1].ints());
        let columns = io.inputs[0].real().shape.last().copied().unwrap_or(1);
        let lses = io.saved[0].all();
        // Used only where a target counts, so that the count is not 0.
        let (scale, accumulate) = (d_loss.all()[0] / io.saved[1].all()[0], d.accumulate);
        let row = |x: &[R], target: i32, lse: R, d: &mut [R], p: &mut [R]| {
            if target == self.ignore {
                p.fill(R::ZERO);
            } else {
                p.iter_mut().zip(x).for_each(|(p, &x)| *p = x - lse);
                if mode == Mode::Definition {
                    p.iter_mut().for_each(|p| *p = p.exp());
                } else {
                    R::exp_in_place(p);
                }
                p[target as usize] -= R::ONE;
                p.iter_mut().for_each(|p| *p *= scale);
            }
            add_to(d, p, accumulate);
        };
        let block = block_rows(columns);
        d.to.contiguous().par_chunks_mut(block * columns).enumerate().for_each(|(b, d)| {
            let mut p = vec![R::ZERO; columns];
            for (i, d) in d.chunks_exact_mut(columns).enumerate().map(|(i, d)| (b * block + i, d)) {
                row(&logits[i * columns..][..columns], targets[i], lses[i], d, &mut p);
            }
        });
    }
}

/// One warp a row.
fn launch_rows(rows: usize) -> Launch {
    Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 }
}

impl GpuOp for CrossEntropy {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (logits, targets, lse) = (&io.inputs[0], io.inputs[1].address, io.saved[0].address);
        let (rows, columns) = (io.saved[0].numel(), logits.shape[logits.shape.len() - 1] as i32);
        let (module, token_losses) = (gpu.module(&SOURCE), io.outputs[1].address);
        gpu.launch(
            &module,
            "cross_entropy_lse",
            launch_rows(rows),
            &[&logits.address, &targets, &lse, &token_losses, &(rows as i64), &columns, &self.ignore],
        )?;
        let (loss, count) = (io.outputs[0].address, io.saved[1].address);
        gpu.launch(
            &module,
            "cross_entropy_mean",
            Launch { grid: [1; 3], block: [256, 1, 1], shared: 0 },
            &[&token_losses, &targets, &(rows as i64), &self.ignore, &loss, &count],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(d_loss), Some(d)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let (logits, targets) = (&io.inputs[0], io.inputs[1].address);
        let (rows, columns) = (io.saved[0].numel(), logits.shape[logits.shape.len() - 1] as i32);
        let (lse, count) = (io.saved[0].address, io.saved[1].address);
        gpu.launch(
            &gpu.module(&SOURCE),
            "cross_entropy_backward",
            launch_rows(rows),
            &[
                &logits.address,
                &targets,
                &lse,
                &count,
                &d_loss.address,
                &d.to.address,
                &(rows as i64),
                &columns,
                &self.ignore,
                &(d.accumulate as i32),
            ],
        )
    }
}

/// The user's targets, of `classes` classes, and the value of `--ignore-index`.
///
/// # Errors
/// If the targets are no integers of this shape, or one is neither a class nor the ignored value.
pub(crate) fn targets(run: &mut RunGraph, shape: &[usize], classes: usize) -> Result<(Tensor, i32)> {
    let ignore: i32 = run.option("ignore-index", "an integer")?.unwrap_or(-100);
    let low = (ignore as i64).min(0);
    let targets = run.ints("targets", shape, low..(classes as i64).max(ignore as i64 + 1))?;
    let outside = |t: &&i64| **t != ignore as i64 && !(0..classes as i64).contains(*t);
    if let Some(Given::Int(_, values)) = run.given.get("targets")
        && let Some(t) = values.iter().find(outside)
    {
        let remedy = format!("give classes from 0 to {}, or the ignored {ignore}", classes as i64 - 1);
        return Err(Error::argument("targets", format!("holds {t}"), remedy));
    }
    Ok((targets, ignore))
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "logits", shape: "(…,V)", optional: false },
        TensorDoc { name: "targets", shape: "(…)", optional: false },
    ],
    outputs: &[
        TensorDoc { name: "out", shape: "(1)", optional: false },
        TensorDoc { name: "token_losses", shape: "(…)", optional: false },
    ],
    options: &[OptionDoc {
        name: "ignore-index",
        value: Some("N"),
        help: "targets of this value do not count; -100 unless given",
    }],
    record: |run| {
        let logits = run.real_of_any_shape("logits")?;
        let shape = run.graph.shape(logits).to_vec();
        let Some((&classes, leading)) = shape.split_last() else {
            return Err(Error::argument("logits", "is a single number", "give it as (…,V)"));
        };
        let (targets, ignore) = targets(run, leading, classes)?;
        run.graph.record(CrossEntropy { ignore }, &[logits, targets])
    },
};

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize], scale: f64, ignored: fn(usize) -> bool, name: &str| {
        Case::new(format!("{shape:?} {name}"), move |g| {
            let (&v, leading) = shape.split_last().expect("classes");
            let target = |i: usize| if ignored(i) { -1 } else { (i * 7 % v) as i32 };
            let targets = (0..leading.iter().product()).map(target).collect();
            let logits = g.scaled("logits", shape, scale);
            let targets = g.ints("targets", leading, -1..v as i64, targets);
            g.record(CrossEntropy { ignore: -1 }, &[logits, targets])
        })
    };
    // Two losses of the same logits: one's gradient is added to the other's. An ignored class within 0..V.
    let twice = Case::new("two losses", |g| {
        let logits = g.normal("logits", &[5, 3]);
        let targets = g.ints("targets", &[5], 0..3, vec![0, 1, 2, 1, 0]);
        let mut outputs = g.record(CrossEntropy { ignore: -1 }, &[logits, targets])?;
        outputs.extend(g.record(CrossEntropy { ignore: 1 }, &[logits, targets])?);
        Ok(outputs)
    });
    // A masked class: its probability is 0.
    let masked = Case::new("a logit of −∞", |g| {
        let logits = g.given("logits", &[2, 3], vec![f64::NEG_INFINITY, 0.5, 1.0, 2.0, f64::NEG_INFINITY, -1.0]);
        let targets = g.ints("targets", &[2], 0..3, vec![1, 2]);
        g.record(CrossEntropy { ignore: -1 }, &[logits, targets])
    });
    vec![
        case(&[1], 1.0, |_| false, "one class"),
        case(&[37, 1], 1.0, |_| false, "one class"),
        case(&[3, 5, 37], 1.0, |i| i % 3 == 0, "a third ignored"),
        case(&[300, 65], 1.0, |i| i == 299, "the last ignored").in_every_order(),
        case(&[600, 3], 1.0, |i| i < 520, "the first ignored").in_every_order(),
        case(&[3, 1000], 30.0, |_| false, "large logits"),
        case(&[5, 37], 1.0, |_| true, "all ignored"),
        case(&[0, 37], 1.0, |_| false, "no rows"),
        twice,
        masked,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::graph::Graph;
    use crate::plan::{Plan, PlanOptions};
    use std::sync::Arc;

    /// Logits 0 and ln 3: probabilities 1/4 and 3/4.
    #[test]
    fn each_target_has_its_loss() {
        let mut g = Graph::new();
        let logits = g.variable("logits", &[3, 2]);
        let targets = g.indices("targets", &[3], -1..2);
        let losses = g.record(CrossEntropy { ignore: -1 }, &[logits, targets]).unwrap();
        let options = PlanOptions { keep: losses.clone(), ..Default::default() };
        let plan = Plan::new(g, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
        plan.write(logits, &[0.0, 3f64.ln(), 0.0, 3f64.ln(), 0.0, 3f64.ln()]).unwrap();
        plan.write_indices(targets, &[0, -1, 1]).unwrap();
        plan.forward().unwrap();
        let (mean, each) = (plan.read(losses[0]).unwrap()[0], plan.read(losses[1]).unwrap());
        let expected = [4f64.ln(), 0.0, (4f64 / 3.0).ln()];
        assert!(each.iter().zip(expected).all(|(x, e)| (x - e).abs() < 1e-15), "{each:?}");
        assert!((mean - (expected[0] + expected[2]) / 2.0).abs() < 1e-15);
    }
}
