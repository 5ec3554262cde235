//! The mean loss over consecutive blocks.

use crate::data::{Batch, Corpus, IGNORE};
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::model::{Inputs, LossGraph};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// A model planned forward only, with its loss.
pub struct Evaluator {
    plan: Plan,
    inputs: Inputs,
    loss: Tensor,
}

/// What evaluation found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Predictions that count.
    pub tokens: usize,
    /// Their mean negative log-likelihood, in nats.
    pub loss: f64,
}

impl Evaluation {
    /// exp(loss).
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

impl Evaluator {
    /// Plans a loss without dropout.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(graph: LossGraph, device: Arc<dyn Device>) -> Result<Evaluator> {
        let LossGraph { graph, inputs, loss, .. } = graph;
        let options = PlanOptions { keep: vec![loss], ..Default::default() };
        Ok(Evaluator { plan: Plan::new(graph, device, &options)?, inputs, loss })
    }

    /// The plan, whose parameters are to be written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Evaluates the first `blocks` consecutive blocks. `progress` hears how many are done.
    ///
    /// # Errors
    /// If the corpus has tokens that the model does not know, or the device fails.
    pub fn run(&self, corpus: &Corpus, blocks: usize, mut progress: impl FnMut(usize)) -> Result<Evaluation> {
        let (rows, block) = self.inputs.shape(&self.plan);
        let (mut sum, mut count) = (0.0, 0);
        for first in (0..blocks).step_by(rows) {
            let mut batch = Batch::default();
            for row in first..first + rows {
                // Rows past the last block are padding: they start past the end.
                let start = if row < blocks { row * block } else { corpus.tokens.len() };
                corpus.append_block(start, block, &mut batch);
            }
            let counted = batch.targets.iter().filter(|&&t| t != IGNORE).count();
            self.inputs.write(&self.plan, &batch)?;
            self.plan.forward()?;
            sum += self.plan.read(self.loss)?[0] * counted as f64;
            count += counted;
            progress((first + rows).min(blocks));
        }
        Ok(Evaluation { tokens: count, loss: if count == 0 { 0.0 } else { sum / count as f64 } })
    }
}
