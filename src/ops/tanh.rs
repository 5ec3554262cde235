//! y = tanh x. Nothing is saved: dx = dy·(1 − y²).

use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: each index is compared with n, which the launch code takes from the places.
const SOURCE: Source =
    unsafe { Source::new("tanh", include_str!("../../kernels/tanh.cu"), &["tanh_forward", "tanh_backward"]) };

/// The hyperbolic tangent of x.
#[derive(Debug, Clone, Copy)]
pub struct Tanh;

/// In the registry.
pub static ENTRY: Entry = Entry { name: "tanh", summary: "y = tanh x", cases, run: None, attention: None };

impl Op for Tanh {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 1, "x")?;
        expect(self.name(), "x", inputs[0], Spec::real(inputs[0].shape.clone()))?;
        Ok(Contract {
            outputs: vec![Output::real(inputs[0].shape.clone())],
            backward_reads_inputs: vec![false],
            backward_reads_outputs: vec![true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: n, forward_bytes: 8.0 * n, backward_flops: 3.0 * n, backward_bytes: 12.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// Elements of a block on the CPU.
const BLOCK: usize = 1 << 13;

impl<R: Real> CpuOp<R> for Tanh {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let x = io.inputs[0].all();
        io.outputs[0].contiguous().par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| {
            if mode == Mode::Definition {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x.tanh());
            } else {
                y.copy_from_slice(x);
                R::tanh_in_place(y);
            }
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(d)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        let (y, dy, accumulate) = (io.outputs[0].all(), dy.all(), d.accumulate);
        let parts = y.par_chunks(BLOCK).zip(dy.par_chunks(BLOCK));
        d.to.contiguous().par_chunks_mut(BLOCK).zip(parts).for_each(|(d, (y, dy))| {
            wide!(R, || {
                for (d, (&y, &dy)) in d.iter_mut().zip(y.iter().zip(dy)) {
                    let added = dy * (R::ONE - y * y);
                    *d = if accumulate { *d + added } else { added };
                }
            });
        });
    }
}

impl GpuOp for Tanh {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, y) = (&io.inputs[0], &io.outputs[0]);
        let n = x.numel();
        gpu.launch_flat(&gpu.module(&SOURCE), "tanh_forward", n, &[&x.address, &y.address, &(n as i64)])
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(d)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let n = dy.numel();
        let arguments: [&dyn crate::gpu::Argument; 5] =
            [&io.outputs[0].address, &dy.address, &d.to.address, &(n as i64), &(d.accumulate as i32)];
        gpu.launch_flat(&gpu.module(&SOURCE), "tanh_backward", n, &arguments)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize]| {
        Case::new(format!("{shape:?}"), move |g| {
            let x = g.normal("x", shape);
            g.record(Tanh, &[x])
        })
    };
    let twice = Case::new("one input twice", |g| {
        let x = g.normal("x", &[2, 5]);
        Ok(vec![g.one(Tanh, &[x])?, g.one(Tanh, &[x])?])
    });
    vec![case(&[1]), case(&[3, 100]).in_every_order(), case(&[20_000]), case(&[0, 3]), twice]
}
