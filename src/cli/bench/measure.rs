//! Timing one variant at one length.

use super::features::Features;
use super::recurrence::{self, Recurrence};
use super::{Direction, SOFTMAX};
use crate::device::Device;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::io::tensors::Dtype;
use crate::op::{Cost, Spec};
use crate::ops::Entry;
use crate::ops::copy::Copy;
use crate::ops::softmax_attention::Extra;
use crate::philox::Philox;
use crate::plan::{Plan, PlanOptions};
use crate::precision::Precision;
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const MOST_SAMPLES: usize = 200;

/// What all rows of a run share.
pub struct Setting {
    /// Where.
    pub device: Arc<dyn Device>,
    /// What inputs and outputs are rounded to, or stored in.
    pub dtype: Dtype,
    /// What is timed.
    pub direction: Direction,
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// Dk = Dv.
    pub head_dim: usize,
    /// Whether the mask is causal.
    pub causal: bool,
    /// What softmax attention has besides.
    pub features: Features,
    /// The sizes of those that have no heads.
    pub recurrence: Recurrence,
}

/// A variant recorded at one length.
pub struct Recorded {
    /// The graph.
    pub graph: Graph,
    /// q, k and v, or what a recurrence takes, each with its standard deviation.
    inputs: Vec<(Tensor, f64)>,
    /// What features take.
    extras: Vec<(Extra, Tensor)>,
    out: Tensor,
}

/// What was measured at one length.
pub struct Measured {
    /// Milliseconds, sorted.
    pub samples: Vec<f64>,
    /// FLOPs and bytes of what was timed.
    pub work: (f64, f64),
    /// Bytes of device memory.
    pub peak_bytes: usize,
    /// The variant's output.
    pub out: Vec<f64>,
}

impl Measured {
    /// The middle sample.
    pub fn median(&self) -> f64 {
        median(&self.samples)
    }
}

/// The middle of sorted values, of which there is at least one.
pub fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// How long a case is measured, in how many rounds, and what happens between them.
pub struct Rounds<'a> {
    /// For all rounds together.
    pub seconds: f64,
    /// One, or more where somebody else takes turns.
    pub count: usize,
    /// Called after each round with its samples, sorted.
    pub after: &'a mut dyn FnMut(&[f64]) -> Result<()>,
}

/// Standard normal values that depend on `stream` alone, so that every variant gets the same.
pub fn normal(stream: u32, n: usize, dtype: Dtype) -> Vec<f64> {
    let generator = Philox::new(0, stream, 0);
    (0..n as u64).into_par_iter().map(|i| dtype.round(generator.normal(i))).collect()
}

impl Setting {
    /// The dtype's name, with `tf32` for products.
    pub fn dtype(&self) -> &'static str {
        if self.device.precision() == Precision::Tf32 { Precision::Tf32.name() } else { self.dtype.name() }
    }

    /// The variant recorded on q, k and v of this length.
    ///
    /// # Errors
    /// If the variant does not take these shapes.
    pub fn record(&self, entry: &Entry, length: usize) -> Result<Recorded> {
        let mut graph = Graph::new();
        if recurrence::NAMES.contains(&entry.name) {
            let (inputs, out) = self.recurrence.record(&mut graph, entry.name, self, length)?;
            return Ok(Recorded { graph, inputs, extras: vec![], out });
        }
        let kv_heads = self.features.kv_heads;
        let inputs = [("q", self.heads), ("k", kv_heads), ("v", kv_heads)].map(|(name, heads)| {
            let shape = [self.batch, heads, length, self.head_dim];
            match self.direction {
                Direction::Forward => graph.input(name, &shape),
                _ => graph.variable(name, &shape),
            }
        });
        let [q, k, v] = inputs;
        let inputs = inputs.map(|t| (t, 1.0)).to_vec();
        if entry.name == SOFTMAX {
            let (out, extras) = self.features.record(&mut graph, [q, k, v], self.causal, length)?;
            return Ok(Recorded { graph, inputs, extras, out });
        }
        let record = entry.attention.expect("bench takes attention variants only");
        let out = record(&mut graph, q, k, v, self.causal)?;
        Ok(Recorded { graph, inputs, extras: vec![], out })
    }

    /// What the variant costs at this length.
    ///
    /// # Errors
    /// As [`Setting::record`].
    pub fn cost(&self, entry: &Entry, length: usize) -> Result<Cost> {
        let graph = self.record(entry, length)?.graph;
        let mut total = Cost::default();
        for node in &graph.nodes {
            let specs: Vec<&Spec> = node.inputs.iter().map(|&t| graph.spec(t)).collect();
            let cost = node.op.cost(&specs);
            total.forward_flops += cost.forward_flops;
            total.forward_bytes += cost.forward_bytes;
            total.backward_flops += cost.backward_flops;
            total.backward_bytes += cost.backward_bytes;
        }
        Ok(total)
    }

    fn prepare(&self, entry: &Entry, length: usize) -> Result<(Plan, Tensor)> {
        let Recorded { graph, inputs, extras, out } = self.record(entry, length)?;
        let roots = if self.direction == Direction::Forward { vec![] } else { vec![out] };
        let options = PlanOptions { roots: roots.clone(), keep: vec![out], ..Default::default() };
        // Planned first: where memory is short, that is an error before anything is filled.
        let plan = Plan::new(graph, self.device.clone(), &options)?;
        let elements = |t: Tensor| plan.graph().spec(t).numel();
        for (stream, (t, scale)) in inputs.into_iter().enumerate() {
            let mut values = normal(stream as u32, elements(t), self.dtype);
            if scale != 1.0 {
                values.iter_mut().for_each(|x| *x = self.dtype.round(scale * *x));
            }
            plan.write(t, &values)?;
        }
        extras.into_iter().try_for_each(|extra| self.features.fill(&plan, extra, self, length))?;
        for root in roots {
            plan.seed(root, &normal(3, elements(root), self.dtype))?;
        }
        Ok((plan, out))
    }

    fn read(&self, plan: &Plan, out: Tensor) -> Result<Vec<f64>> {
        let mut values = plan.read(out)?;
        values.iter_mut().for_each(|x| *x = self.dtype.round(*x));
        Ok(values)
    }

    /// The variant's output, untimed.
    ///
    /// # Errors
    /// If it cannot be planned or run.
    pub fn output(&self, entry: &Entry, length: usize) -> Result<Vec<f64>> {
        let (plan, out) = self.prepare(entry, length)?;
        plan.forward()?;
        self.read(&plan, out)
    }

    /// Times the variant for about as long as `rounds` says: at least once a round, whatever that takes. `None`: interrupted.
    ///
    /// # Errors
    /// If it cannot be planned or run, and those of `rounds.after`.
    pub fn measure(
        &self,
        entry: &Entry,
        length: usize,
        rounds: Rounds,
        flush: Option<&Flush>,
        interrupted: &AtomicBool,
    ) -> Result<Option<Measured>> {
        let (plan, out) = self.prepare(entry, length)?;
        let once = || -> Result<f64> {
            if let Some(flush) = flush {
                flush.run()?;
            }
            match self.direction {
                Direction::Forward => self.device.time_ms(&mut || plan.forward()),
                Direction::Both => self.device.time_ms(&mut || plan.forward().and_then(|()| plan.backward())),
                // Backward may reuse memory that forward's values were in, so each has a forward of its own.
                Direction::Backward => {
                    plan.forward()?;
                    self.device.time_ms(&mut || plan.backward())
                }
            }
        };
        // The first run compiles kernels, touches pages and wakes threads. Where nothing is compiled and it is slow, it
        // is the figure: waiting as long again would teach little.
        let seconds = rounds.seconds / rounds.count as f64;
        let mut samples = Vec::new();
        let first = once()?;
        let out = self.read(&plan, out)?;
        let slow = self.device.name() == "cpu" && first >= seconds * 1e3;
        for round in 0..rounds.count {
            let mut of_round = Vec::new();
            if slow && round == 0 {
                of_round.push(first);
            } else if !slow && (round > 0 || first < seconds * 250.0) {
                once()?;
            }
            let start = Instant::now();
            while of_round.is_empty()
                || of_round.len() < MOST_SAMPLES && !slow && start.elapsed().as_secs_f64() < seconds
            {
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                of_round.push(once()?);
            }
            of_round.sort_by(f64::total_cmp);
            (rounds.after)(&of_round)?;
            samples.extend(of_round);
        }
        samples.sort_by(f64::total_cmp);
        let cost = self.cost(entry, length)?;
        let (forward, backward) =
            ((cost.forward_flops, cost.forward_bytes), (cost.backward_flops, cost.backward_bytes));
        let (flops, bytes) = match self.direction {
            Direction::Forward => forward,
            Direction::Backward => backward,
            Direction::Both => (forward.0 + backward.0, forward.1 + backward.1),
        };
        // Ops count 4 bytes an element.
        let bytes = bytes * self.device.precision().bytes() as f64 / 4.0;
        Ok(Some(Measured { samples, work: (flops, bytes), peak_bytes: plan.peak_bytes(), out }))
    }
}

/// Empties a GPU's L2 cache, as the next use of an op would find it.
pub struct Flush(Plan);

impl Flush {
    /// For a GPU; `None` for what shares the host's memory.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(device: &Arc<dyn Device>) -> Result<Option<Flush>> {
        if !device.name().starts_with("cuda") {
            return Ok(None);
        }
        // 128 MiB or more, in and out: several times the largest L2.
        let mut graph = Graph::new();
        let x = graph.input("x", &[1 << 14, 1 << 12]);
        let y = graph.one(Copy, &[x])?;
        let options = PlanOptions { keep: vec![y], ..Default::default() };
        let plan = Plan::new(graph, device.clone(), &options)?;
        Ok(Some(Flush(plan)))
    }

    fn run(&self) -> Result<()> {
        self.0.forward()
    }
}
