//! y = the inputs one after another along an axis. Nothing is saved. Each input's gradient is its part of dy.
//!
//! No kernel of its own: each part is a strided copy.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::op::*;
use crate::ops::Entry;
use crate::ops::copy;
use crate::ops::rows::{add_to, expect};
use crate::precision::Precision;

/// Joins tensors whose shapes are the same but for `axis`.
#[derive(Debug, Clone, Copy)]
pub struct Concatenate {
    /// Counted from the slowest, 0.
    pub axis: usize,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "concatenate",
    summary: "tensors one after another along an axis",
    cases,
    run: None,
    attention: None,
};

impl Op for Concatenate {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let Some(first) = inputs.first().filter(|s| self.axis < s.shape.len()) else {
            let expected = format!("at least one tensor with more than {} axes", self.axis);
            let got = inputs.first().map_or("none".into(), |s| s.to_string());
            return Err(Error::shape(self.name(), "inputs", expected, got));
        };
        let mut shape = first.shape.clone();
        shape[self.axis] = 0;
        for input in inputs {
            let mut wanted = first.shape.clone();
            wanted[self.axis] = input.shape.get(self.axis).copied().unwrap_or(0);
            expect(self.name(), "inputs", input, Spec::real(wanted))?;
            shape[self.axis] += input.shape[self.axis];
        }
        let (outputs, count) = (vec![Output::real(shape)], inputs.len());
        Ok(Contract { outputs, backward_reads_inputs: vec![false; count], ..Default::default() })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let bytes = 8.0 * inputs.iter().map(|s| s.numel() as f64).sum::<f64>();
        Cost { forward_bytes: bytes, backward_bytes: bytes, ..Default::default() }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl Concatenate {
    /// Elements of each part in a row of the output, where a row is all axes from `axis` on.
    fn widths<'a>(&self, shapes: impl Iterator<Item = &'a [usize]>) -> Vec<usize> {
        shapes.map(|shape| shape[self.axis..].iter().product()).collect()
    }
}

impl<R: Real> CpuOp<R> for Concatenate {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let widths = self.widths(io.inputs.iter().map(|i| i.real().shape));
        let y = io.outputs[0].contiguous();
        let mut start = 0;
        for (x, &width) in io.inputs.iter().zip(&widths).filter(|(_, width)| **width > 0) {
            for (y, x) in y.chunks_exact_mut(widths.iter().sum()).zip(x.all().chunks_exact(width)) {
                y[start..start + width].copy_from_slice(x);
            }
            start += width;
        }
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let widths = self.widths(io.inputs.iter().map(|i| i.real().shape));
        let mut start = 0;
        for (dx, &width) in io.d_inputs.iter_mut().zip(&widths).filter(|(_, width)| **width > 0) {
            if let Some(dx) = dx {
                let accumulate = dx.accumulate;
                let rows = dx.to.contiguous().chunks_exact_mut(width).zip(dy.all().chunks_exact(widths.iter().sum()));
                rows.for_each(|(dx, dy)| add_to(dx, &dy[start..start + width], accumulate));
            }
            start += width;
        }
    }
}

impl Concatenate {
    /// Each part of the whole, as a matrix in place.
    fn parts(&self, gpu: &Gpu, whole: &Place, inputs: &[Place]) -> Vec<Place> {
        let widths = self.widths(inputs.iter().map(|i| &i.shape[..]));
        let row = widths.iter().sum();
        let rows = whole.shape[..self.axis].iter().product();
        let mut address = whole.address;
        let place = |&width: &usize| {
            let part = Place { address, kind: whole.kind, shape: vec![rows, width], strides: vec![row, 1] };
            address += (width * gpu.bytes(whole.kind)) as u64;
            part
        };
        widths.iter().map(place).collect()
    }
}

/// The same elements with a part's shape.
fn flat(place: &Place, part: &Place) -> Place {
    Place { shape: part.shape.clone(), strides: vec![part.shape[1], 1], ..place.clone() }
}

impl GpuOp for Concatenate {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let parts = self.parts(gpu, &io.outputs[0], &io.inputs);
        parts.iter().zip(&io.inputs).try_for_each(|(part, x)| copy::launch(gpu, &flat(x, part), part, false))
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        for (part, dx) in self.parts(gpu, dy, &io.inputs).iter().zip(&io.d_inputs) {
            if let Some(dx) = dx {
                copy::launch(gpu, part, &flat(&dx.to, part), dx.accumulate)?;
            }
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |axis: usize, shapes: &'static [&'static [usize]]| {
        Case::new(format!("axis {axis} of {shapes:?}"), move |g| {
            let named = shapes.iter().enumerate().map(|(i, shape)| (format!("x{i}"), *shape));
            let inputs: Vec<_> = named.map(|(name, shape)| g.normal(&name, shape)).collect();
            g.record(Concatenate { axis }, &inputs)
        })
    };
    let twice = Case::new("one tensor twice", |g| {
        let x = g.normal("x", &[3, 5]);
        g.record(Concatenate { axis: 1 }, &[x, x])
    });
    vec![
        case(0, &[&[3]]),
        case(0, &[&[2, 3, 5], &[0, 3, 5], &[4, 3, 5]]),
        case(1, &[&[3, 37], &[3, 1], &[3, 128]]),
        case(2, &[&[2, 3, 5], &[2, 3, 1]]),
        twice,
    ]
}
