//! The mean loss over consecutive blocks.

use crate::data::Corpus;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Tensor;
use crate::model::LossGraph;
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// A model planned forward only, with its loss.
pub struct Evaluator {
    plan: Plan,
    tokens: Tensor,
    targets: Tensor,
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
        let LossGraph { graph, tokens, targets, loss, .. } = graph;
        let options = PlanOptions { keep: vec![loss], ..Default::default() };
        Ok(Evaluator { plan: Plan::new(graph, device, &options)?, tokens, targets, loss })
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
        let [rows, block] = self.plan.graph().shape(self.tokens)[..] else { unreachable!("tokens are (B,T)") };
        let (mut sum, mut count) = (0.0, 0);
        for first in (0..blocks).step_by(rows) {
            let (mut tokens, mut targets) = (Vec::new(), Vec::new());
            for row in first..first + rows {
                // Rows past the last block are padding: they start past the end.
                let start = if row < blocks { row * block } else { corpus.tokens.len() };
                corpus.append_block(start, block, &mut tokens, &mut targets);
            }
            let counted = targets.iter().filter(|&&t| t >= 0).count();
            self.plan.write_indices(self.tokens, &tokens)?;
            self.plan.write_indices(self.targets, &targets)?;
            self.plan.forward()?;
            sum += self.plan.read(self.loss)?[0] * counted as f64;
            count += counted;
            progress((first + rows).min(blocks));
        }
        Ok(Evaluation { tokens: count, loss: if count == 0 { 0.0 } else { sum / count as f64 } })
    }
}
