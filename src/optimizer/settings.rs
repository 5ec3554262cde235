//! Which optimiser, and its constants: what a run keeps of it.

use super::{Adagrad, Adam, AdamW, Optimizer, Sgd};
use clap::ValueEnum;

/// An optimiser's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[default]
    #[value(name = "adamw")]
    AdamW,
    /// Adam; weight decay is in the gradient.
    Adam,
    /// Gradient descent, with or without momentum.
    Sgd,
    /// Adagrad.
    Adagrad,
}

impl OptimizerName {
    /// As `--optimizer` takes it.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerName::AdamW => "adamw",
            OptimizerName::Adam => "adam",
            OptimizerName::Sgd => "sgd",
            OptimizerName::Adagrad => "adagrad",
        }
    }
}

/// An optimiser's settings. Those that it does not have are 0.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OptimizerSettings {
    /// Which.
    #[serde(default, rename = "optimizer")]
    pub name: OptimizerName,
    /// Learning rate, before any schedule.
    pub lr: f64,
    /// AdamW, Adam: decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW, Adam: decay of the mean of their squares.
    pub beta2: f64,
    /// All but SGD: added to the root of squares.
    pub eps: f64,
    /// SGD: part of the last direction that goes on.
    #[serde(default)]
    pub momentum: f64,
    /// AdamW: decoupled weight decay, on parameters that the model says have it.
    pub weight_decay: f64,
    /// All others: weight decay in the gradient, on the same parameters.
    #[serde(default)]
    pub weight_decay_l2: f64,
    /// Gradients are scaled down to this norm.
    #[serde(deserialize_with = "infinite_where_null")]
    pub max_norm: f64,
}

/// JSON has no infinity: it is written as null.
fn infinite_where_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let given: Option<f64> = serde::Deserialize::deserialize(from)?;
    Ok(given.unwrap_or(f64::INFINITY))
}

impl OptimizerSettings {
    /// The defaults: minGPT's for AdamW, torch.optim's for the others; gradients are clipped to 1 in any case.
    pub fn of(name: OptimizerName) -> OptimizerSettings {
        let none = OptimizerSettings {
            name,
            lr: 1e-3,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            momentum: 0.0,
            weight_decay: 0.0,
            weight_decay_l2: 0.0,
            max_norm: 1.0,
        };
        match name {
            OptimizerName::AdamW => {
                let AdamW { beta1, beta2, eps, weight_decay, .. } = AdamW::MINGPT;
                OptimizerSettings { lr: 5e-4, beta1, beta2, eps, weight_decay, ..none }
            }
            OptimizerName::Adam => {
                let Adam { beta1, beta2, eps, .. } = Adam::TORCH;
                OptimizerSettings { beta1, beta2, eps, ..none }
            }
            OptimizerName::Sgd => none,
            OptimizerName::Adagrad => OptimizerSettings { lr: 1e-2, eps: 1e-10, ..none },
        }
    }

    /// The update, for parameters of which the first `decayed` elements have weight decay.
    pub fn optimizer(&self, decayed: usize) -> Box<dyn Optimizer> {
        let OptimizerSettings { name, beta1, beta2, eps, momentum, weight_decay, weight_decay_l2, .. } = *self;
        match name {
            OptimizerName::AdamW => Box::new(AdamW { beta1, beta2, eps, weight_decay, decayed }),
            OptimizerName::Adam => Box::new(Adam { beta1, beta2, eps, weight_decay_l2, decayed }),
            OptimizerName::Sgd => Box::new(Sgd { momentum, weight_decay_l2, decayed }),
            OptimizerName::Adagrad => Box::new(Adagrad { eps, weight_decay_l2, decayed }),
        }
    }
}
