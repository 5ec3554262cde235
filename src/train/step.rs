//! One training step: batches in, loss out. Everything between is launched in one go where the device can capture it.
//!
//! With one batch a step, forward, backward and update are one capture. With several (gradient accumulation), forward
//! and backward are one, replayed for each batch, and the update is another. What differs from step to step (tokens,
//! learning rate, what dropout draws) lies in device memory, written before the replay: a captured step does what an eager
//! one does, bit for bit.

use crate::data::Batch;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::model::{Inputs, LossGraph};
use crate::optimizer::{ClipGradientNorm, Optimizer, OptimizerSettings};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// How a step learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Optimiser and clipping.
    pub optimizer: OptimizerSettings,
    /// Batches a step, at least 1: their losses' mean is what is minimised.
    pub accumulate: usize,
    /// What dropout draws from.
    pub seed: u64,
    /// Launch every kernel anew, even where the device could replay the step.
    pub eager: bool,
}

impl StepOptions {
    /// One batch a step, captured.
    pub fn new(optimizer: OptimizerSettings, seed: u64) -> StepOptions {
        StepOptions { optimizer, accumulate: 1, seed, eager: false }
    }
}

/// What can be captured as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Forward, backward and update.
    Whole,
    /// Forward and backward.
    Pass,
    /// Clipping and the optimiser.
    Update,
}

/// How far capturing the step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Replay {
    /// Nothing has run: kernels are still to be compiled, which a capture does not allow.
    Cold,
    /// A step has run eagerly.
    Warm,
    /// Replayed from here on.
    Captured(Vec<(Part, usize)>),
    /// This device captures nothing, or shall not.
    Never,
}

/// A planned model with its optimiser.
pub struct TrainingStep {
    plan: Plan,
    inputs: Inputs,
    loss: Tensor,
    clip: ClipGradientNorm,
    optimizer: Box<dyn Optimizer>,
    accumulate: usize,
    seed: u64,
    replay: Replay,
}

impl TrainingStep {
    /// Plans forward, backward and update.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(graph: LossGraph, device: Arc<dyn Device>, options: StepOptions) -> Result<TrainingStep> {
        let StepOptions { optimizer: settings, accumulate, seed, eager } = options;
        assert!(accumulate > 0, "a step has a batch");
        let LossGraph { graph, inputs, loss, .. } = graph;
        let plan_options = PlanOptions {
            roots: vec![loss],
            optimizer_slots: settings.optimizer(0).state().len(),
            accumulate: accumulate > 1,
            ..Default::default()
        };
        let plan = Plan::new(graph, device, &plan_options)?;
        // The gradient of the mean of the batches' losses.
        plan.seed(loss, &[1.0 / accumulate as f64])?;
        let optimizer = settings.optimizer(plan.parameter_elements().1);
        let clip = ClipGradientNorm { max_norm: settings.max_norm };
        let replay = if eager { Replay::Never } else { Replay::Cold };
        Ok(TrainingStep { plan, inputs, loss, clip, optimizer, accumulate, seed, replay })
    }

    /// The plan, whose parameters are trained.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }

    /// Batches a step.
    pub fn accumulate(&self) -> usize {
        self.accumulate
    }

    /// Trains on as many batches as [`StepOptions::accumulate`] says, with this learning rate, and returns their losses'
    /// mean before the update. `step` counts from 0. Dropout draws by step·accumulate + batch.
    ///
    /// # Errors
    /// If a batch does not fit the plan, or the device fails.
    ///
    /// # Panics
    /// If there are more or fewer batches.
    pub fn run(&mut self, step: u64, rate: f64, batches: &[Batch]) -> Result<f64> {
        assert_eq!(batches.len(), self.accumulate, "batches of a step");
        self.plan.write_hyper(&self.optimizer.hyper(rate, step + 1))?;
        if self.replay == Replay::Warm {
            self.capture()?;
        }
        let several = self.accumulate > 1;
        if several {
            self.plan.zero_gradients()?;
        }
        let mut sum = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            self.inputs.write(&self.plan, batch)?;
            self.inputs.write_random(&self.plan, self.seed, step * self.accumulate as u64 + i as u64)?;
            self.perform(if several { Part::Pass } else { Part::Whole })?;
            sum += self.plan.read(self.loss)?[0];
        }
        if several {
            self.perform(Part::Update)?;
        }
        if self.replay == Replay::Cold {
            self.replay = Replay::Warm;
        }
        Ok(sum / self.accumulate as f64)
    }

    fn capture(&mut self) -> Result<()> {
        let parts: &[Part] = if self.accumulate > 1 { &[Part::Pass, Part::Update] } else { &[Part::Whole] };
        let mut captured = Vec::new();
        for &part in parts {
            match self.plan.device().capture(&mut || self.launch(part))? {
                Some(number) => captured.push((part, number)),
                None => {
                    self.replay = Replay::Never;
                    return Ok(());
                }
            }
        }
        self.replay = Replay::Captured(captured);
        Ok(())
    }

    fn perform(&self, part: Part) -> Result<()> {
        match &self.replay {
            Replay::Captured(parts) => {
                let (_, number) = parts.iter().find(|(p, _)| *p == part).expect("every part was captured");
                self.plan.device().replay(*number)
            }
            _ => self.launch(part),
        }
    }

    fn launch(&self, part: Part) -> Result<()> {
        if part != Part::Update {
            self.plan.forward()?;
            self.plan.backward()?;
        }
        if part != Part::Pass {
            self.plan.update(&self.clip)?;
            self.plan.update(&*self.optimizer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::gpu::Gpu;
    use crate::gpu::emulator::Emulator;
    use crate::graph::Graph;
    use crate::ops::cross_entropy::CrossEntropy;
    use crate::ops::dropout::Dropout;
    use crate::ops::embedding::Embedding;
    use crate::ops::linear::Linear;
    use crate::optimizer::OptimizerName;
    use crate::philox::Philox;

    const VOCABULARY: usize = 7;
    const LENGTH: usize = 3;

    /// A bigram model with dropout: embedding (7,5), dropout, linear (5 to 7), loss. One parameter has no part in it.
    fn bigrams(rows: usize, dropout: f64) -> LossGraph {
        let mut graph = Graph::new();
        let any = i32::MIN as i64..i32::MAX as i64 + 1;
        let tokens = graph.indices("tokens", &[rows, LENGTH], 0..VOCABULARY as i64);
        let targets = graph.indices("targets", &[rows, LENGTH], -1..VOCABULARY as i64);
        let random = graph.indices("random", &[3], any);
        let wte = graph.parameter("wte", &[VOCABULARY, 5], false);
        graph.parameter("unused", &[2], true);
        let (weight, bias) =
            (graph.parameter("weight", &[VOCABULARY, 5], true), graph.parameter("bias", &[VOCABULARY], false));
        let x = graph.one(Embedding { positions: false }, &[tokens, wte]).unwrap();
        let x = graph.one(Dropout { p: dropout, stream: 0 }, &[x, random]).unwrap();
        let logits = graph.one(Linear::TORCH, &[x, weight, bias]).unwrap();
        let losses = graph.record(CrossEntropy { ignore: -1 }, &[logits, targets]).unwrap();
        let inputs = Inputs { tokens, targets, lengths: None, random: Some(random) };
        LossGraph { graph, inputs, loss: losses[0], token_losses: losses[1] }
    }

    /// A batch of the rows from `first` on of an endless text.
    fn batch(first: u64, rows: usize) -> Batch {
        let text = Philox::new(3, 0, 0);
        let token = |i: u64| (text.word(i) % VOCABULARY as u32) as i32;
        let all = || first * LENGTH as u64..(first + rows as u64) * LENGTH as u64;
        let (tokens, targets) = (all().map(token).collect(), all().map(|i| token(i + 1)).collect());
        Batch { tokens, targets, lengths: vec![LENGTH as i32; rows] }
    }

    /// Losses and parameters of five steps of some rows in so many batches each, and the step that made them.
    fn trained(
        device: Arc<dyn Device>,
        name: OptimizerName,
        (rows, accumulate): (usize, usize),
        dropout: f64,
        eager: bool,
    ) -> (Vec<f64>, Vec<f64>, TrainingStep) {
        let optimizer = OptimizerSettings { momentum: 0.9, max_norm: 0.5, ..OptimizerSettings::of(name) };
        let options = StepOptions { optimizer, accumulate, seed: 11, eager };
        let mut step = TrainingStep::new(bigrams(rows, dropout), device, options).unwrap();
        let parameters = step.plan.graph().parameters();
        for (i, &t) in parameters.iter().enumerate() {
            let n = step.plan.graph().spec(t).numel() as u64;
            let random = Philox::new(5, i as u32, 0);
            step.plan.write(t, &(0..n).map(|j| random.normal(j) as f32 as f64).collect::<Vec<f64>>()).unwrap();
        }
        let losses = (0..5)
            .map(|s| {
                let each = |i: usize| batch((s as usize * accumulate + i) as u64 * rows as u64, rows);
                let batches: Vec<Batch> = (0..accumulate).map(each).collect();
                step.run(s, 0.1 / (s + 1) as f64, &batches).unwrap()
            })
            .collect();
        let values = parameters.iter().flat_map(|&t| step.plan.read(t).unwrap()).collect();
        (losses, values, step)
    }

    /// Replayed launches do what launches do, bit for bit, while batch, rate, correction and dropout change.
    #[test]
    fn captured_equals_eager() {
        let device: Arc<dyn Device> =
            Arc::new(Gpu::new("emulator", Arc::new(Emulator::new(Default::default()).unwrap())));
        for (name, accumulate) in [(OptimizerName::AdamW, 1), (OptimizerName::Sgd, 3), (OptimizerName::Adagrad, 2)] {
            let run = |eager| trained(device.clone(), name, (2, accumulate), 0.3, eager);
            let (captured, eager) = (run(false), run(true));
            let parts = if accumulate == 1 { 1 } else { 2 };
            assert!(matches!(&captured.2.replay, Replay::Captured(p) if p.len() == parts), "{:?}", captured.2.replay);
            assert_eq!(eager.2.replay, Replay::Never);
            let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
            assert_eq!(bits(&captured.0), bits(&eager.0));
            assert_eq!(bits(&captured.1), bits(&eager.1));
            assert!(captured.0.windows(2).all(|w| w[0] != w[1]), "the batches differ");
        }
    }

    /// Three batches of two rows are one of six, for every optimiser.
    #[test]
    fn accumulated_batches_are_one_large_batch() {
        for name in [OptimizerName::AdamW, OptimizerName::Adam, OptimizerName::Sgd, OptimizerName::Adagrad] {
            let run = |shape| trained(Arc::new(Cpu::<f64>::new(1)), name, shape, 0.0, false);
            let (parts, whole) = (run((2, 3)), run((6, 1)));
            let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(close(&parts.0, &whole.0) && close(&parts.1, &whole.1), "{name:?}: {:?} {:?}", parts.0, whole.0);
            assert!(parts.2.plan.read_gradient(parts.2.plan.graph().parameters()[1]).unwrap() == [0.0, 0.0]);
        }
    }

    /// Every batch of a step draws its own dropout.
    #[test]
    fn batches_of_a_step_drop_different_elements() {
        let device = || Arc::new(Cpu::<f64>::new(1));
        let options = StepOptions { accumulate: 2, ..StepOptions::new(OptimizerSettings::of(OptimizerName::Sgd), 1) };
        let mut step = TrainingStep::new(bigrams(2, 0.5), device(), options).unwrap();
        for t in step.plan.graph().parameters() {
            let n = step.plan.graph().spec(t).numel();
            step.plan.write(t, &(0..n).map(|i| (i * i % 7) as f64).collect::<Vec<f64>>()).unwrap();
        }
        let same = [batch(0, 2), batch(0, 2)];
        let (mean, last) = (step.run(0, 0.0, &same).unwrap(), step.plan.read(step.loss).unwrap()[0]);
        assert!((mean - last).abs() > 1e-3, "{mean} {last}");
    }
}
