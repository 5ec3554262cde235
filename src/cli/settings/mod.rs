//! The settings of `attn train lm`: flags with minGPT's defaults, kept in the checkpoint so that a resumed run has them.
//!
//! Each file holds one group: its flags (`…Args`, all optional) and what is kept (`…Settings`).

mod data;
mod model;
mod training;

pub use data::{DataArgs, DataSettings};
pub use model::{ModelArgs, ModelSettings};
pub use training::{TrainingArgs, TrainingDtype, TrainingSettings};

use crate::error::{Error, Result};
use crate::model::GptConfig;
use crate::train::ScheduleName;
use serde_json::Value;

/// Flags that decide a run's numbers, and when it logs and saves.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SettingsArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

/// A run's settings.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// What is learned.
    #[serde(flatten)]
    pub data: DataSettings,
    /// What learns it.
    #[serde(flatten)]
    pub model: ModelSettings,
    /// How.
    #[serde(flatten)]
    pub training: TrainingSettings,
}

/// What a resumed run may have otherwise than before: its numbers up to here stay what they were.
const MAY_CHANGE: [&str; 4] = ["steps", "epochs", "early_stop", "save_every"];
/// The same, unless evaluations decide on the learning rate.
const MAY_CHANGE_WITHOUT_PLATEAU: &str = "eval_every";

/// A number that a flag gave, and whether it will do.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Without its dashes.
    pub flag: &'static str,
    /// What it holds.
    pub value: f64,
    /// Whether that is in range.
    pub fits: bool,
    /// What to give otherwise.
    pub remedy: &'static str,
}

impl Check {
    /// Finite, 0 or more.
    pub fn not_negative(flag: &'static str, value: f64) -> Check {
        Check { flag, value, fits: value.is_finite() && value >= 0.0, remedy: "give 0 or more" }
    }

    /// From 0 on, below 1.
    pub fn below_one(flag: &'static str, value: f64) -> Check {
        Check { flag, value, fits: (0.0..1.0).contains(&value), remedy: "give 0 or more, below 1" }
    }
}

impl SettingsArgs {
    /// A new run's settings. Where flags say nothing, the model is of `initial`'s shape, if it starts from weights that
    /// say theirs.
    ///
    /// # Errors
    /// If a flag's value is out of range.
    pub fn start(&self, initial: Option<&GptConfig>) -> Result<Settings> {
        let model = initial.map_or_else(Default::default, |config| self.model.base(config));
        let (data, training) = (self.data.defaults(), self.training.defaults());
        let settings = self.over(Settings { data, model, training });
        self.data.check(&settings.data)?;
        settings.check()?;
        self.training.check_together(&settings.training)?;
        Ok(settings)
    }

    /// A resumed run's settings.
    ///
    /// # Errors
    /// If a flag contradicts them that would change the run's numbers.
    pub fn resume(&self, stored: Settings) -> Result<Settings> {
        let mut settings = self.over(stored.clone());
        // A text that moved is the same text if its digest is.
        let text = std::mem::replace(&mut settings.data.text, stored.data.text.clone());
        let held_out = std::mem::replace(&mut settings.data.validation_text, stored.data.validation_text.clone());
        let plateau = stored.training.schedule.name == ScheduleName::Plateau;
        for ((name, old), (_, new)) in leaves(&stored).into_iter().zip(leaves(&settings)) {
            let may_change = MAY_CHANGE.contains(&name.as_str()) || (name == MAY_CHANGE_WITHOUT_PLATEAU && !plateau);
            if old != new && !may_change {
                let flag = if name == "max_norm" { "grad-clip".into() } else { name.replace('_', "-") };
                let problem = format!("the run to resume has {old}");
                let remedy = "leave the flag out, or start a new run with --init";
                return Err(Error::argument(format!("--{flag} {new}"), problem, remedy));
            }
        }
        settings.training.check_evaluations()?;
        match (&settings.data.text, text) {
            (None, Some(path)) => {
                let what = format!("--text {}", path.display());
                Err(Error::argument(what, "the run to resume learns addition", "leave the flag out"))
            }
            (_, text) => {
                settings.data.text = text;
                settings.data.validation_text = held_out;
                Ok(settings)
            }
        }
    }

    /// What the flags say, and where they say nothing, `base`.
    fn over(&self, base: Settings) -> Settings {
        // A number of steps takes the place of a number of epochs.
        let epochs = base.data.epochs.filter(|_| self.training.steps.is_none());
        Settings {
            data: self.data.over(DataSettings { epochs, ..base.data }),
            model: self.model.over(base.model),
            training: self.training.over(base.training),
        }
    }
}

/// All settings by name, of whatever group.
fn leaves(settings: &Settings) -> Vec<(String, Value)> {
    fn flat(fields: Value) -> Vec<(String, Value)> {
        let Value::Object(fields) = fields else { unreachable!("settings are structs") };
        let of_field =
            |(name, value): (String, Value)| if value.is_object() { flat(value) } else { vec![(name, value)] };
        fields.into_iter().flat_map(of_field).collect()
    }
    flat(serde_json::to_value(settings).expect("settings are plain data"))
}

impl Settings {
    /// An error where a value is out of range.
    fn check(&self) -> Result<()> {
        let all = self.model.checks().into_iter().chain(self.training.checks());
        match all.into_iter().find(|c| !c.fits) {
            Some(Check { flag, value, remedy, .. }) => {
                Err(Error::argument(format!("--{flag} {value}"), "is out of range", remedy))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(training: TrainingArgs) -> SettingsArgs {
        SettingsArgs { training, ..Default::default() }
    }

    #[test]
    fn resuming_keeps_what_decides_the_numbers() {
        let stored = with(TrainingArgs { lr: Some(3e-3), ..Default::default() }).start(None).unwrap();
        assert_eq!((stored.data.block_size, stored.training.optimizer.lr), (10, 3e-3));
        let longer = with(TrainingArgs { steps: Some(9), lr: Some(3e-3), ..Default::default() });
        let mut expected = stored.clone();
        expected.training.steps = 9;
        assert_eq!(longer.resume(stored.clone()).unwrap(), expected);
        let faster = with(TrainingArgs { lr: Some(1.0), ..Default::default() });
        let error = faster.resume(stored.clone()).unwrap_err();
        assert!(error.to_string().starts_with("--lr 1.0: the run to resume has 0.003"), "{error}");
        let data = DataArgs { text: Some("t".into()), ..Default::default() };
        let error = SettingsArgs { data, ..Default::default() }.resume(stored).unwrap_err();
        assert!(error.to_string().starts_with("--text t: the run to resume learns addition"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        let dropout = ModelArgs { dropout: Some(1.0), ..Default::default() };
        for (args, flag) in [
            (with(TrainingArgs { lr: Some(f64::NAN), ..Default::default() }), "--lr NaN"),
            (SettingsArgs { model: dropout, ..Default::default() }, "--dropout 1"),
            (with(TrainingArgs { grad_clip: Some(0.0), ..Default::default() }), "--grad-clip 0"),
        ] {
            assert!(args.start(None).unwrap_err().to_string().starts_with(flag));
        }
    }
}
