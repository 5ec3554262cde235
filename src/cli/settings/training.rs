//! How it learns: steps, optimiser, storage, and when to look and to save.

use super::Check;
use crate::cli::of_no_use;
use crate::error::{Error, Result};
use crate::optimizer::{OptimizerName, OptimizerSettings};
use crate::precision::Precision;
use crate::train::{Schedule, ScheduleName};
use std::str::FromStr;

/// Flags of training.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TrainingArgs {
    /// Steps in all [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=u32::MAX as u64))]
    pub steps: Option<u64>,
    /// Learning rate, the highest that the schedule reaches [default: adamw 5e-4, adam and sgd 1e-3, adagrad 1e-2]
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// What tensors are stored in; bf16 needs a GPU or the emulator, and keeps parameters and their gradients in f32
    /// besides [default: f32]
    #[arg(long, value_name = "f32|bf16")]
    pub dtype: Option<TrainingDtype>,
    /// Seed of initial weights, batches and dropout [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Optimiser, with torch.optim's formulas [default: adamw]
    #[arg(long, value_name = "NAME")]
    pub optimizer: Option<OptimizerName>,
    /// Decay of the mean of gradients (adamw, adam) [default: 0.9]
    #[arg(long, value_name = "X")]
    pub beta1: Option<f64>,
    /// Decay of the mean of squared gradients (adamw, adam) [default: adamw 0.95, adam 0.999]
    #[arg(long, value_name = "X")]
    pub beta2: Option<f64>,
    /// Added to the root of squared gradients (adamw, adam, adagrad) [default: 1e-8, adagrad 1e-10]
    #[arg(long, value_name = "X")]
    pub eps: Option<f64>,
    /// Part of the last direction that goes on (sgd) [default: 0]
    #[arg(long, value_name = "X")]
    pub momentum: Option<f64>,
    /// Decoupled weight decay (adamw), on linear layers' weights only [default: 0.1]
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Weight decay in the gradient (adam, sgd, adagrad: torch's weight_decay), on linear layers' weights only [default: 0]
    #[arg(long, value_name = "X")]
    pub weight_decay_l2: Option<f64>,
    /// Largest norm of all gradients together; larger ones are scaled down to it [default: 1]
    #[arg(long, value_name = "X")]
    pub grad_clip: Option<f64>,
    /// Batches a step: their losses' mean is minimised, in the memory of one [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: Option<u32>,
    /// How the learning rate changes: linear and cosine fall to --min-lr over --schedule-steps, step falls by --gamma
    /// after every --step-size, plateau by --gamma when --patience evaluations have shown no better loss [default: constant]
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<ScheduleName>,
    /// Steps over which the learning rate first rises from 0 in a straight line [default: 0]
    #[arg(long, value_name = "N")]
    pub warmup: Option<u64>,
    /// What the schedule does not go below [default: 0]
    #[arg(long, value_name = "X")]
    pub min_lr: Option<f64>,
    /// The step at which linear and cosine reach --min-lr [default: --steps]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub schedule_steps: Option<u64>,
    /// Steps between falls (step)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub step_size: Option<u64>,
    /// What the learning rate is multiplied with (step, plateau) [default: 0.1]
    #[arg(long, value_name = "X")]
    pub gamma: Option<f64>,
    /// Evaluations in a row without a lower validation loss that are borne; with one more the rate falls (plateau)
    /// [default: 10]
    #[arg(long, value_name = "N")]
    pub patience: Option<u64>,
    /// Evaluate on the validation split after every N steps, besides at the end, and keep the best checkpoint in best/;
    /// 0: only at the end [default: 0]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Stop after N evaluations in a row (of --eval-every) without a lower validation loss; 0: never [default: 0]
    #[arg(long, value_name = "N")]
    pub early_stop: Option<u64>,
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

/// How a run learns. What was not there from the beginning has a default, so that older runs can be resumed.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainingSettings {
    /// Steps in all.
    pub steps: u64,
    /// What tensors are stored in.
    #[serde(default)]
    pub dtype: TrainingDtype,
    /// Seed of everything random.
    pub seed: u64,
    /// The optimiser's settings.
    pub optimizer: OptimizerSettings,
    /// Batches a step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Evaluations without a better one after which training stops; 0: it does not.
    #[serde(default)]
    pub early_stop: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
}

fn one() -> usize {
    1
}

impl TrainingArgs {
    /// The defaults, which depend on the optimiser and on how many steps there are.
    pub fn defaults(&self) -> TrainingSettings {
        let steps = self.steps.unwrap_or(2000);
        TrainingSettings {
            steps,
            dtype: TrainingDtype::F32,
            seed: 1,
            optimizer: OptimizerSettings::of(self.optimizer.unwrap_or_default()),
            accumulate: 1,
            schedule: Schedule::default(),
            eval_every: 0,
            early_stop: 0,
            save_every: 1000,
        }
    }

    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: TrainingSettings) -> TrainingSettings {
        let (optimizer, schedule) = (base.optimizer, base.schedule);
        TrainingSettings {
            steps: self.steps.unwrap_or(base.steps),
            dtype: self.dtype.unwrap_or(base.dtype),
            seed: self.seed.unwrap_or(base.seed),
            optimizer: OptimizerSettings {
                name: self.optimizer.unwrap_or(optimizer.name),
                lr: self.lr.unwrap_or(optimizer.lr),
                beta1: self.beta1.unwrap_or(optimizer.beta1),
                beta2: self.beta2.unwrap_or(optimizer.beta2),
                eps: self.eps.unwrap_or(optimizer.eps),
                momentum: self.momentum.unwrap_or(optimizer.momentum),
                weight_decay: self.weight_decay.unwrap_or(optimizer.weight_decay),
                weight_decay_l2: self.weight_decay_l2.unwrap_or(optimizer.weight_decay_l2),
                max_norm: self.grad_clip.unwrap_or(optimizer.max_norm),
            },
            accumulate: self.accumulate.map_or(base.accumulate, |n| n as usize),
            schedule: Schedule {
                name: self.schedule.unwrap_or(schedule.name),
                warmup: self.warmup.unwrap_or(schedule.warmup),
                min_lr: self.min_lr.unwrap_or(schedule.min_lr),
                schedule_steps: self.schedule_steps.unwrap_or(schedule.schedule_steps),
                step_size: self.step_size.unwrap_or(schedule.step_size),
                gamma: self.gamma.unwrap_or(schedule.gamma),
                patience: self.patience.unwrap_or(schedule.patience),
            },
            eval_every: self.eval_every.unwrap_or(base.eval_every),
            early_stop: self.early_stop.unwrap_or(base.early_stop),
            save_every: self.save_every.unwrap_or(base.save_every),
        }
    }

    /// An error where a flag was given that the optimiser or the schedule has no use for, or lacks another.
    ///
    /// # Errors
    /// Naming the flag.
    pub fn check_together(&self, settings: &TrainingSettings) -> Result<()> {
        use {OptimizerName::*, ScheduleName::*};
        let optimizer = settings.optimizer.name;
        let of_optimizers: [(&str, Option<f64>, &[OptimizerName]); 6] = [
            ("beta1", self.beta1, &[AdamW, Adam]),
            ("beta2", self.beta2, &[AdamW, Adam]),
            ("eps", self.eps, &[AdamW, Adam, Adagrad]),
            ("momentum", self.momentum, &[Sgd]),
            ("weight-decay", self.weight_decay, &[AdamW]),
            ("weight-decay-l2", self.weight_decay_l2, &[Adam, Sgd, Adagrad]),
        ];
        for (flag, given, has) in of_optimizers {
            if let Some(value) = given.filter(|_| !has.contains(&optimizer)) {
                let names: Vec<&str> = has.iter().map(|o| o.name()).collect();
                return Err(of_no_use(flag, value, ("optimizer", optimizer.name()), &names));
            }
        }
        let schedule = settings.schedule.name;
        let count = |n: Option<u64>| n.map(|n| n as f64);
        let of_schedules: [(&str, Option<f64>, &[ScheduleName]); 5] = [
            ("min-lr", self.min_lr, &[Linear, Cosine, Step, Plateau]),
            ("schedule-steps", count(self.schedule_steps), &[Linear, Cosine]),
            ("step-size", count(self.step_size), &[Step]),
            ("gamma", self.gamma, &[Step, Plateau]),
            ("patience", count(self.patience), &[Plateau]),
        ];
        for (flag, given, has) in of_schedules {
            if let Some(value) = given.filter(|_| !has.contains(&schedule)) {
                let names: Vec<&str> = has.iter().map(|s| s.name()).collect();
                return Err(of_no_use(flag, value, ("schedule", schedule.name()), &names));
            }
        }
        if schedule == Step && settings.schedule.step_size == 0 {
            let problem = "does not say when to fall";
            return Err(Error::argument("--schedule step", problem, "give --step-size N"));
        }
        settings.check_evaluations()
    }
}

impl TrainingSettings {
    /// Sets what follows from the number of steps, once that is known: how long the schedule is.
    ///
    /// # Errors
    /// If the warm-up leaves none of it.
    pub fn settle(&mut self) -> Result<()> {
        let Schedule { name, warmup, schedule_steps, .. } = &mut self.schedule;
        if *schedule_steps == 0 {
            *schedule_steps = self.steps;
        }
        if [ScheduleName::Linear, ScheduleName::Cosine].contains(name) && *warmup >= *schedule_steps {
            let problem = format!("leaves no steps to fall in, of {schedule_steps}");
            let remedy = "give fewer, or a larger --steps or --schedule-steps";
            return Err(Error::argument(format!("--warmup {warmup}"), problem, remedy));
        }
        Ok(())
    }

    /// An error where something waits for evaluations and there are none.
    ///
    /// # Errors
    /// Naming the flag.
    pub fn check_evaluations(&self) -> Result<()> {
        let what = match (self.schedule.name, self.early_stop) {
            _ if self.eval_every > 0 => return Ok(()),
            (ScheduleName::Plateau, _) => "--schedule plateau".to_string(),
            (_, 0) => return Ok(()),
            (_, n) => format!("--early-stop {n}"),
        };
        Err(Error::argument(what, "needs evaluations to look at", "give --eval-every N"))
    }

    /// Values that must lie in a range.
    pub fn checks(&self) -> Vec<Check> {
        let OptimizerSettings { name, lr, beta1, beta2, eps, momentum, weight_decay, weight_decay_l2, max_norm } =
            self.optimizer;
        let Schedule { min_lr, gamma, .. } = self.schedule;
        vec![
            Check::not_negative("lr", lr),
            Check::below_one("beta1", beta1),
            Check::below_one("beta2", beta2),
            Check {
                flag: "eps",
                value: eps,
                fits: (eps > 0.0 || name == OptimizerName::Sgd) && eps.is_finite(),
                remedy: "give more than 0",
            },
            Check::below_one("momentum", momentum),
            Check::not_negative("weight-decay", weight_decay),
            Check::not_negative("weight-decay-l2", weight_decay_l2),
            Check {
                flag: "grad-clip",
                value: max_norm,
                fits: max_norm > 0.0,
                remedy: "give more than 0 (inf: no clipping)",
            },
            Check {
                flag: "min-lr",
                value: min_lr,
                fits: (0.0..=lr).contains(&min_lr),
                remedy: "give 0 or more, at most --lr",
            },
            Check {
                flag: "gamma",
                value: gamma,
                fits: gamma > 0.0 && gamma <= 1.0,
                remedy: "give more than 0, at most 1",
            },
        ]
    }
}
