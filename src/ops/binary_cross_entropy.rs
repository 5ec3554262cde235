//! loss = mean over the targets y that are not ignored of max(z,0) − z·y + ln(1 + e^−|z|) = −ln of the probability that
//! σ(z) gives y (nn.BCEWithLogitsLoss); none left gives 0. The sum is taken in a fixed order.
//!
//! Beside the mean come the terms themselves, 0 where the target is ignored; no gradient flows through them.
//! Saves the number of targets that count. dz = (σ(z) − y)·dloss/count, 0 where the target is ignored.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;

// SAFETY: each index is compared with n, which the launch code takes from the places.
const SOURCE: Source = unsafe {
    Source::new(
        "binary_cross_entropy",
        include_str!("../../kernels/binary_cross_entropy.cu"),
        &["binary_cross_entropy_terms", "binary_cross_entropy_mean", "binary_cross_entropy_backward"],
    )
};

/// The mean of [logits (…), targets int (…), each 0, 1 or ignored], a tensor of shape \[1\]; and each target's, (…).
#[derive(Debug, Clone, Copy)]
pub struct BinaryCrossEntropy {
    /// Targets of this value do not count.
    pub ignore: i32,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "binary-cross-entropy",
    summary: "mean of −ln of what σ(logit) gives the target",
    cases,
    run: None,
    attention: None,
};

impl Op for BinaryCrossEntropy {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "logits, targets")?;
        let (logits, shape) = (inputs[0], inputs[0].shape.clone());
        if logits.kind != Kind::Real {
            return Err(Error::shape(self.name(), "logits", "real (…)", logits.to_string()));
        }
        expect(self.name(), "targets", inputs[1], Spec::int(shape.clone()))?;
        Ok(Contract {
            outputs: vec![Output::full([1]), Output::full(shape)],
            constant_outputs: vec![1],
            saved: vec![Spec::full([1])],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 6.0 * n, forward_bytes: 12.0 * n, backward_flops: 4.0 * n, backward_bytes: 12.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for BinaryCrossEntropy {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let (logits, targets, terms) = (io.inputs[0].all(), io.inputs[1].ints(), io.outputs[1].contiguous());
        // Summed in f64, as cross-entropy is.
        let (mut total, mut count) = (0.0, 0);
        for ((term, &z), &target) in terms.iter_mut().zip(logits).zip(targets) {
            *term = R::ZERO;
            if target != self.ignore {
                let y = R::from_f64(target as f64);
                // `maximum` keeps a NaN of its first argument only.
                *term = z.maximum(R::ZERO) - z * y + (R::ONE + (-z.abs()).exp()).ln();
                total += term.to_f64();
                count += 1;
            }
        }
        io.outputs[0].fill(if count > 0 { R::from_f64(total / count as f64) } else { R::ZERO });
        io.saved[0].fill(R::from_usize(count));
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let (Some(d_loss), Some(d)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        let (logits, targets, accumulate) = (io.inputs[0].all(), io.inputs[1].ints(), d.accumulate);
        // Used only where a target counts, so that the count is not 0.
        let scale = d_loss.all()[0] / io.saved[0].all()[0];
        for ((d, &z), &target) in d.to.contiguous().iter_mut().zip(logits).zip(targets) {
            let mut added = R::ZERO;
            if target != self.ignore {
                // e^−|z| does not overflow.
                let e = (-z.abs()).exp();
                let probability = if z < R::ZERO { e / (R::ONE + e) } else { R::ONE / (R::ONE + e) };
                added = (probability - R::from_f64(target as f64)) * scale;
            }
            *d = if accumulate { *d + added } else { added };
        }
    }
}

impl GpuOp for BinaryCrossEntropy {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (logits, targets) = (&io.inputs[0], io.inputs[1].address);
        let (loss, terms, count, n) = (&io.outputs[0], &io.outputs[1], &io.saved[0], logits.numel());
        let module = gpu.module(&SOURCE);
        let arguments: [&dyn crate::gpu::Argument; 5] =
            [&logits.address, &targets, &terms.address, &(n as i64), &self.ignore];
        gpu.launch_flat(&module, "binary_cross_entropy_terms", n, &arguments)?;
        gpu.launch(
            &module,
            "binary_cross_entropy_mean",
            Launch { grid: [1; 3], block: [256, 1, 1], shared: 0 },
            &[&terms.address, &targets, &(n as i64), &self.ignore, &loss.address, &count.address],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(d_loss), Some(d)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let (logits, n) = (&io.inputs[0], io.inputs[0].numel());
        let arguments: [&dyn crate::gpu::Argument; 8] = [
            &logits.address,
            &io.inputs[1].address,
            &io.saved[0].address,
            &d_loss.address,
            &d.to.address,
            &(n as i64),
            &self.ignore,
            &(d.accumulate as i32),
        ];
        gpu.launch_flat(&gpu.module(&SOURCE), "binary_cross_entropy_backward", n, &arguments)
    }
}

fn cases() -> Vec<Case> {
    let case = |n: usize, scale: f64, ignored: fn(usize) -> bool, name: &str| {
        Case::new(format!("{n} {name}"), move |g| {
            let targets = (0..n).map(|i| if ignored(i) { -1 } else { (i * i % 3 == 1) as i32 }).collect();
            let logits = g.scaled("logits", &[n], scale);
            let targets = g.ints("targets", &[n], -1..2, targets);
            g.record(BinaryCrossEntropy { ignore: -1 }, &[logits, targets])
        })
    };
    let twice = Case::new("two losses", |g| {
        let logits = g.normal("logits", &[2, 2]);
        let targets = g.ints("targets", &[2, 2], 0..2, vec![0, 1, 1, 0]);
        let mut outputs = g.record(BinaryCrossEntropy { ignore: -1 }, &[logits, targets])?;
        outputs.extend(g.record(BinaryCrossEntropy { ignore: 1 }, &[logits, targets])?);
        Ok(outputs)
    });
    vec![
        case(1, 1.0, |_| false, "logit"),
        case(300, 1.0, |i| i % 3 == 0, "logits, a third ignored").in_every_order(),
        case(600, 100.0, |_| false, "large logits"),
        case(5, 1.0, |_| true, "logits, all ignored"),
        case(0, 1.0, |_| false, "logits"),
        twice,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::graph::Graph;
    use crate::plan::{Plan, PlanOptions};
    use std::sync::Arc;

    /// σ(ln 3) = 3/4; at ±1000 nothing overflows.
    #[test]
    fn losses_as_worked_out_by_hand() {
        let mut g = Graph::new();
        let logits = g.variable("logits", &[5]);
        let targets = g.indices("targets", &[5], -1..2);
        let losses = g.record(BinaryCrossEntropy { ignore: -1 }, &[logits, targets]).unwrap();
        let options = PlanOptions { roots: vec![losses[0]], keep: losses.clone(), ..Default::default() };
        let plan = Plan::new(g, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
        plan.write(logits, &[3f64.ln(), 3f64.ln(), -1000.0, 1000.0, 7.0]).unwrap();
        plan.write_indices(targets, &[1, 0, 1, 1, -1]).unwrap();
        plan.forward().unwrap();
        let (mean, each) = (plan.read(losses[0]).unwrap()[0], plan.read(losses[1]).unwrap());
        let expected = [(4.0f64 / 3.0).ln(), 4f64.ln(), 1000.0, 0.0, 0.0];
        assert!(each.iter().zip(expected).all(|(x, e)| (x - e).abs() < 1e-14), "{each:?}");
        assert!((mean - expected.iter().sum::<f64>() / 4.0).abs() < 1e-12);
        plan.backward().unwrap();
        let d = plan.read_gradient(logits).unwrap();
        let expected = [-0.25 / 4.0, 0.75 / 4.0, -0.25, 0.0, 0.0];
        assert!(d.iter().zip(expected).all(|(x, e)| (x - e).abs() < 1e-15), "{d:?}");
    }
}
