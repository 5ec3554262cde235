//! Drawing the next token: from the logits of a whole window, or token by token from what earlier tokens left.
//!
//! [`TokenByToken`] plans the model for one token. Keys and values of earlier tokens lie in caches, linear attention's sums
//! in a state: outputs that keep their memory from run to run ([`crate::op::Contract::persistent_outputs`]), so that an
//! op writes one row or adds one token in place, and nothing is copied between runs. A token then costs a pass over one
//! row, and beside it softmax attention reads the cache up to here, linear attention a state of constant size.
//! [`Sampler`] computes whole windows: what is past the block size slides out of them, and every model can.

use super::Gpt;
use super::gpt::TokenPlace;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::rotary;
use crate::philox::Philox;
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// The stream of random numbers that draws tokens.
const STREAM: u32 = 0x7361_6d70;

/// How a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Divides the logits.
    pub temperature: f64,
    /// Only the likeliest so many tokens are drawn; `None`: all.
    pub top_k: Option<usize>,
    /// Of these, only the likeliest whose probabilities first sum to this much (Holtzman et al., "The curious case of
    /// neural text degeneration", ICLR 2020, section 3.1); 1: all.
    pub top_p: f64,
    /// What draws.
    pub seed: u64,
}

impl Choice {
    /// Always the likeliest token.
    pub const GREEDY: Choice = Choice { temperature: 1.0, top_k: Some(1), top_p: 1.0, seed: 0 };

    /// A token by the logits of the place after `count` tokens. The draw depends on the seed and on that number.
    ///
    /// # Errors
    /// If a logit is not finite.
    pub fn draw(&self, logits: &[f64], count: usize) -> Result<i32> {
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(Error::argument("the model", "gives logits that are not finite", "use another checkpoint"));
        }
        let [low, high, ..] = Philox::new(self.seed, STREAM, 0).block(count as u64);
        let uniform = ((high as u64) << 32 | low as u64) as f64 / 2f64.powi(64);
        Ok(self.at(logits, uniform) as i32)
    }

    /// The index at which the summed probabilities, largest first, exceed `uniform` of their total.
    fn at(&self, logits: &[f64], uniform: f64) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(self.top_k.unwrap_or(logits.len()).max(1));
        let highest = logits[order[0]];
        let mut weights: Vec<f64> = order.iter().map(|&i| ((logits[i] - highest) / self.temperature).exp()).collect();
        let enough = self.top_p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let kept = weights.iter().position(|w| {
            sum += w;
            sum >= enough
        });
        weights.truncate(kept.map_or(weights.len(), |last| last + 1));
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let found = weights.iter().position(|w| {
            sum += w;
            sum > uniform * total
        });
        order[found.unwrap_or(weights.len() - 1)]
    }
}

/// A model planned for one window. Each token computes the whole window anew.
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

    /// The logits of what follows `tokens`, of which the last block counts.
    ///
    /// # Errors
    /// If there are no tokens, or one is unknown.
    pub fn logits(&self, tokens: &[i32]) -> Result<Vec<f64>> {
        let block = self.plan.graph().shape(self.tokens)[1];
        let vocabulary = self.plan.graph().shape(self.logits)[2];
        let seen = &tokens[tokens.len().saturating_sub(block)..];
        let last = seen.len().checked_sub(1).ok_or_else(none)?;
        // What stands after the window is not visible to it.
        let mut window = seen.to_vec();
        window.resize(block, 0);
        self.plan.write_indices(self.tokens, &window)?;
        if let Some(lengths) = self.lengths {
            self.plan.write_indices(lengths, &[seen.len() as i32])?;
        }
        self.plan.forward()?;
        Ok(self.plan.read(self.logits)?[last * vocabulary..(last + 1) * vocabulary].to_vec())
    }
}

fn none() -> Error {
    Error::argument("tokens", "are none", "give at least one")
}

/// A model planned for one token after others, up to the block size.
pub struct TokenByToken {
    plan: Plan,
    token: Tensor,
    place: TokenPlace,
    logits: Tensor,
    block: usize,
    /// The tokens that caches and states hold.
    seen: Vec<i32>,
}

impl TokenByToken {
    /// Plans one token.
    ///
    /// # Errors
    /// If the model cannot ([`Gpt::steps_by_token`]), or the device has too little memory.
    pub fn new(gpt: &Gpt, device: Arc<dyn Device>) -> Result<TokenByToken> {
        let (mut graph, block) = (Graph::new(), gpt.config().block);
        let token = graph.indices("token", &[1, 1], 0..gpt.config().vocabulary as i64);
        let (logits, place) = gpt.next_logits(&mut graph, token)?;
        let options = PlanOptions { keep: vec![logits], ..Default::default() };
        let plan = Plan::new(graph, device, &options)?;
        Ok(TokenByToken { plan, token, place, logits, block, seen: Vec::new() })
    }

    /// The plan, whose parameters are to be written before the first token.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The logits of what follows `tokens`. Those that it has seen cost nothing again: it runs the new ones, or all of
    /// them where the text is another.
    ///
    /// # Errors
    /// If there are no tokens or more than a block of them, or one is unknown.
    pub fn logits(&mut self, tokens: &[i32]) -> Result<Vec<f64>> {
        if tokens.is_empty() {
            return Err(none());
        }
        if tokens.len() > self.block {
            let problem = format!("are {}, more than the block size {}", tokens.len(), self.block);
            return Err(Error::argument("tokens", problem, "compute a window of the last ones"));
        }
        // The last one is run again if need be: its logits are not kept.
        let known = self.seen.iter().zip(&tokens[..tokens.len() - 1]).take_while(|(a, b)| a == b).count();
        let going_on = known == self.seen.len();
        let from = if going_on { known } else { 0 };
        self.seen.truncate(from);
        for (position, &token) in tokens.iter().enumerate().skip(from) {
            self.plan.write_indices(self.token, &[token])?;
            self.plan.write_indices(self.place.position, &[position as i32])?;
            self.plan.write_indices(self.place.length, &[position as i32 + 1])?;
            if let Some(angles) = self.place.angles {
                let columns = self.plan.graph().shape(angles)[1];
                self.plan.write(angles, &rotary::angles_at(position, columns, rotary::BASE))?;
            }
            self.plan.forward()?;
            self.seen.push(token);
        }
        self.plan.read(self.logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_in_proportion() {
        let logits = [0.0, 2f64.ln(), f64::MIN, 0.0]; // 1/4, 1/2, 0, 1/4
        let choice = |top_k, top_p| Choice { temperature: 1.0, top_k, top_p, seed: 1 };
        let drawn = |u, k| choice(Some(k), 1.0).at(&logits, u);
        assert_eq!([0.0, 0.49, 0.51, 0.74, 0.76, 0.999].map(|u| drawn(u, 4)), [1, 1, 0, 0, 3, 3]);
        assert_eq!([0.0, 0.66, 0.67, 0.99].map(|u| drawn(u, 2)), [1, 1, 0, 0]);
        assert_eq!(drawn(0.999, 1), 1);
        assert_eq!(Choice { temperature: 1e-300, ..choice(None, 1.0) }.at(&logits, 0.999), 1);
        // The likeliest that sum to 0.6 are 1/2 and 1/4; to 0.5, the first alone.
        let nucleus = |u, p| choice(None, p).at(&logits, u);
        assert_eq!([0.0, 0.66, 0.67, 0.999].map(|u| nucleus(u, 0.6)), [1, 1, 0, 0]);
        assert_eq!([0.0, 0.999].map(|u| nucleus(u, 0.5)), [1, 1]);
        assert_eq!(nucleus(0.999, 1.0), 3);
        // Of the two likeliest, 2/3 and 1/3.
        assert_eq!([0.0, 0.999].map(|u| choice(Some(2), 0.6).at(&logits, u)), [1, 1]);
        assert_eq!(Choice::GREEDY.at(&logits, 0.999), 1);
    }
}
