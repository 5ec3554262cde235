//! How many answers of a task are right.

use crate::data::{Batch, IGNORE};
use crate::device::Device;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::model::Gpt;
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// A model planned forward only, whose likeliest tokens are compared with the targets.
pub struct Answers {
    plan: Plan,
    tokens: Tensor,
    lengths: Option<Tensor>,
    logits: Tensor,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Tokens that were asked for.
    pub asked: usize,
    /// Those where the likeliest token was the right one.
    pub right: usize,
    /// The sum of their negative log-likelihoods, in nats.
    pub total_loss: f64,
}

impl Score {
    /// The share of answers that are right; 0 of none.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }

    /// The mean loss of an answer; 0 of none.
    pub fn loss(&self) -> f64 {
        self.total_loss / self.asked.max(1) as f64
    }

    fn add(&mut self, logits: &[f64], target: usize) {
        let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - highest).exp()).sum();
        self.asked += 1;
        // Of equal logits the first would be taken; NaN is nobody's answer.
        self.right += (logits.iter().position(|&x| x == highest) == Some(target)) as usize;
        self.total_loss += highest + sum.ln() - logits[target];
    }
}

impl Answers {
    /// Plans batches of `rows` blocks.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(gpt: &Gpt, rows: usize, device: Arc<dyn Device>) -> Result<Answers> {
        let (config, mut graph) = (gpt.config(), Graph::new());
        let tokens = graph.indices("tokens", &[rows, config.block], 0..config.vocabulary as i64);
        let conditions = gpt.conditions(&mut graph, [rows, config.block], Default::default());
        let logits = gpt.logits(&mut graph, tokens, conditions)?;
        let options = PlanOptions { keep: vec![logits], ..Default::default() };
        Ok(Answers { plan: Plan::new(graph, device, &options)?, tokens, lengths: conditions.lengths, logits })
    }

    /// The plan, whose parameters are to be written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Marks the answers of these batches.
    ///
    /// # Errors
    /// If a batch does not fit the plan, or the device fails.
    pub fn run(&self, batches: impl IntoIterator<Item = Batch>) -> Result<Score> {
        let vocabulary = self.plan.graph().shape(self.logits)[2];
        let mut score = Score::default();
        for Batch { tokens, targets, lengths } in batches {
            self.plan.write_indices(self.tokens, &tokens)?;
            self.lengths.map_or(Ok(()), |to| self.plan.write_indices(to, &lengths))?;
            self.plan.forward()?;
            let logits = self.plan.read(self.logits)?;
            for (logits, &target) in logits.chunks_exact(vocabulary).zip(&targets).filter(|(_, t)| **t != IGNORE) {
                score.add(logits, target as usize);
            }
        }
        Ok(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_token_is_the_answer() {
        let mut score = Score::default();
        let logits = [0.0, 2f64.ln(), 0.0]; // 1/4, 1/2, 1/4
        score.add(&logits, 1);
        score.add(&logits, 2);
        assert_eq!((score.asked, score.right, score.accuracy()), (2, 1, 0.5));
        assert!((score.loss() - (2f64.ln() + 4f64.ln()) / 2.0).abs() < 1e-15);
        score.add(&[f64::NAN, 0.0, 0.0], 0);
        assert_eq!(score.right, 1);
        assert_eq!(Score::default().accuracy(), 0.0);
    }
}
