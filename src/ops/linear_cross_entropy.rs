//! The head of a language model and its loss in one: loss = mean over the targets that are not ignored of
//! lse(h·Wᵀ) − (h·Wᵀ)\[target\], hidden h (…, C), weight W (V, C); none left gives 0.
//!
//! The N×V logits are never in memory: at width 48 and a vocabulary of 50,257 they and their gradient are most of what a
//! training step would hold, and most of its traffic. A tile of rows and classes is multiplied, used, and forgotten.
//!
//! - Forward keeps, of each row, the largest logit so far and Σ exp(logit − largest), rescaled when the largest grows
//!   (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3). Parts of the classes are
//!   summed apart and added in order: lse = M + ln Σₚ sₚ·exp(mₚ − M).
//! - Backward computes each tile again: g = (softmax(h·Wᵀ) − onehot(target))·dloss/count; dh = g·W; dW = gᵀ·h.
//!
//! Saves lse of each row and the number of targets that count. With N rows, forward takes 2·N·V·C floating-point
//! operations and backward 6·N·V·C, a third more than with logits kept; what must move is hidden, weight and their
//! gradients, 4·(N + V)·C bytes in forward and twice that in backward, where logits and their gradients are 8·N·V bytes
//! written and as many read. Beside the mean come token_losses (…), 0 where the target is ignored, without a gradient.
//! Sums are taken in an order fixed by the sizes. A NaN reaches the loss of a row that counts, and no other.

mod cpu;
mod gpu;

use crate::case::Case;
use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::cross_entropy::targets;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};

/// The mean cross-entropy of logits h·Wᵀ on [hidden (…, C), weight (V, C), targets int (…)], a tensor of shape \[1\]; and
/// each target's, (…).
#[derive(Debug, Clone, Copy)]
pub struct LinearCrossEntropy {
    /// Targets of this value do not count. All others lie in 0..V.
    pub ignore: i32,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "linear-cross-entropy",
    summary: "mean of lse(h·Wᵀ) − (h·Wᵀ)[target], without the logits in memory",
    cases,
    run: Some(&RUN),
    attention: None,
};

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 3, "hidden, weight, targets")?;
        let (rows, columns) = rows_and_columns(self.name(), "hidden", inputs[0])?;
        let classes = match inputs[1].shape[..] {
            [v, c] if inputs[1].kind == Kind::Real && c == columns && v > 0 => v,
            _ => {
                let expected = format!("real (V, {columns})");
                return Err(Error::shape(self.name(), "weight", expected, inputs[1].to_string()));
            }
        };
        let (_, leading) = inputs[0].shape.split_last().expect("at least one axis");
        expect(self.name(), "targets", inputs[2], Spec::int(leading))?;
        let (scratch_forward, scratch_backward) = gpu::scratch(rows, classes, columns);
        Ok(Contract {
            outputs: vec![Output::full([1]), Output::full(leading)],
            constant_outputs: vec![1],
            saved: vec![Spec::full([rows]), Spec::full([1])],
            scratch_forward,
            scratch_backward,
            weights: vec![false, true, false],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let (hidden, weight) = (inputs[0].numel() as f64, inputs[1].numel() as f64);
        let product = 2.0 * hidden * inputs[1].shape[0] as f64;
        Cost {
            forward_flops: product,
            forward_bytes: 4.0 * (hidden + weight),
            backward_flops: 3.0 * product,
            backward_bytes: 8.0 * (hidden + weight),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "hidden", shape: "(…,C)", optional: false },
        TensorDoc { name: "weight", shape: "(V,C)", optional: false },
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
        let hidden = run.real_of_any_shape("hidden")?;
        let shape = run.graph.shape(hidden).to_vec();
        let Some((_, leading)) = shape.split_last() else {
            return Err(Error::argument("hidden", "is a single number", "give it as (…,C)"));
        };
        let weight = run.real("weight", "(V,C)")?;
        let classes = run.graph.shape(weight)[0];
        let (targets, ignore) = targets(run, leading, classes)?;
        run.graph.record(LinearCrossEntropy { ignore }, &[hidden, weight, targets])
    },
};

fn cases() -> Vec<Case> {
    // Rows, classes, columns; hidden of this deviation, weights of 1/√columns. `target` of a row: -1 is ignored.
    let case = |[n, v, c]: [usize; 3], scale: f64, target: fn(usize) -> Option<usize>, name: &str| {
        Case::new(format!("{n} rows, {v} classes, {c} columns, {name}"), move |g| {
            let hidden = g.scaled("hidden", &[n, c], scale);
            let weight = g.weight("weight", &[v, c], (c as f64).powf(-0.5));
            let values = (0..n).map(|i| target(i).map_or(-1, |t| (t % v) as i32)).collect();
            let targets = g.ints("targets", &[n], -1..v as i64, values);
            g.record(LinearCrossEntropy { ignore: -1 }, &[hidden, weight, targets])
        })
    };
    let all = |i: usize| Some(i * 7);
    let third = |i: usize| (!i.is_multiple_of(3)).then_some(i * 131);
    // Two losses of the same tensors: one's gradients are added to the other's. An ignored class within 0..V; two axes.
    let twice = Case::new("two losses", |g| {
        let hidden = g.normal("hidden", &[2, 5, 3]);
        let weight = g.weight("weight", &[4, 3], 1.0);
        let targets = g.ints("targets", &[2, 5], 0..4, vec![0, 1, 2, 3, 1, 1, 0, 3, 2, 2]);
        let mut outputs = g.record(LinearCrossEntropy { ignore: -1 }, &[hidden, weight, targets])?;
        outputs.extend(g.record(LinearCrossEntropy { ignore: 1 }, &[hidden, weight, targets])?);
        Ok(outputs)
    });
    vec![
        case([1, 1, 1], 1.0, all, "one of each"),
        case([65, 1, 37], 1.0, all, "one class"),
        case([65, 37, 1], 1.0, third, "a third ignored").in_every_order(),
        case([0, 37, 48], 1.0, all, "no rows"),
        case([1, 1000, 64], 1.0, all, "one row"),
        case([65, 37, 48], 1.0, |_| None, "all ignored"),
        case([130, 65, 48], 1.0, |i| (i != 129).then_some(i), "the last ignored").in_every_order(),
        case([65, 1000, 37], 1.0, third, "a third ignored").in_every_order(),
        case([65, 1000, 64], 30.0, all, "large logits"),
        case([20, 300, 768], 1.0, third, "wide").large(),
        // Several parts of the classes, and on a CPU one group of rows at a time.
        case([70, 5000, 16], 1.0, third, "many classes").large(),
        // Several groups of rows on a CPU.
        case([700, 37, 8], 1.0, third, "many rows").large(),
        twice,
    ]
}
