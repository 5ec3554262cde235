//! A classifier's run on disk: what [`crate::model::classifier::Classifier`] opens, and what resuming needs besides.
//!
//! The directory holds the last checkpoint, its folder `best/` the best; each can be opened. `frozen.safetensors` and
//! `word_index.json` are written once, at the start.

use super::classify::{ClassifierStep, Examples, Found, Kept, State, evaluate};
use super::directory;
use crate::data::WordIndex;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::classifier::{ClassifierConfig, INDEX, Plans, VECTORS, files};
use crate::model::weights::{self, Values};
use crate::plan::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The folder of the best checkpoint, inside that of the last.
pub const BEST: &str = "best";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINING: &str = "training.json";
const FILES: [&str; 6] = [files::CONFIG, files::MODEL, VECTORS, INDEX, OPTIMIZER, TRAINING];

fn text(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Begins a directory: removes an earlier run's checkpoints, and writes what does not change.
///
/// # Errors
/// If a file cannot be removed or written.
pub fn start(out: &Path, config: &ClassifierConfig, index: &WordIndex, plan: &Plan) -> Result<()> {
    let best = out.join(BEST);
    for directory in [out, &best] {
        directory::create(directory)?;
        directory::settle(directory)?;
        for path in FILES.map(|name| directory.join(name)).iter().filter(|path| path.exists()) {
            std::fs::remove_file(path)
                .map_err(|e| Error::file(path, format!("cannot be removed: {e}"), "give another --out"))?;
        }
    }
    let frozen = !plan.graph().frozen_tensors().is_empty();
    let mut all = vec![(files::CONFIG, text(&config.to_json())), (INDEX, index.to_json().into_bytes())];
    if frozen {
        all.push((VECTORS, files::frozen_bytes(plan)?));
    }
    directory::replace(out, &all)?;
    directory::replace(&best, &all)
}

/// Writes a checkpoint, all files together or none.
///
/// # Errors
/// If a file cannot be written.
pub fn save(
    out: &Path,
    step: &ClassifierStep,
    state: &State,
    kept: Kept,
    settings: &impl serde::Serialize,
) -> Result<()> {
    let plan = step.plans().plan();
    let model = (files::MODEL, files::model_bytes(plan)?);
    if kept == Kept::Best {
        return directory::replace(&out.join(BEST), &[model]);
    }
    let mut buffers = BTreeMap::new();
    for (slot, name) in step.optimizer().state().iter().enumerate() {
        let values = plan.read_slot(slot)?;
        buffers.insert(name.to_string(), Values { shape: vec![values.len()], values });
    }
    let settings = serde_json::to_value(settings).expect("settings are plain data");
    let training = text(&json!({ "state": state, "settings": settings }));
    directory::replace(out, &[model, (OPTIMIZER, weights::to_bytes(&buffers)), (TRAINING, training)])
}

/// Whether a directory holds a run that can go on.
pub fn is_begun(from: &Path) -> bool {
    // A checkpoint that was being written counts once it is settled.
    from.is_dir() && directory::settle(from).is_ok() && from.join(TRAINING).exists()
}

/// How far a run has come, and its settings.
///
/// # Errors
/// If there is none.
pub fn training<S: serde::de::DeserializeOwned>(from: &Path) -> Result<(State, S)> {
    #[derive(serde::Deserialize)]
    struct Training<S> {
        state: State,
        settings: S,
    }
    let remedy = "give a directory that `attn train classify --out` wrote";
    if from.is_dir() {
        directory::settle(from)?;
    }
    let path = from.join(TRAINING);
    let text = std::fs::read_to_string(&path)
        .map_err(|e| Error::file(from, format!("holds no run to resume: {TRAINING} cannot be read: {e}"), remedy))?;
    let Training { state, settings } = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("is no description of a run: {e}"), remedy))?;
    Ok((state, settings))
}

/// The model of a directory.
///
/// # Errors
/// If it has none.
pub fn config(from: &Path) -> Result<ClassifierConfig> {
    ClassifierConfig::read(&from.join(files::CONFIG))
}

/// The words of a directory.
///
/// # Errors
/// If the file is missing or damaged.
pub fn index(from: &Path, config: &ClassifierConfig) -> Result<WordIndex> {
    files::index(from, config)
}

/// Writes the parameters in `from`, and what is frozen in `frozen`, to a plan.
///
/// # Errors
/// If a file is missing or damaged.
pub fn load_parameters(from: &Path, frozen: &Path, plan: &Plan) -> Result<()> {
    files::load(plan, from, frozen)
}

/// Writes the optimiser's buffers to a plan.
///
/// # Errors
/// If the file is missing or damaged.
pub fn load_optimizer(from: &Path, plan: &Plan, names: &[&str]) -> Result<()> {
    let path = from.join(OPTIMIZER);
    let buffers = weights::read(&path)?;
    let n = plan.parameter_elements().0;
    for (slot, name) in names.iter().enumerate() {
        let buffer = buffers.get(*name).filter(|b| b.shape == [n]).ok_or_else(|| {
            let problem = format!("has no tensor `{name}` of {n} elements");
            Error::file(&path, problem, "restore the directory as `attn train classify` wrote it")
        })?;
        plan.write_slot(slot, &buffer.values)?;
    }
    Ok(())
}

/// What the best checkpoint so far finds on the dev table, if there is one.
///
/// # Errors
/// If a file is damaged, or the device fails.
pub fn best(out: &Path, config: &ClassifierConfig, dev: &Examples, device: &Arc<dyn Device>) -> Result<Option<Found>> {
    let from = out.join(BEST);
    if !from.join(files::MODEL).exists() {
        return Ok(None);
    }
    let mut plans = Plans::new(config, 32, dev.longest(), None, device.clone())?;
    load_parameters(&from, out, plans.plan())?;
    evaluate(&mut plans, dev).map(Some)
}
