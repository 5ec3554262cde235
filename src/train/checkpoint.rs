//! A checkpoint directory: Hugging Face's files, and what resuming needs besides.
//!
//! `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` are read by transformers, where it
//! has the model. `optimizer.safetensors` holds AdamW's two means, each flat, in the plan's order of parameters;
//! `training.json` the steps done and the run's settings. `log.jsonl` grows beside them.

use super::directory;
use super::step::SLOTS;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{GptConfig, weights};
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
/// AdamW's buffers, as PyTorch calls them.
const MEANS: [&str; SLOTS] = ["exp_avg", "exp_avg_sq"];

/// A model's directory.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    directory: PathBuf,
    config: GptConfig,
    tied: bool,
    tokenizer: Tokenizer,
}

/// Writes all files of a checkpoint, together or not at all.
///
/// # Errors
/// If they cannot be written; an earlier checkpoint there is as it was.
pub fn write(
    directory: &Path,
    plan: &Plan,
    config: &GptConfig,
    tokenizer: &Tokenizer,
    dropout: f64,
    step: u64,
    settings: &impl serde::Serialize,
) -> Result<()> {
    let mut means = BTreeMap::new();
    for (slot, name) in MEANS.iter().enumerate() {
        let values = plan.read_slot(slot)?;
        means.insert(name.to_string(), weights::Values { shape: vec![values.len()], values });
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
            (OPTIMIZER, weights::to_bytes(&means)),
            (TRAINING, text(&json!({ "step": step, "settings": settings }))),
        ],
    )
}

/// Removes the files of an earlier checkpoint, and no others.
///
/// # Errors
/// If one cannot be removed.
pub fn remove(directory: &Path) -> Result<()> {
    directory::settle(directory)?;
    for name in [CONFIG, MODEL, TOKENIZER, TOKENIZER_CONFIG, OPTIMIZER, TRAINING] {
        let path = directory.join(name);
        if path.exists() {
            std::fs::remove_file(&path)
                .map_err(|e| Error::file(&path, format!("cannot be removed: {e}"), "give another --out"))?;
        }
    }
    Ok(())
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
        let (config, tied) = GptConfig::read(&directory.join(CONFIG))?;
        let tokenizer = Tokenizer::at(directory)?;
        // More rows than tokens are filling, as some models have; a token without a row would be unknown to the model.
        if tokenizer.len() > config.vocabulary {
            let (tokens, unit) = (tokenizer.len(), tokenizer.unit());
            let problem = format!("has {tokens} {unit}, config.json says {}", config.vocabulary);
            return Err(Error::file(directory.join(TOKENIZER), problem, "restore the checkpoint"));
        }
        Ok(Checkpoint { directory: directory.to_path_buf(), config, tied, tokenizer })
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
        let path = self.directory.join(MODEL);
        weights::to_plan(plan, weights::read(&path)?, self.tied, &path)
    }

    /// Writes the optimiser's state to a plan.
    ///
    /// # Errors
    /// If the file is missing, damaged, or of another model.
    pub fn load_optimizer(&self, plan: &Plan) -> Result<()> {
        let path = self.directory.join(OPTIMIZER);
        let tensors = weights::read(&path)?;
        for (slot, name) in MEANS.iter().enumerate() {
            let n = plan.parameter_elements().0;
            let Some(mean) = tensors.get(*name).filter(|m| m.shape == [n]) else {
                let problem = format!("tensor `{name}` of {n} elements is missing");
                return Err(Error::file(path, problem, "start anew from the weights with --init"));
            };
            plan.write_slot(slot, &mean.values)?;
        }
        Ok(())
    }

    /// How many steps the run has done, and its settings.
    ///
    /// # Errors
    /// If `training.json` is missing or damaged.
    pub fn training<S: serde::de::DeserializeOwned>(&self) -> Result<(u64, S)> {
        #[derive(serde::Deserialize)]
        struct Training<S> {
            step: u64,
            settings: S,
        }
        let path = self.directory.join(TRAINING);
        let remedy = "start anew from the weights with --init";
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::file(&path, format!("cannot be read: {e}"), format!("this run cannot be resumed: {remedy}"))
        })?;
        let Training { step, settings } = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("is no description of a run: {e}"), remedy))?;
        Ok((step, settings))
    }
}

/// Weights to start from.
#[derive(Debug, Clone)]
pub struct Initial {
    path: PathBuf,
    tied: bool,
    /// The tokenizer that the weights were trained with, where the directory has it.
    pub tokenizer: Option<Tokenizer>,
}

impl Initial {
    /// Looks at a directory with `model.safetensors`, and perhaps `config.json` and tokenizer files.
    ///
    /// # Errors
    /// If there are no weights, or one of the others is damaged.
    pub fn open(directory: &Path) -> Result<Initial> {
        let path = directory.join(MODEL);
        if directory.is_dir() {
            directory::settle(directory)?;
        }
        if !path.is_file() {
            return Err(Error::file(path, "does not exist", "give --init a directory with weights in this file"));
        }
        let (config, tokenizer) = (directory.join(CONFIG), directory.join(TOKENIZER));
        let tied = config.exists() && GptConfig::read(&config)?.1;
        let has_tokenizer = tokenizer.exists() || directory.join("vocab.json").exists();
        let tokenizer = has_tokenizer.then(|| Tokenizer::at(directory)).transpose()?;
        Ok(Initial { path, tied, tokenizer })
    }

    /// Writes the weights to a plan.
    ///
    /// # Errors
    /// If the file is damaged, or its tensors are not the plan's parameters.
    pub fn load(&self, plan: &Plan) -> Result<()> {
        weights::to_plan(plan, weights::read(&self.path)?, self.tied, &self.path)
    }
}
