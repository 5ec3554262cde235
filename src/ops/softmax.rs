//! y = eˣ / Σ eˣ along an axis. A line of −∞ alone gives zeros. Nothing is saved; backward reads y.
//! dx = y·(dy − Σ y·dy).

use crate::case::Case;
use crate::cpu::Real;
use crate::cpu::simd::sum;
use crate::error::{Error, Result};
use crate::gpu::{Argument, Gpu, Launch, Module, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: the line is compared with their number, and indices within it with its length; the launch code takes both
// from the place.
const SOURCE: Source = unsafe {
    Source::new("softmax", include_str!("../../kernels/softmax.cu"), &["softmax_forward", "softmax_backward"])
};

/// Softmax of `x`.
#[derive(Debug, Clone, Copy)]
pub struct Softmax {
    /// Along which axis; negative ones count from the end.
    pub axis: isize,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "softmax", summary: "eˣ / Σ eˣ along an axis", cases, run: Some(&RUN), attention: None };

/// Lines along the axis: `outer` groups of `inner` neighbouring ones, whose elements are `inner` apart.
#[derive(Debug, Clone, Copy)]
struct Lines {
    outer: usize,
    length: usize,
    inner: usize,
}

impl Softmax {
    fn lines(&self, shape: &[usize]) -> Option<Lines> {
        let axis = if self.axis < 0 { self.axis + shape.len() as isize } else { self.axis };
        let axis = usize::try_from(axis).ok().filter(|&axis| axis < shape.len())?;
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Some(Lines { outer, length: shape[axis], inner })
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 1, "x")?;
        if inputs[0].kind != Kind::Real || self.lines(&inputs[0].shape).is_none() {
            let expected = format!("real with an axis {}", self.axis);
            return Err(Error::shape(self.name(), "x", expected, inputs[0].to_string()));
        }
        Ok(Contract {
            outputs: vec![Output::real(inputs[0].shape.clone())],
            backward_reads_inputs: vec![false],
            backward_reads_outputs: vec![true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 4.0 * n, forward_bytes: 8.0 * n, backward_flops: 4.0 * n, backward_bytes: 12.0 * n }
    }
}

/// x ← softmax(x).
fn softmax<R: Real>(x: &mut [R], mode: Mode) {
    let highest = x.iter().copied().fold(R::NEG_INFINITY, R::maximum);
    let shift = if highest == R::NEG_INFINITY { R::ZERO } else { highest };
    x.iter_mut().for_each(|x| *x -= shift);
    let total = if mode == Mode::Definition {
        x.iter_mut().for_each(|x| *x = x.exp());
        x.iter().copied().sum()
    } else {
        R::exp_in_place(x);
        sum(x)
    };
    if total != R::ZERO {
        x.iter_mut().for_each(|x| *x /= total);
    }
}

impl Lines {
    /// Calls `work` with each line's index of its first element, in blocks of one outer index: (first element, line).
    fn for_each<R: Real>(self, to: &mut [R], work: impl Fn(usize, &mut [R]) + Sync, accumulate: bool) {
        let outer = self.length * self.inner;
        if outer == 0 {
            return;
        }
        let block = block_rows(outer);
        to.par_chunks_mut(block * outer).enumerate().for_each(|(b, to)| {
            let mut line = vec![R::ZERO; self.length];
            for (o, to) in to.chunks_exact_mut(outer).enumerate() {
                for i in 0..self.inner {
                    work((b * block + o) * outer + i, &mut line);
                    for (to, &x) in to[i..].iter_mut().step_by(self.inner).zip(&line) {
                        *to = if accumulate { *to + x } else { x };
                    }
                }
            }
        });
    }

    /// The elements of a line.
    fn line<'a, R: Real>(self, x: &'a [R], first: usize) -> impl Iterator<Item = R> + Clone + 'a {
        x[first..].iter().step_by(self.inner).take(self.length).copied()
    }
}

impl<R: Real> CpuOp<R> for Softmax {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let lines = self.lines(io.inputs[0].real().shape).expect("checked by the contract");
        let x = io.inputs[0].all();
        let work = |first: usize, line: &mut [R]| {
            line.iter_mut().zip(lines.line(x, first)).for_each(|(line, x)| *line = x);
            softmax(line, mode);
        };
        lines.for_each(io.outputs[0].contiguous(), work, false);
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        let lines = self.lines(dy.real().shape).expect("checked by the contract");
        let (y, dy) = (io.outputs[0].all(), dy.all());
        let work = |first: usize, line: &mut [R]| {
            let pairs = lines.line(y, first).zip(lines.line(dy, first));
            let sum: R = pairs.clone().map(|(y, dy)| y * dy).sum();
            line.iter_mut().zip(pairs).for_each(|(line, (y, dy))| *line = y * (dy - sum));
        };
        lines.for_each(dx.to.contiguous(), work, dx.accumulate);
    }
}

impl Softmax {
    fn launch(&self, gpu: &Gpu, entry: &str, shape: &[usize], before: &[u64], accumulate: Option<i32>) -> Result<()> {
        let l = self.lines(shape).expect("checked by the contract");
        let (lines, lanes) = (l.outer * l.inner, if l.inner == 1 { 32 } else { 1 });
        let sizes = (lines as i64, l.length as i32, l.inner as i64);
        let mut arguments: Vec<&dyn Argument> = before.iter().map(|a| a as &dyn Argument).collect();
        arguments.extend([&sizes.0 as &dyn Argument, &sizes.1, &sizes.2]);
        arguments.extend(accumulate.as_ref().map(|a| a as &dyn Argument));
        let grid = [(lines * lanes).div_ceil(256) as u32, 1, 1];
        let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
        gpu.launch(&Module::new(&SOURCE).define("LANES", lanes), entry, launch, &arguments)
    }
}

impl GpuOp for Softmax {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, y) = (&io.inputs[0], &io.outputs[0]);
        self.launch(gpu, "softmax_forward", &x.shape, &[x.address, y.address], None)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let y = &io.outputs[0];
        let places = [y.address, dy.address, dx.to.address];
        self.launch(gpu, "softmax_backward", &y.shape, &places, Some(dx.accumulate as i32))
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[TensorDoc { name: "x", shape: "(…)", optional: false }],
    outputs: &[TensorDoc { name: "out", shape: "(…)", optional: false }],
    options: &[OptionDoc {
        name: "axis",
        value: Some("N"),
        help: "along which axis, negative ones from the end; -1 unless given",
    }],
    record: |run| {
        let axis = run.option("axis", "an integer")?.unwrap_or(-1);
        let x = run.real_of_any_shape("x")?;
        run.graph.record(Softmax { axis }, &[x])
    },
};

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize], axis: isize| {
        Case::new(format!("{shape:?} axis {axis}"), move |g| {
            let x = g.scaled("x", shape, 3.0);
            g.record(Softmax { axis }, &[x])
        })
    };
    let masked = |axis: isize| {
        Case::new(format!("−∞ in part and alone, axis {axis}"), move |g| {
            let mut values = g.draw(4 * 4, 1.0);
            let n = f64::NEG_INFINITY;
            // Row 1 and column 2 are −∞ throughout.
            (0..4).for_each(|i| (values[4 + i], values[4 * i + 2]) = (n, n));
            let x = g.given("x", &[4, 4], values);
            g.record(Softmax { axis }, &[x])
        })
    };
    // x contributes twice, so one of its gradients is added to the other.
    let twice = Case::new("both axes", |g| {
        let x = g.normal("x", &[5, 3]);
        let mut outputs = g.record(Softmax { axis: 0 }, &[x])?;
        outputs.extend(g.record(Softmax { axis: 1 }, &[x])?);
        Ok(outputs)
    });
    vec![
        case(&[1], 0),
        case(&[37], -1),
        case(&[3, 1000], 1),
        case(&[300, 65], -1),
        case(&[37, 300], 0),
        case(&[2, 3, 5, 7], 1),
        case(&[2, 128, 1, 1], -3),
        case(&[0, 3], 1),
        case(&[3, 0], 1),
        masked(1),
        masked(0),
        twice,
    ]
}
