//! z = x + y, both of one shape. Nothing is saved. dx = dy = dz.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: each thread touches one element, whose index is below the size that the launch code takes from the places.
const SOURCE: Source =
    unsafe { Source::new("add", include_str!("../../kernels/add.cu"), &["add_forward", "add_backward"]) };

/// z = x + y.
#[derive(Debug, Clone, Copy)]
pub struct Add;

/// In the registry.
pub static ENTRY: Entry = Entry { name: "add", summary: "z = x + y", cases, run: None, attention: None };

impl Op for Add {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "x, y")?;
        expect(self.name(), "x", inputs[0], Spec::real(inputs[0].shape.clone()))?;
        expect(self.name(), "y", inputs[1], inputs[0].clone())?;
        let outputs = vec![Output::real(inputs[0].shape.clone())];
        Ok(Contract { outputs, backward_reads_inputs: vec![false, false], ..Default::default() })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: n, forward_bytes: 12.0 * n, backward_flops: 0.0, backward_bytes: 12.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// Elements of a block on the CPU.
const BLOCK: usize = 1 << 15;

impl<R: Real> CpuOp<R> for Add {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let (x, y, z) = (io.inputs[0].all(), io.inputs[1].all(), io.outputs[0].contiguous());
        z.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK).zip(y.par_chunks(BLOCK))).for_each(|(z, (x, y))| {
            z.iter_mut().zip(x.iter().zip(y)).for_each(|(z, (&x, &y))| *z = x + y);
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let Some(dz) = &io.d_outputs[0] else { return };
        for d in io.d_inputs.iter_mut().flatten() {
            let accumulate = d.accumulate;
            let blocks = d.to.contiguous().par_chunks_mut(BLOCK).zip(dz.all().par_chunks(BLOCK));
            blocks.for_each(|(d, dz)| add_to(d, dz, accumulate));
        }
    }
}

impl GpuOp for Add {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, y, z) = (io.inputs[0].address, io.inputs[1].address, io.outputs[0].address);
        let n = io.outputs[0].numel();
        gpu.launch_flat(&gpu.module(&SOURCE), "add_forward", n, &[&x, &y, &z, &(n as i64)])
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dz) = &io.d_outputs[0] else { return Ok(()) };
        let target = |i: usize| {
            let d: Option<&Gradient<Place>> = io.d_inputs[i].as_ref();
            (d.map_or(0, |d| d.to.address), d.is_some_and(|d| d.accumulate) as i32)
        };
        let ((dx, to_x), (dy, to_y), n) = (target(0), target(1), dz.numel());
        let arguments: &[&dyn crate::gpu::Argument] = &[&dz.address, &dx, &to_x, &dy, &to_y, &(n as i64)];
        gpu.launch_flat(&gpu.module(&SOURCE), "add_backward", n, arguments)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize]| {
        Case::new(format!("{shape:?}"), move |g| {
            let (x, y) = (g.normal("x", shape), g.normal("y", shape));
            g.record(Add, &[x, y])
        })
    };
    // x contributes twice, so one of its gradients is added to the other.
    let residual = Case::new("residual", |g| {
        let (x, y) = (g.normal("x", &[300, 3]), g.normal("y", &[300, 3]));
        let z = g.one(Add, &[x, y])?;
        g.record(Add, &[x, z])
    });
    vec![case(&[1]), case(&[2, 3, 65]), case(&[1000]), case(&[0, 3]), residual]
}
