//! A checkpoint directory: Hugging Face's files, and what resuming needs besides.
//!
//! `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` are read by transformers, where it
//! has the model. `optimizer.safetensors` holds the optimiser's buffers, by PyTorch's names, each flat, in the plan's order
//! of parameters; `training.json` the steps done, what evaluations have shown, and the run's settings. `log.jsonl` grows
//! beside them. `best/` is a checkpoint of the same kind: that of the lowest validation loss.

use super::directory;
use super::{TrainingStep, Watch};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{DropoutRates, GptConfig, weights};
use crate::plan::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINING: &str = "training.json";
const FILES: [&str; 6] = [CONFIG, MODEL, TOKENIZER, TOKENIZER_CONFIG, OPTIMIZER, TRAINING];
/// The folder of the best checkpoint, inside that of the last.
pub const BEST: &str = "best";

/// A model's directory.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    directory: PathBuf,
    config: GptConfig,
    tokenizer: Tokenizer,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// What evaluations have shown; nothing in runs from before this was kept.
    #[serde(default)]
    pub watch: Watch,
}

/// Writes all files of a checkpoint, together or not at all.
///
/// # Errors
/// If they cannot be written; an earlier checkpoint there is as it was.
pub fn write(
    directory: &Path,
    training: &TrainingStep,
    config: &GptConfig,
    tokenizer: &Tokenizer,
    dropout: DropoutRates,
    state: State,
    settings: &impl serde::Serialize,
) -> Result<()> {
    let plan = training.plan();
    let mut buffers = BTreeMap::new();
    for (slot, name) in training.optimizer().state().iter().enumerate() {
        let values = plan.read_slot(slot)?;
        buffers.insert(name.to_string(), weights::Values { shape: vec![values.len()], values });
    }
    let settings = serde_json::to_value(settings).expect("settings are plain data");
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    directory::replace(
        directory,
        &[
            (CONFIG, text(&config.to_json(dropout))),
            (MODEL, weights::to_bytes(&weights::of_plan(plan)?)),
            (TOKENIZER, text(&tokenizer.to_json())),
            (TOKENIZER_CONFIG, text(&tokenizer.to_config_json(config.block))),
            (OPTIMIZER, weights::to_bytes(&buffers)),
            (TRAINING, text(&json!({ "step": state.step, "watch": state.watch, "settings": settings }))),
        ],
    )
}

/// Removes the files of an earlier run's checkpoints, and no others.
///
/// # Errors
/// If one cannot be removed.
pub fn remove(directory: &Path) -> Result<()> {
    let best = directory.join(BEST);
    if is_there(&best) {
        remove(&best)?;
        // With something else in it, it stays.
        let _ = std::fs::remove_dir(&best);
    }
    directory::settle(directory)?;
    for name in FILES {
        let path = directory.join(name);
        if path.exists() {
            std::fs::remove_file(&path)
                .map_err(|e| Error::file(&path, format!("cannot be removed: {e}"), "give another --out"))?;
        }
    }
    Ok(())
}

/// Copies the best checkpoint of one run's directory, if it has one, to another's.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_best(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.join(BEST), to.join(BEST));
    if !is_there(&from) {
        return Ok(());
    }
    let mut files = Vec::new();
    for name in FILES {
        let path = from.join(name);
        let bytes = std::fs::read(&path)
            .map_err(|e| Error::file(&path, format!("cannot be read: {e}"), "restore it, or remove this folder"))?;
        files.push((name, bytes));
    }
    directory::create(&to)?;
    directory::replace(&to, &files)
}

/// Whether a run can be resumed from there.
pub fn is_there(directory: &Path) -> bool {
    directory::settle(directory).is_ok() && directory.join(TRAINING).exists()
}

impl Checkpoint {
    /// Opens a directory that `attn train lm` wrote, or another program in the same layout.
    ///
    /// # Errors
    /// If `config.json` or the tokenizer is missing or describes something else.
    pub fn open(directory: &Path) -> Result<Checkpoint> {
        if !directory.is_dir() {
            let remedy = "give a directory that `attn train lm --out` wrote";
            return Err(Error::file(directory, "is no directory", remedy));
        }
        directory::settle(directory)?;
        let config = GptConfig::read(&directory.join(CONFIG))?;
        let tokenizer = Tokenizer::at(directory)?;
        // More rows than tokens are filling, as some models have; a token without a row would be unknown to the model.
        if tokenizer.len() > config.vocabulary {
            let (tokens, unit) = (tokenizer.len(), tokenizer.unit());
            let problem = format!("has {tokens} {unit}, config.json says {}", config.vocabulary);
            return Err(Error::file(directory.join(TOKENIZER), problem, "restore the checkpoint"));
        }
        Ok(Checkpoint { directory: directory.to_path_buf(), config, tokenizer })
    }

    /// The model's configuration.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Writes its parameters to a plan.
    ///
    /// # Errors
    /// If the file is damaged, or its tensors are not the plan's parameters.
    pub fn load_parameters(&self, plan: &Plan) -> Result<()> {
        let path = weights::file_in(&self.directory)?;
        weights::to_plan(plan, weights::import(&path)?, self.config.tied, &path)
    }

    /// Writes the optimiser's state to a plan.
    ///
    /// # Errors
    /// If the file is missing, damaged, or of another model or optimiser.
    pub fn load_optimizer(&self, training: &TrainingStep) -> Result<()> {
        let path = self.directory.join(OPTIMIZER);
        let tensors = weights::read(&path)?;
        let plan = training.plan();
        for (slot, name) in training.optimizer().state().iter().enumerate() {
            let n = plan.parameter_elements().0;
            let Some(buffer) = tensors.get(*name).filter(|m| m.shape == [n]) else {
                let problem = format!("tensor `{name}` of {n} elements is missing");
                return Err(Error::file(path, problem, "start anew from the weights with --init"));
            };
            plan.write_slot(slot, &buffer.values)?;
        }
        Ok(())
    }

    /// How far the run has come, and its settings.
    ///
    /// # Errors
    /// If `training.json` is missing or damaged.
    pub fn training<S: serde::de::DeserializeOwned>(&self) -> Result<(State, S)> {
        #[derive(serde::Deserialize)]
        struct Training<S> {
            #[serde(flatten)]
            state: State,
            settings: S,
        }
        let path = self.directory.join(TRAINING);
        let remedy = "start anew from the weights with --init";
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::file(&path, format!("cannot be read: {e}"), format!("this run cannot be resumed: {remedy}"))
        })?;
        let Training { state, settings } = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("is no description of a run: {e}"), remedy))?;
        Ok((state, settings))
    }
}

/// Weights to start from.
#[derive(Debug, Clone)]
pub struct Initial {
    path: PathBuf,
    /// The model that the weights are of, where the directory says so.
    pub config: Option<GptConfig>,
    /// The tokenizer that the weights were trained with, where the directory has it.
    pub tokenizer: Option<Tokenizer>,
}

impl Initial {
    /// Looks at a file of weights (`.safetensors`, or minGPT's `.pt`), or at a directory with `model.safetensors` (or the index of
    /// several), and perhaps `config.json` and tokenizer files.
    ///
    /// # Errors
    /// If there are no weights, or one of the others is damaged.
    pub fn open(path: &Path) -> Result<Initial> {
        if !path.is_dir() {
            if !path.is_file() {
                return Err(Error::file(
                    path,
                    "does not exist",
                    "give --init a file of weights, or a directory with one",
                ));
            }
            return Ok(Initial { path: path.into(), config: None, tokenizer: None });
        }
        directory::settle(path)?;
        let config = path.join(CONFIG);
        let config = config.exists().then(|| GptConfig::read(&config)).transpose()?;
        let has_tokenizer = path.join(TOKENIZER).exists() || path.join("vocab.json").exists();
        let tokenizer = has_tokenizer.then(|| Tokenizer::at(path)).transpose()?;
        Ok(Initial { path: weights::file_in(path)?, config, tokenizer })
    }

    /// Writes the weights to a plan.
    ///
    /// # Errors
    /// If the file is damaged, or its tensors are not the plan's parameters.
    pub fn load(&self, plan: &Plan) -> Result<()> {
        let tied = self.config.as_ref().is_some_and(|c| c.tied);
        weights::to_plan(plan, weights::import(&self.path)?, tied, &self.path)
    }
}
