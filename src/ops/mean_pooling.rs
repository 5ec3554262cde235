//! Means of x (B,T,C) with lengths (B): over a sequence's tokens, y (B,C), y\[b\] = Σ x\[b,t\]/length\[b\] over
//! t < length\[b\]; or over the features of each token, y (B,T), zeros past the length. A length of 0 gives zeros.
//! Nothing is saved; dx = dy/length, or dy/C, and 0 past the length.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::ops::table::{sequences, valid};
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: indices are compared with the sizes that the launch code takes from the places; lengths lie in the range that
// the graph declares and the plan enforces.
const SOURCE: Source = unsafe {
    Source::new(
        "mean_pooling",
        include_str!("../../kernels/mean_pooling.cu"),
        &["mean_over_tokens", "mean_over_features", "mean_pooling_backward"],
    )
};

/// Means of [x (B,T,C), lengths int (B) in 0..=T].
#[derive(Debug, Clone, Copy)]
pub struct MeanPooling {
    /// Over features instead of tokens.
    pub features: bool,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "mean-pooling",
    summary: "means over a sequence's tokens, or over each token's features",
    cases,
    run: None,
    attention: None,
};

impl Op for MeanPooling {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "x, lengths")?;
        let (Kind::Real, &[batch, length, columns]) = (inputs[0].kind, &inputs[0].shape[..]) else {
            return Err(Error::shape(self.name(), "x", "real (B, T, C)", inputs[0].to_string()));
        };
        expect(self.name(), "lengths", inputs[1], Spec::int([batch]))?;
        Ok(Contract {
            outputs: vec![Output::real(if self.features { [batch, length] } else { [batch, columns] })],
            backward_reads_inputs: vec![false, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: n, forward_bytes: 4.0 * n, backward_flops: n, backward_bytes: 4.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for MeanPooling {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let (x, lengths) = (io.inputs[0].all(), io.inputs[1].ints());
        let &[_, places, columns] = io.inputs[0].real().shape else { unreachable!("three axes by contract") };
        let width = if self.features { places } else { columns };
        let block = sequences(places * columns);
        if width == 0 {
            return;
        }
        io.outputs[0].contiguous().par_chunks_mut(block * width).enumerate().for_each(|(i, y)| {
            wide!(R, || {
                for (b, y) in y.chunks_exact_mut(width).enumerate().map(|(b, y)| (i * block + b, y)) {
                    let length = valid(lengths[b], places);
                    let x = &x[b * places * columns..][..length * columns];
                    y.fill(R::ZERO);
                    if self.features {
                        let scale = R::ONE / R::from_usize(columns.max(1));
                        let rows = x.chunks_exact(columns.max(1));
                        y.iter_mut().zip(rows).for_each(|(y, x)| *y = short_sum(x) * scale);
                    } else if length > 0 {
                        x.chunks_exact(columns).for_each(|x| add_to(y, x, true));
                        let scale = R::ONE / R::from_usize(length);
                        y.iter_mut().for_each(|y| *y *= scale);
                    }
                }
            });
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(d)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        let lengths = io.inputs[1].ints();
        let (&[_, places, columns], accumulate) = (d.to.shape, d.accumulate) else {
            unreachable!("three axes by contract")
        };
        let (width, dy) = (if self.features { places } else { columns }, dy.all());
        let block = sequences(places * columns);
        if places * columns == 0 {
            return;
        }
        d.to.contiguous().par_chunks_mut(block * places * columns).enumerate().for_each(|(i, d)| {
            wide!(R, || {
                for (b, d) in d.chunks_exact_mut(places * columns).enumerate().map(|(b, d)| (i * block + b, d)) {
                    let (length, dy) = (valid(lengths[b], places), &dy[b * width..][..width]);
                    let (of_tokens, padding) = d.split_at_mut(length * columns);
                    let scale = R::ONE / R::from_usize(if self.features { columns } else { length.max(1) });
                    for (t, d) in of_tokens.chunks_exact_mut(columns).enumerate() {
                        for (c, d) in d.iter_mut().enumerate() {
                            let added = scale * dy[if self.features { t } else { c }];
                            *d = if accumulate { *d + added } else { added };
                        }
                    }
                    if !accumulate {
                        padding.fill(R::ZERO);
                    }
                }
            });
        });
    }
}

impl GpuOp for MeanPooling {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, lengths, y) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
        let entry = if self.features { "mean_over_features" } else { "mean_over_tokens" };
        // Over features, a warp takes an element.
        let threads = y.numel() * if self.features { 32 } else { 1 };
        let arguments: [&dyn crate::gpu::Argument; 6] =
            [&x.address, &lengths.address, &y.address, &(y.numel() as i64), &(x.shape[1] as i32), &(x.shape[2] as i32)];
        gpu.launch_flat(&gpu.module(&SOURCE), entry, threads, &arguments)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(d)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let n = d.to.numel();
        let arguments: [&dyn crate::gpu::Argument; 8] = [
            &dy.address,
            &io.inputs[1].address,
            &d.to.address,
            &(n as i64),
            &(d.to.shape[1] as i32),
            &(d.to.shape[2] as i32),
            &(self.features as i32),
            &(d.accumulate as i32),
        ];
        gpu.launch_flat(&gpu.module(&SOURCE), "mean_pooling_backward", n, &arguments)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: [usize; 3], features: bool| {
        Case::new(format!("{shape:?}, features {features}"), move |g| {
            let [batch, length, _] = shape;
            let lengths = (0..batch).map(|b| (b * 5 % (length + 1)) as i32).collect();
            let x = g.normal("x", &shape);
            let lengths = g.ints("lengths", &[batch], 0..length as i64 + 1, lengths);
            g.record(MeanPooling { features }, &[x, lengths])
        })
    };
    let twice = Case::new("one input twice", |g| {
        let x = g.normal("x", &[2, 3, 5]);
        let lengths = g.ints("lengths", &[2], 0..4, vec![2, 3]);
        let mut outputs = g.record(MeanPooling { features: false }, &[x, lengths])?;
        outputs.extend(g.record(MeanPooling { features: true }, &[x, lengths])?);
        Ok(outputs)
    });
    vec![
        case([1, 1, 1], false),
        case([7, 5, 37], false).in_every_order(),
        case([7, 5, 37], true).in_every_order(),
        case([3, 65, 130], false),
        case([3, 65, 130], true),
        case([0, 5, 3], false),
        case([2, 0, 3], true),
        twice,
    ]
}
