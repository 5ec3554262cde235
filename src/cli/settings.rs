//! The settings of `attn train lm`: flags with minGPT's defaults, kept in the checkpoint so that a resumed run has them.

use crate::data::{DataOrder, addition};
use crate::error::{Error, Result};
use crate::model::gpt::attention_variants;
use crate::model::{GptConfig, PRESETS};
use crate::precision::Precision;
use crate::train::OptimizerSettings;
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;
use std::str::FromStr;

/// Flags that decide a run's numbers, and when it logs and saves.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingsArgs {
    /// Text to learn, in UTF-8 [default: generated two-digit addition, such as 12+34=640, the sum's digits in reverse]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Size of the model [default: gpt-nano]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.map(|p| p.name)))]
    preset: Option<String>,
    /// Attention variant [default: softmax-attention]
    #[arg(long, value_name = "VARIANT", value_parser = PossibleValuesParser::new(attention_variants()))]
    attention: Option<String>,
    /// Tokens that the model sees at once [default: 128; 10, one problem, for addition]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    block_size: Option<u32>,
    /// Blocks a step [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Steps in all [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=u32::MAX as u64))]
    steps: Option<u64>,
    /// Learning rate, constant [default: 5e-4]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Dropout probability, after the embedding and at the end of each branch of a block; attention weights are not
    /// dropped [default: 0.1]
    #[arg(long, value_name = "X")]
    dropout: Option<f64>,
    /// What tensors are stored in; bf16 needs a GPU or the emulator, and keeps parameters and their gradients in f32
    /// besides [default: f32]
    #[arg(long, value_name = "f32|bf16")]
    dtype: Option<TrainingDtype>,
    /// Seed of initial weights, batches and dropout [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Whether blocks start anywhere at random, or follow each other: row r of batch i (from 0) at (i·B + r)·block
    /// [default: random]
    #[arg(long, value_name = "ORDER")]
    data_order: Option<DataOrder>,
    /// AdamW's decay of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "X")]
    beta1: Option<f64>,
    /// AdamW's decay of the mean of squared gradients [default: 0.95]
    #[arg(long, value_name = "X")]
    beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "X")]
    eps: Option<f64>,
    /// Weight decay, on linear layers' weights only [default: 0.1]
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// Largest norm of all gradients together; larger ones are scaled down to it [default: 1]
    #[arg(long, value_name = "X")]
    grad_clip: Option<f64>,
    /// Evaluate on the validation split after every N steps, besides at the end; 0: only at the end [default: 0]
    #[arg(long, value_name = "N")]
    eval_every: Option<u64>,
    /// Write a checkpoint after every N steps, besides at the end; 0: only at the end [default: 1000]
    #[arg(long, value_name = "N")]
    save_every: Option<u64>,
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

/// A run's settings.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// The text; none: addition.
    pub text: Option<PathBuf>,
    /// Its digest, so that a changed text is noticed.
    pub text_sha256: Option<String>,
    /// Name of the model's size.
    pub preset: String,
    /// Name of the attention variant.
    pub attention: String,
    /// Tokens a block.
    pub block_size: usize,
    /// Blocks a step.
    pub batch_size: usize,
    /// Steps in all.
    pub steps: u64,
    /// Dropout probability.
    pub dropout: f64,
    /// What tensors are stored in; runs from before there was a choice have f32.
    #[serde(default)]
    pub dtype: TrainingDtype,
    /// Seed of everything random.
    pub seed: u64,
    /// How blocks follow each other.
    pub data_order: DataOrder,
    /// AdamW's settings.
    pub optimizer: OptimizerSettings,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
}

impl SettingsArgs {
    /// A new run's settings.
    ///
    /// # Errors
    /// If a flag's value is out of range.
    pub fn start(&self) -> Result<Settings> {
        let block = if self.text.is_some() { 128 } else { addition::LINE };
        let settings = self.over(Settings {
            text: None,
            text_sha256: None,
            preset: PRESETS[0].name.into(),
            attention: "softmax-attention".into(),
            block_size: block,
            batch_size: 64,
            steps: 2000,
            dropout: 0.1,
            dtype: TrainingDtype::F32,
            seed: 1,
            data_order: DataOrder::Random,
            optimizer: OptimizerSettings {
                lr: 5e-4,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                max_norm: 1.0,
            },
            eval_every: 0,
            save_every: 1000,
        });
        settings.check()?;
        Ok(settings)
    }

    /// A resumed run's settings.
    ///
    /// # Errors
    /// If a flag contradicts them that would change the run's numbers.
    pub fn resume(&self, stored: Settings) -> Result<Settings> {
        let mut settings = self.over(stored.clone());
        // A text that moved is the same text if its digest is.
        let text = std::mem::replace(&mut settings.text, stored.text.clone());
        let before = serde_json::to_value(&stored).expect("settings are plain data");
        let after = serde_json::to_value(&settings).expect("settings are plain data");
        let flat = |value: &serde_json::Value| -> Vec<(String, serde_json::Value)> {
            let fields = value.as_object().expect("a struct").clone();
            let optimizer = fields["optimizer"].as_object().expect("a struct").clone();
            fields.into_iter().filter(|(name, _)| name != "optimizer").chain(optimizer).collect()
        };
        for ((name, old), (_, new)) in flat(&before).into_iter().zip(flat(&after)) {
            if old != new && !["steps", "eval_every", "save_every"].contains(&name.as_str()) {
                let flag = if name == "max_norm" { "grad-clip".into() } else { name.replace('_', "-") };
                let problem = format!("the run to resume has {old}");
                return Err(Error::argument(
                    format!("--{flag} {new}"),
                    problem,
                    "leave the flag out, or start a new run with --init",
                ));
            }
        }
        match (&settings.text, text) {
            (None, Some(path)) => {
                let what = format!("--text {}", path.display());
                Err(Error::argument(what, "the run to resume learns addition", "leave the flag out"))
            }
            (_, text) => Ok(Settings { text, ..settings }),
        }
    }

    /// What the flags say, and where they say nothing, `base`.
    fn over(&self, base: Settings) -> Settings {
        let args = self.clone();
        let size = |given: Option<u32>, base: usize| given.map_or(base, |n| n as usize);
        let optimizer = base.optimizer;
        Settings {
            text: args.text.or(base.text),
            text_sha256: base.text_sha256,
            preset: args.preset.unwrap_or(base.preset),
            attention: args.attention.unwrap_or(base.attention),
            block_size: size(args.block_size, base.block_size),
            batch_size: size(args.batch_size, base.batch_size),
            steps: args.steps.unwrap_or(base.steps),
            dropout: args.dropout.unwrap_or(base.dropout),
            dtype: args.dtype.unwrap_or(base.dtype),
            seed: args.seed.unwrap_or(base.seed),
            data_order: args.data_order.unwrap_or(base.data_order),
            optimizer: OptimizerSettings {
                lr: args.lr.unwrap_or(optimizer.lr),
                beta1: args.beta1.unwrap_or(optimizer.beta1),
                beta2: args.beta2.unwrap_or(optimizer.beta2),
                eps: args.eps.unwrap_or(optimizer.eps),
                weight_decay: args.weight_decay.unwrap_or(optimizer.weight_decay),
                max_norm: args.grad_clip.unwrap_or(optimizer.max_norm),
            },
            eval_every: args.eval_every.unwrap_or(base.eval_every),
            save_every: args.save_every.unwrap_or(base.save_every),
        }
    }
}

impl Settings {
    /// An error where a value is out of range.
    fn check(&self) -> Result<()> {
        let OptimizerSettings { lr, beta1, beta2, eps, weight_decay, max_norm } = self.optimizer;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        for (flag, value, fits, remedy) in [
            ("lr", lr, not_negative(lr), "give 0 or more"),
            ("dropout", self.dropout, below_one(self.dropout), "give 0 or more, below 1"),
            ("beta1", beta1, below_one(beta1), "give 0 or more, below 1"),
            ("beta2", beta2, below_one(beta2), "give 0 or more, below 1"),
            ("eps", eps, not_negative(eps) && eps > 0.0, "give more than 0"),
            ("weight-decay", weight_decay, not_negative(weight_decay), "give 0 or more"),
            ("grad-clip", max_norm, max_norm > 0.0, "give more than 0 (inf: no clipping)"),
        ] {
            if !fits {
                return Err(Error::argument(format!("--{flag} {value}"), "is out of range", remedy));
            }
        }
        Ok(())
    }

    /// The model that they describe.
    ///
    /// # Errors
    /// If the preset's name is unknown, as in a `training.json` that was edited.
    pub fn model(&self, vocabulary: usize) -> Result<GptConfig> {
        let Some(preset) = PRESETS.iter().find(|p| p.name == self.preset) else {
            let names = PRESETS.map(|p| p.name).join(", ");
            let what = format!("--preset {}", self.preset);
            return Err(Error::argument(what, "is no preset", format!("give one of {names}")));
        };
        Ok(GptConfig {
            layers: preset.layers,
            heads: preset.heads,
            width: preset.width,
            block: self.block_size,
            vocabulary,
            attention: self.attention.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_keeps_what_decides_the_numbers() {
        let stored = SettingsArgs { lr: Some(3e-3), ..Default::default() }.start().unwrap();
        assert_eq!((stored.block_size, stored.optimizer.lr), (10, 3e-3));
        let longer = SettingsArgs { steps: Some(9), lr: Some(3e-3), ..Default::default() };
        assert_eq!(longer.resume(stored.clone()).unwrap(), Settings { steps: 9, ..stored.clone() });
        let error = SettingsArgs { lr: Some(1.0), ..Default::default() }.resume(stored.clone()).unwrap_err();
        assert!(error.to_string().starts_with("--lr 1.0: the run to resume has 0.003"), "{error}");
        let error = SettingsArgs { text: Some("t".into()), ..Default::default() }.resume(stored).unwrap_err();
        assert!(error.to_string().starts_with("--text t: the run to resume learns addition"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        for (args, flag) in [
            (SettingsArgs { lr: Some(f64::NAN), ..Default::default() }, "--lr NaN"),
            (SettingsArgs { dropout: Some(1.0), ..Default::default() }, "--dropout 1"),
            (SettingsArgs { grad_clip: Some(0.0), ..Default::default() }, "--grad-clip 0"),
        ] {
            assert!(args.start().unwrap_err().to_string().starts_with(flag));
        }
    }
}
