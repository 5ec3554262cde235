//! A classifier's directory, and the classifier that predicts from it.
//!
//! `config.json` describes the model, its labels and how texts are split; `word_index.json` says which word has which row;
//! `model.safetensors` holds the parameters, and `frozen.safetensors` what is no parameter: vectors and heads that are not
//! trained. (Apart, so that saving a logistic regression on large vectors does not write the vectors each time.)

use super::config::ClassifierConfig;
use super::encoder::{Encoded, Encoder};
use super::plans::Plans;
use crate::data::WordIndex;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::model::weights::{self, Values};
use crate::plan::Plan;
use crate::train::directory;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The model's description.
pub const CONFIG: &str = "config.json";
/// The parameters.
pub const MODEL: &str = "model.safetensors";
/// What is not trained.
pub const VECTORS: &str = "frozen.safetensors";
/// Words and rows.
pub const INDEX: &str = "word_index.json";
const MODEL_TYPE: &str = "attn-engine";

impl ClassifierConfig {
    /// As `config.json` has it.
    pub fn to_json(&self) -> Value {
        let id2label: serde_json::Map<String, Value> =
            self.labels.iter().enumerate().map(|(i, label)| (i.to_string(), label.as_str().into())).collect();
        json!({ "model_type": MODEL_TYPE, "task": "text-classification", "id2label": id2label, "classifier": self })
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// If it cannot be read or is not a classifier's.
    pub fn read(path: &Path) -> Result<ClassifierConfig> {
        #[derive(serde::Deserialize)]
        struct Config {
            classifier: ClassifierConfig,
        }
        let remedy = "give a directory that `attn train classify --out` wrote";
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}"), remedy))?;
        let Config { classifier } = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("describes no classifier: {e}"), remedy))?;
        classifier.check()?;
        Ok(classifier)
    }
}

/// A plan's tensors, by name.
fn tensors(plan: &Plan, which: Vec<Tensor>) -> Result<BTreeMap<String, Values>> {
    let graph = plan.graph();
    let one = |t: Tensor| {
        let values = Values { shape: graph.shape(t).to_vec(), values: plan.read(t)? };
        Ok((graph.name(t).to_string(), values))
    };
    which.into_iter().map(one).collect()
}

/// The bytes of `model.safetensors`.
///
/// # Errors
/// If the device fails.
pub(crate) fn model_bytes(plan: &Plan) -> Result<Vec<u8>> {
    Ok(weights::to_bytes(&tensors(plan, plan.graph().parameters())?))
}

/// The bytes of `frozen.safetensors`.
///
/// # Errors
/// If the device fails.
pub(crate) fn frozen_bytes(plan: &Plan) -> Result<Vec<u8>> {
    Ok(weights::to_bytes(&tensors(plan, plan.graph().frozen_tensors())?))
}

/// Writes the parameters in `from`, and what is frozen in `frozen`, to a plan: to one that trains what the directory holds
/// as frozen, too.
///
/// # Errors
/// If a file cannot be read or is damaged, or its tensors are not the plan's.
pub(crate) fn load(plan: &Plan, from: &Path, frozen: &Path) -> Result<()> {
    let (model, vectors) = (from.join(MODEL), frozen.join(VECTORS));
    let mut found = weights::read(&model)?;
    if vectors.exists() {
        found.extend(weights::read(&vectors)?);
    }
    let graph = plan.graph();
    let frozen = graph.frozen_tensors();
    for t in graph.parameters().into_iter().chain(frozen.iter().copied()) {
        let (name, expected) = (graph.name(t), graph.shape(t));
        let values = found.remove(name).filter(|v| v.shape == expected).ok_or_else(|| {
            let problem = format!("has no tensor `{name}` of shape {expected:?}");
            let path = if frozen.contains(&t) { &vectors } else { &model };
            Error::file(path, problem, "restore the directory as `attn train classify` wrote it")
        })?;
        plan.write(t, &values.values)?;
    }
    Ok(())
}

/// The words of a directory.
///
/// # Errors
/// If the file is missing or damaged, or has another number of words than the model.
pub(crate) fn index(from: &Path, config: &ClassifierConfig) -> Result<WordIndex> {
    let path = from.join(INDEX);
    let index = WordIndex::read(&path, &config.special)?;
    if index.len() != config.vocabulary {
        let problem = format!("has {} words, config.json says {}", index.len(), config.vocabulary);
        return Err(Error::file(path, problem, "restore the directory as `attn train classify` wrote it"));
    }
    Ok(index)
}

/// What a classifier says of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// The most probable class, an index of the labels.
    pub class: usize,
    /// Of each class.
    pub probabilities: Vec<f64>,
    /// The text as rows, with its words.
    pub encoded: Encoded,
    /// `head-attention`: for each head, the weights of the words; they sum to 1.
    pub weights: Vec<Vec<f64>>,
}

/// A trained classifier.
pub struct Classifier {
    encoder: Encoder,
    plans: Plans,
}

/// Texts that are predicted at a time.
const BATCH: usize = 32;

impl Classifier {
    /// Opens a directory that `attn train classify` wrote.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the device has too little memory.
    pub fn open(from: &Path, device: Arc<dyn Device>) -> Result<Classifier> {
        if !from.is_dir() {
            return Err(Error::file(from, "is no directory", "give one that `attn train classify --out` wrote"));
        }
        directory::settle(from)?;
        let config = ClassifierConfig::read(&from.join(CONFIG))?;
        let index = index(from, &config)?;
        let plans = Plans::new(&config, BATCH, 64, None, device)?;
        load(plans.plan(), from, from)?;
        Ok(Classifier { encoder: Encoder::new(&config, index), plans })
    }

    /// The model.
    pub fn config(&self) -> &ClassifierConfig {
        self.plans.config()
    }

    /// Names of the classes.
    pub fn labels(&self) -> &[String] {
        &self.plans.config().labels
    }

    /// What splits texts.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// What the classifier says of each text.
    ///
    /// # Errors
    /// If the device fails.
    pub fn predict(&mut self, texts: &[&str]) -> Result<Vec<Predicted>> {
        let encoded: Vec<Encoded> = texts.iter().map(|text| self.encoder.encode_with_words(text)).collect();
        // Rows of similar length together: less padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| encoded[i].rows.len());
        let classes = self.labels().len();
        let mut predicted: Vec<Option<Predicted>> = vec![None; texts.len()];
        for chunk in order.chunks(BATCH) {
            let rows: Vec<(&[i32], Option<u32>)> = chunk.iter().map(|&i| (&encoded[i].rows[..], None)).collect();
            self.plans.write(&rows, (0, 0))?.forward()?;
            let probabilities = self.plans.probabilities()?;
            let weights = self.plans.weights()?;
            for (place, &i) in chunk.iter().enumerate() {
                let probabilities = probabilities[place * classes..][..classes].to_vec();
                // Of equals the first.
                let class = (0..classes).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
                let weights = weights.as_ref().map_or_else(Vec::new, |(all, length)| {
                    let heads = self.plans.config().heads;
                    let of_head = |h: usize| all[(place * heads + h) * length..][..encoded[i].rows.len()].to_vec();
                    (0..heads).map(of_head).collect()
                });
                let (class, encoded) = (class.expect("at least two"), encoded[i].clone());
                predicted[i] = Some(Predicted { class, probabilities, encoded, weights });
            }
        }
        Ok(predicted.into_iter().map(|p| p.expect("each text is in one chunk")).collect())
    }
}
