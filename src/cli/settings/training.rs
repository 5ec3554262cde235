//! How it learns: steps, optimiser, storage, and when to look and to save.

use super::Check;
use crate::precision::Precision;
use crate::train::OptimizerSettings;
use std::str::FromStr;

/// Flags of training.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TrainingArgs {
    /// Steps in all [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=u32::MAX as u64))]
    pub steps: Option<u64>,
    /// Learning rate, constant [default: 5e-4]
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// What tensors are stored in; bf16 needs a GPU or the emulator, and keeps parameters and their gradients in f32
    /// besides [default: f32]
    #[arg(long, value_name = "f32|bf16")]
    pub dtype: Option<TrainingDtype>,
    /// Seed of initial weights, batches and dropout [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// AdamW's decay of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "X")]
    pub beta1: Option<f64>,
    /// AdamW's decay of the mean of squared gradients [default: 0.95]
    #[arg(long, value_name = "X")]
    pub beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "X")]
    pub eps: Option<f64>,
    /// Weight decay, on linear layers' weights only [default: 0.1]
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Largest norm of all gradients together; larger ones are scaled down to it [default: 1]
    #[arg(long, value_name = "X")]
    pub grad_clip: Option<f64>,
    /// Evaluate on the validation split after every N steps, besides at the end; 0: only at the end [default: 0]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Write a checkpoint after every N steps, besides at the end; 0: only at the end [default: 1000]
    #[arg(long, value_name = "N")]
    pub save_every: Option<u64>,
}

/// What training stores its tensors in. Arithmetic, parameters and their gradients are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingDtype {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16: f32's range, so that no gradient vanishes.
    Bf16,
}

impl TrainingDtype {
    /// What the device shall store.
    pub fn precision(self) -> Precision {
        match self {
            TrainingDtype::F32 => Precision::F32,
            TrainingDtype::Bf16 => Precision::Bf16,
        }
    }
}

impl FromStr for TrainingDtype {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(TrainingDtype::F32),
            "bf16" => Ok(TrainingDtype::Bf16),
            "f16" => Err("training in f16 needs loss scaling, which is not built in; use bf16".into()),
            _ => Err("give f32 or bf16".into()),
        }
    }
}

/// How a run learns.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainingSettings {
    /// Steps in all.
    pub steps: u64,
    /// What tensors are stored in; runs from before there was a choice have f32.
    #[serde(default)]
    pub dtype: TrainingDtype,
    /// Seed of everything random.
    pub seed: u64,
    /// AdamW's settings.
    pub optimizer: OptimizerSettings,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        let optimizer =
            OptimizerSettings { lr: 5e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0 };
        let dtype = TrainingDtype::F32;
        TrainingSettings { steps: 2000, dtype, seed: 1, optimizer, eval_every: 0, save_every: 1000 }
    }
}

impl TrainingArgs {
    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: TrainingSettings) -> TrainingSettings {
        let optimizer = base.optimizer;
        TrainingSettings {
            steps: self.steps.unwrap_or(base.steps),
            dtype: self.dtype.unwrap_or(base.dtype),
            seed: self.seed.unwrap_or(base.seed),
            optimizer: OptimizerSettings {
                lr: self.lr.unwrap_or(optimizer.lr),
                beta1: self.beta1.unwrap_or(optimizer.beta1),
                beta2: self.beta2.unwrap_or(optimizer.beta2),
                eps: self.eps.unwrap_or(optimizer.eps),
                weight_decay: self.weight_decay.unwrap_or(optimizer.weight_decay),
                max_norm: self.grad_clip.unwrap_or(optimizer.max_norm),
            },
            eval_every: self.eval_every.unwrap_or(base.eval_every),
            save_every: self.save_every.unwrap_or(base.save_every),
        }
    }
}

impl TrainingSettings {
    /// Values that must lie in a range.
    pub fn checks(&self) -> Vec<Check> {
        let OptimizerSettings { lr, beta1, beta2, eps, weight_decay, max_norm } = self.optimizer;
        vec![
            Check::not_negative("lr", lr),
            Check::below_one("beta1", beta1),
            Check::below_one("beta2", beta2),
            Check { flag: "eps", value: eps, fits: eps > 0.0 && eps.is_finite(), remedy: "give more than 0" },
            Check::not_negative("weight-decay", weight_decay),
            Check {
                flag: "grad-clip",
                value: max_norm,
                fits: max_norm > 0.0,
                remedy: "give more than 0 (inf: no clipping)",
            },
        ]
    }
}
