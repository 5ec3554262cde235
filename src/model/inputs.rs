//! What is written to a planned model before each run.

use crate::data::Batch;
use crate::error::Result;
use crate::graph::Tensor;
use crate::plan::Plan;

/// The tensors of a recorded model that hold a batch.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    /// Tokens (B,T).
    pub tokens: Tensor,
    /// Targets (B,T).
    pub targets: Tensor,
    /// Tokens of each row that are no padding (B), where the model's function depends on them.
    pub lengths: Option<Tensor>,
    /// Seed low, seed high and step, where the model draws at random.
    pub random: Option<Tensor>,
}

impl Inputs {
    /// Rows of a batch and their length.
    pub fn shape(&self, plan: &Plan) -> (usize, usize) {
        let [rows, length] = plan.graph().shape(self.tokens)[..] else { unreachable!("tokens are (B,T)") };
        (rows, length)
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// If it has another size, or tokens that the model does not know.
    pub fn write(&self, plan: &Plan, batch: &Batch) -> Result<()> {
        plan.write_indices(self.tokens, &batch.tokens)?;
        plan.write_indices(self.targets, &batch.targets)?;
        self.lengths.map_or(Ok(()), |lengths| plan.write_indices(lengths, &batch.lengths))
    }

    /// Writes what decides the run's random numbers, where it draws any.
    ///
    /// # Errors
    /// If the device fails.
    pub fn write_random(&self, plan: &Plan, seed: u64, step: u64) -> Result<()> {
        let words = [seed as i32, (seed >> 32) as i32, step as i32];
        self.random.map_or(Ok(()), |random| plan.write_indices(random, &words))
    }
}
