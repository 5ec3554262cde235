//! One training step: batch in, loss out. Everything between is launched in one go where the device can capture it.

use crate::data::Batch;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::model::{Inputs, LossGraph};
use crate::optimizer::{AdamW, ClipGradientNorm};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// AdamW's settings. The learning rate is constant.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OptimizerSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Weight decay, on parameters that the model says have it.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub max_norm: f64,
}

/// Buffers that AdamW keeps, each of the parameters' size: the two means.
pub const SLOTS: usize = 2;

/// How far capturing the step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replay {
    /// Nothing has run: kernels are still to be compiled, which a capture does not allow.
    Cold,
    /// A step has run eagerly.
    Warm,
    /// Replayed from here on.
    Captured(usize),
    /// This device captures nothing.
    Never,
}

/// A planned model with its optimiser.
pub struct TrainingStep {
    plan: Plan,
    inputs: Inputs,
    loss: Tensor,
    settings: OptimizerSettings,
    clip: ClipGradientNorm,
    adamw: AdamW,
    seed: u64,
    replay: Replay,
}

impl TrainingStep {
    /// Plans forward, backward and update. `seed` draws dropout masks.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(
        graph: LossGraph,
        device: Arc<dyn Device>,
        settings: OptimizerSettings,
        seed: u64,
    ) -> Result<TrainingStep> {
        let LossGraph { graph, inputs, loss, .. } = graph;
        let options = PlanOptions { roots: vec![loss], optimizer_slots: SLOTS, ..Default::default() };
        let plan = Plan::new(graph, device, &options)?;
        let OptimizerSettings { beta1, beta2, eps, weight_decay, max_norm, .. } = settings;
        let decayed = plan.parameter_elements().1;
        let clip = ClipGradientNorm { max_norm };
        let adamw = AdamW { beta1, beta2, eps, weight_decay, decayed };
        Ok(TrainingStep { plan, inputs, loss, settings, clip, adamw, seed, replay: Replay::Cold })
    }

    /// The plan, whose parameters are trained.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The optimiser's settings.
    pub fn settings(&self) -> OptimizerSettings {
        self.settings
    }

    /// Trains on a batch and returns its loss before the update. `step` counts from 0.
    ///
    /// # Errors
    /// If the batch does not fit the plan, or the device fails.
    pub fn run(&mut self, step: u64, batch: &Batch) -> Result<f64> {
        self.inputs.write(&self.plan, batch)?;
        self.inputs.write_random(&self.plan, self.seed, step)?;
        let OptimizerSettings { lr, beta1, beta2, .. } = self.settings;
        let t = (step + 1).min(i32::MAX as u64) as i32;
        self.plan.write_hyper(&[lr, 1.0 - beta1.powi(t), 1.0 - beta2.powi(t)])?;
        if self.replay == Replay::Warm {
            let captured = self.plan.device().capture(&mut || self.launch())?;
            self.replay = captured.map_or(Replay::Never, Replay::Captured);
        }
        match self.replay {
            Replay::Captured(captured) => self.plan.device().replay(captured)?,
            _ => self.launch()?,
        }
        if self.replay == Replay::Cold {
            self.replay = Replay::Warm;
        }
        Ok(self.plan.read(self.loss)?[0])
    }

    fn launch(&self) -> Result<()> {
        self.plan.forward()?;
        self.plan.backward()?;
        self.plan.update(&self.clip)?;
        self.plan.update(&self.adamw)
    }
}
