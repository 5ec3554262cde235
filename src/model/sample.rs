//! Drawing the next token.

use super::Gpt;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::philox::Philox;
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// The stream of random numbers that draws tokens.
const STREAM: u32 = 0x7361_6d70;

/// A model planned for one window, to draw what follows it. Each token computes the whole window anew.
pub struct Sampler {
    plan: Plan,
    tokens: Tensor,
    lengths: Option<Tensor>,
    logits: Tensor,
}

impl Sampler {
    /// Plans one block.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(gpt: &Gpt, device: Arc<dyn Device>) -> Result<Sampler> {
        let mut graph = Graph::new();
        let tokens = graph.indices("tokens", &[1, gpt.config().block], 0..gpt.config().vocabulary as i64);
        let conditions = gpt.conditions(&mut graph, [1, gpt.config().block], Default::default());
        let logits = gpt.logits(&mut graph, tokens, conditions)?;
        let options = PlanOptions { keep: vec![logits], ..Default::default() };
        Ok(Sampler { plan: Plan::new(graph, device, &options)?, tokens, lengths: conditions.lengths, logits })
    }

    /// The plan, whose parameters are to be written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The token after `tokens`, of which the last block counts: drawn from the `top_k` likeliest, their logits divided
    /// by `temperature`. The draw depends on the seed and on how many tokens there are.
    ///
    /// # Errors
    /// If there are no tokens, one is unknown, or the model's numbers are not finite.
    pub fn next(&self, tokens: &[i32], temperature: f64, top_k: usize, seed: u64) -> Result<i32> {
        let block = self.plan.graph().shape(self.tokens)[1];
        let vocabulary = self.plan.graph().shape(self.logits)[2];
        let seen = &tokens[tokens.len().saturating_sub(block)..];
        let Some(last) = seen.len().checked_sub(1) else {
            return Err(Error::argument("tokens", "are none", "give at least one"));
        };
        // What stands after the window is not visible to it.
        let mut window = seen.to_vec();
        window.resize(block, 0);
        self.plan.write_indices(self.tokens, &window)?;
        if let Some(lengths) = self.lengths {
            self.plan.write_indices(lengths, &[seen.len() as i32])?;
        }
        self.plan.forward()?;
        let logits = self.plan.read(self.logits)?;
        let logits = &logits[last * vocabulary..(last + 1) * vocabulary];
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(Error::argument("the model", "gives logits that are not finite", "use another checkpoint"));
        }
        let [low, high, ..] = Philox::new(seed, STREAM, 0).block(tokens.len() as u64);
        let uniform = ((high as u64) << 32 | low as u64) as f64 / 2f64.powi(64);
        Ok(draw(logits, temperature, top_k, uniform) as i32)
    }
}

/// The index at which the summed probabilities of the `top_k` largest logits, largest first, exceed `uniform`.
fn draw(logits: &[f64], temperature: f64, top_k: usize, uniform: f64) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(top_k.max(1));
    let weight = |i: usize| ((logits[i] - logits[order[0]]) / temperature).exp();
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut sum = 0.0;
    let found = order.iter().find(|&&i| {
        sum += weight(i);
        sum > uniform * total
    });
    found.copied().unwrap_or(order[order.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_in_proportion() {
        let logits = [0.0, 2f64.ln(), f64::MIN, 0.0]; // 1/4, 1/2, 0, 1/4
        let drawn = |u, k| draw(&logits, 1.0, k, u);
        assert_eq!([0.0, 0.49, 0.51, 0.74, 0.76, 0.999].map(|u| drawn(u, 4)), [1, 1, 0, 0, 3, 3]);
        assert_eq!([0.0, 0.66, 0.67, 0.99].map(|u| drawn(u, 2)), [1, 1, 0, 0]);
        assert_eq!(drawn(0.999, 1), 1);
        assert_eq!(draw(&logits, 1e-300, 4, 0.999), 1);
    }
}
