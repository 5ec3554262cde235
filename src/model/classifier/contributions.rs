//! What each word of a text does for a prediction: gradient × input.
//!
//! The logit z of the predicted class has a gradient to each word's vector x; Σ ∂z/∂x·x says by how much, to first order, z
//! would fall if the word's vector were zeros (Simonyan et al., "Deep inside convolutional networks", 2013; Denil et al.,
//! "Extraction of salient sentences from labelled documents", 2014, section 3.2). Where the model adds words up, as
//! `mean-logreg` and `bow-logreg` do, that is exact, and z less its bias is the sum. Of two classes z is that of the
//! predicted one: the single logit of the second, or its negative.

use super::config::ClassifierConfig;
use super::files::{CONFIG, index, load};
use super::record::{BAG, EMBEDDING};
use super::{Encoded, Encoder};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::plan::{Plan, PlanOptions};
use std::path::Path;
use std::sync::Arc;

/// What words do for the predicted class.
#[derive(Debug, Clone, PartialEq)]
pub struct Contributions {
    /// The text as rows, with its words.
    pub encoded: Encoded,
    /// Of each word; above 0: it speaks for the class.
    pub of_words: Vec<f64>,
}

/// What the words of a text do for a class, by the classifier in a directory.
///
/// # Errors
/// If the directory or the class will not do, the text has no known word, or the device has too little memory.
pub fn contributions(from: &Path, text: &str, class: usize, device: Arc<dyn Device>) -> Result<Contributions> {
    // Gradients flow to what is trained: to the vectors here, whether they were or not.
    let config = ClassifierConfig { freeze_embeddings: false, ..ClassifierConfig::read(&from.join(CONFIG))? };
    let encoder = Encoder::new(&config, index(from, &config)?);
    let encoded = encoder.encode_with_words(text);
    if encoded.rows.is_empty() || encoded.rows.len() != encoded.words.len() {
        let (problem, remedy) = ("has no word that could be shown", "give one with words that the model knows");
        return Err(Error::argument("the text", problem, remedy));
    }
    // Positions and the mistaken pooling have a weight for each place, up to the longest.
    let whole = config.needs_length();
    let length = if whole { config.max_length } else { encoded.rows.len() };
    let mut recorded = config.record(1, length, false)?;
    let graph = std::mem::take(&mut recorded.graph);
    let keep = [Some(recorded.logits), recorded.vectors].into_iter().flatten().collect();
    let options = PlanOptions { roots: vec![recorded.logits], keep, ..Default::default() };
    let plan = Plan::new(graph, device, &options)?;
    load(&plan, from, from)?;
    let mut tokens = encoded.rows.clone();
    tokens.resize(length, config.pad_row as i32);
    plan.write_indices(recorded.tokens, &tokens)?;
    let own = encoded.rows.len();
    plan.write_indices(recorded.lengths, &[config.seen(own, own, length) as i32])?;
    plan.write_indices(recorded.targets, &[0])?;
    plan.forward()?;
    let seed: Vec<f64> = match config.is_binary() {
        true => vec![if class == 1 { 1.0 } else { -1.0 }],
        false => (0..config.labels.len()).map(|c| (c == class) as u8 as f64).collect(),
    };
    plan.seed(recorded.logits, &seed)?;
    plan.backward()?;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let of_words = match recorded.vectors {
        Some(x) => {
            let (values, gradients) = (plan.read(x)?, plan.read_gradient(x)?);
            let rows = values.chunks(config.width).zip(gradients.chunks(config.width));
            rows.take(encoded.rows.len()).map(|(x, g)| dot(x, g)).collect()
        }
        None => of_rows(&plan, &encoded.rows, dot)?,
    };
    Ok(Contributions { encoded, of_words })
}

/// Where words go into one op with their table: a row's gradient is the sum over the places where it stands, all alike.
fn of_rows(plan: &Plan, rows: &[i32], dot: impl Fn(&[f64], &[f64]) -> f64) -> Result<Vec<f64>> {
    let graph = plan.graph();
    let is_table = |t: &Tensor| [EMBEDDING, BAG].contains(&graph.name(*t));
    let table = graph.parameters().into_iter().find(is_table).expect("every classifier has a table");
    let width = graph.shape(table)[1];
    let (values, gradients) = (plan.read(table)?, plan.read_gradient(table)?);
    let of = |&row: &i32| {
        let at = row as usize * width..(row as usize + 1) * width;
        let times = rows.iter().filter(|r| **r == row).count();
        dot(&values[at.clone()], &gradients[at]) / times as f64
    };
    Ok(rows.iter().map(of).collect())
}
