//! y = x·kept/(1 − p), where an element is kept iff its uniform number is at least p. Nothing is saved: backward
//! draws the same numbers again, dx = dy·kept/(1 − p).
//!
//! Philox: key = seed; counter = (element/4 low, high, stream, step). Seed and step lie in device memory, so that a
//! captured training step draws anew at each replay.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::philox::Philox;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: each index is compared with n, which the launch code takes from the places; rng holds three words by contract.
const SOURCE: Source = unsafe { Source::new("dropout", include_str!("../../kernels/dropout.cu"), &["dropout"]) };

/// Drops elements of [x, rng int (3): seed low, seed high, step].
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The probability of being dropped, 0 to 1.
    pub p: f64,
    /// Each layer and micro-batch has its own.
    pub stream: u32,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "dropout", summary: "y = x·kept/(1 − p)", cases, run: None, attention: None };

impl Op for Dropout {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "x, rng")?;
        expect(self.name(), "x", inputs[0], Spec::real(inputs[0].shape.clone()))?;
        expect(self.name(), "rng", inputs[1], Spec::int([3]))?;
        if !(0.0..=1.0).contains(&self.p) {
            return Err(Error::argument(format!("dropout {}", self.p), "is no probability", "give 0 to 1"));
        }
        let outputs = vec![Output::real(inputs[0].shape.clone())];
        Ok(Contract { outputs, backward_reads_inputs: vec![false, true], ..Default::default() })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: n, forward_bytes: 8.0 * n, backward_flops: n, backward_bytes: 8.0 * n }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// Elements of a block on the CPU; a multiple of 4.
const BLOCK: usize = 1 << 13;

impl Dropout {
    /// What kept elements are multiplied with. With p = 1 none is.
    pub(crate) fn scale(&self) -> f64 {
        1.0 / (1.0 - self.p)
    }

    fn apply<R: Real>(&self, x: &[R], rng: &[i32], y: &mut [R], accumulate: bool) {
        let seed = rng[0] as u32 as u64 | (rng[1] as u32 as u64) << 32;
        let random = Philox::new(seed, self.stream, rng[2] as u32);
        // Compared as f32, as the kernel does: every device drops the same elements.
        let (p, scale) = (self.p as f32, R::from_f64(self.scale()));
        y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).enumerate().for_each(|(b, (y, x))| {
            for (i, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                let words = random.block((b * BLOCK / 4 + i) as u64);
                for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                    let kept = if Philox::to_uniform(word) >= p { x * scale } else { R::ZERO };
                    *y = if accumulate { *y + kept } else { kept };
                }
            }
        });
    }

    fn launch(&self, gpu: &Gpu, x: &Place, rng: &Place, y: &Place, accumulate: bool) -> Result<()> {
        let n = x.numel();
        gpu.launch_flat(
            &gpu.module(&SOURCE),
            "dropout",
            n.div_ceil(4),
            &[
                &x.address,
                &rng.address,
                &y.address,
                &(n as i64),
                &(self.p as f32),
                &(self.scale() as f32),
                &self.stream,
                &(accumulate as i32),
            ],
        )
    }
}

impl<R: Real> CpuOp<R> for Dropout {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        self.apply(io.inputs[0].all(), io.inputs[1].ints(), io.outputs[0].contiguous(), false);
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &mut io.d_inputs[0]) else { return };
        self.apply(dy.all(), io.inputs[1].ints(), dx.to.contiguous(), dx.accumulate);
    }
}

impl GpuOp for Dropout {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        self.launch(gpu, &io.inputs[0], &io.inputs[1], &io.outputs[0], false)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        self.launch(gpu, dy, &io.inputs[1], &dx.to, dx.accumulate)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &'static [usize], p: f64, stream: u32, rng: [i32; 3]| {
        Case::new(format!("{shape:?} p {p} stream {stream}"), move |g| {
            let x = g.normal("x", shape);
            let rng = g.ints("rng", &[3], i32::MIN as i64..i32::MAX as i64 + 1, rng.to_vec());
            g.record(Dropout { p, stream }, &[x, rng])
        })
    };
    // x contributes twice, so one of its gradients is added to the other.
    let twice = Case::new("two streams", |g| {
        let x = g.normal("x", &[37]);
        let rng = g.ints("rng", &[3], 0..100, vec![1, 2, 3]);
        let mut outputs = g.record(Dropout { p: 0.5, stream: 0 }, &[x, rng])?;
        outputs.extend(g.record(Dropout { p: 0.5, stream: 1 }, &[x, rng])?);
        Ok(outputs)
    });
    vec![
        case(&[1], 0.1, 0, [0, 0, 0]),
        case(&[3, 37], 0.1, 7, [-5, 3, 100]),
        case(&[5, 1000], 0.5, u32::MAX, [1, -1, -1]),
        case(&[37], 0.0, 0, [1, 2, 3]),
        case(&[37], 1.0, 0, [1, 2, 3]),
        case(&[0], 0.1, 0, [1, 2, 3]),
        twice,
    ]
}
