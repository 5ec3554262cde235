//! Which blocks a step trains on: a function of the step alone, so that a resumed run goes on as if it had never stopped.

use super::{Batch, Corpus};
use crate::error::Result;
use crate::philox::Philox;

/// How blocks follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataOrder {
    /// Each block starts anywhere, drawn from the seed.
    Random,
    /// Row r of batch i (both from 0) starts at (i·B + r)·block, and after the last whole block again at the front.
    Sequential,
}

/// Batches of a corpus.
#[derive(Debug, Clone)]
pub struct Batches {
    corpus: Corpus,
    order: DataOrder,
    rows: usize,
    block: usize,
    seed: u64,
}

/// The stream of random numbers that draws blocks.
const STREAM: u32 = 0x6461_7461;

impl Batches {
    /// Batches of `rows` blocks. `what` names the corpus in errors.
    ///
    /// # Errors
    /// If the corpus is shorter than a block and one token.
    pub fn new(corpus: Corpus, what: &str, order: DataOrder, rows: usize, block: usize, seed: u64) -> Result<Batches> {
        corpus.check_length(what, block)?;
        Ok(Batches { corpus, order, rows, block, seed })
    }

    /// What a step, counted from 0, learns: rows × block.
    pub fn batch(&self, step: u64) -> Batch {
        let random = Philox::new(self.seed, STREAM, step as u32);
        let Corpus { tokens, stride, .. } = &self.corpus;
        let starts = (tokens.len() - 1 - self.block) / stride + 1;
        let mut batch = Batch::default();
        for row in 0..self.rows {
            let start = match self.order {
                DataOrder::Random => {
                    let [low, high, ..] = random.block(row as u64);
                    let word = (high as u64) << 32 | low as u64;
                    ((word as u128 * starts as u128) >> 64) as usize * stride
                }
                DataOrder::Sequential => {
                    let index = step * self.rows as u64 + row as u64;
                    (index % self.corpus.whole_blocks(self.block) as u64) as usize * self.block
                }
            };
            self.corpus.append_block(start, self.block, &mut batch);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(n: i32, order: DataOrder, rows: usize, block: usize) -> Result<Batches> {
        Batches::new(Corpus::text((0..n).collect()), "split", order, rows, block, 7)
    }

    #[test]
    fn sequential_blocks_follow_and_start_over() {
        let batches = batches(14, DataOrder::Sequential, 2, 4).unwrap();
        assert_eq!(batches.batch(0).tokens, [0, 1, 2, 3, 4, 5, 6, 7]);
        let Batch { tokens, targets, lengths } = batches.batch(1);
        assert_eq!((tokens, targets), (vec![8, 9, 10, 11, 0, 1, 2, 3], vec![9, 10, 11, 12, 1, 2, 3, 4]));
        assert_eq!(lengths, [4, 4]);
    }

    #[test]
    fn random_blocks_reach_both_ends() {
        let batches = batches(6, DataOrder::Random, 64, 4).unwrap();
        let starts: Vec<i32> = batches.batch(3).tokens.chunks(4).map(|row| row[0]).collect();
        assert!(starts.contains(&0) && starts.contains(&1) && starts.iter().all(|s| (0..2).contains(s)));
        assert_ne!(batches.batch(3), batches.batch(4));
    }

    #[test]
    fn a_short_split_is_an_error() {
        assert!(batches(5, DataOrder::Random, 1, 4).is_ok());
        let error = batches(4, DataOrder::Random, 1, 4).unwrap_err().to_string();
        assert!(error.contains("split: has 4 tokens, fewer than a block and one more (5)"), "{error}");
    }
}
