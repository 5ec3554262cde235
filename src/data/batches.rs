//! Which rows a step trains on: a function of the step alone, so that a resumed run goes on as if it had never stopped.

use super::order::Permutation;
use super::{Batch, Corpus};
use crate::error::Result;
use crate::philox::Philox;

/// How rows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataOrder {
    /// Each block starts anywhere, drawn from the seed; documents come once an epoch, in an order drawn for each.
    Random,
    /// Row r of batch i (both from 0) starts at (i·B + r)·block, and after the last whole block again at the front;
    /// documents come in their order.
    Sequential,
}

/// Batches of a corpus.
#[derive(Debug, Clone)]
pub struct Batches {
    corpus: Corpus,
    order: DataOrder,
    rows: usize,
    length: usize,
    seed: u64,
}

/// The stream of random numbers that draws blocks.
const BLOCKS: u32 = 0x6461_7461;
/// The stream that orders documents.
const ORDER: u32 = 0x6f72_6465;

impl Batches {
    /// Batches of `rows` rows of `length` tokens: blocks of a stream, or documents, which are cut after `length` tokens
    /// and one to predict. `what` names the corpus in errors.
    ///
    /// # Errors
    /// If a stream is shorter than a block and one token, or there are no documents.
    pub fn new(corpus: Corpus, what: &str, order: DataOrder, rows: usize, length: usize, seed: u64) -> Result<Batches> {
        corpus.check_length(what, length)?;
        Ok(Batches { corpus, order, rows, length, seed })
    }

    /// Rows until each has come once: documents, or whole blocks of a stream.
    pub fn rows_an_epoch(&self) -> u64 {
        let corpus = &self.corpus;
        (if corpus.has_documents() { corpus.len() } else { corpus.whole_blocks(self.length) }) as u64
    }

    /// What a step, counted from 0, learns: rows × length.
    pub fn batch(&self, step: u64) -> Batch {
        let mut batch = Batch::default();
        for row in 0..self.rows {
            let index = step * self.rows as u64 + row as u64;
            let (epoch, place) = (index / self.rows_an_epoch(), index % self.rows_an_epoch());
            let window = if self.corpus.has_documents() {
                let document = match self.order {
                    DataOrder::Random => {
                        let random = Philox::new(self.seed, ORDER, epoch as u32);
                        Permutation::new(self.rows_an_epoch(), random).at(place)
                    }
                    DataOrder::Sequential => place,
                };
                self.corpus.head(document as usize, self.length)
            } else {
                let start = match self.order {
                    DataOrder::Random => self.drawn(step, row),
                    DataOrder::Sequential => place as usize * self.length,
                };
                self.corpus.block(start, self.length)
            };
            self.corpus.append(&window, self.length, &mut batch);
        }
        batch
    }

    /// Where a row's block starts.
    fn drawn(&self, step: u64, row: usize) -> usize {
        let (starts, stride) = self.corpus.starts(self.length);
        let [low, high, ..] = Philox::new(self.seed, BLOCKS, step as u32).block(row as u64);
        let word = (high as u64) << 32 | low as u64;
        ((word as u128 * starts as u128) >> 64) as usize * stride
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ends;
    use super::*;

    fn batches(n: i32, order: DataOrder, rows: usize, block: usize) -> Result<Batches> {
        Batches::new(Corpus::text((0..n).collect::<Vec<_>>()), "split", order, rows, block, 7)
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
    fn each_document_comes_once_an_epoch() {
        // Document i is tokens 2i and 2i + 1.
        let corpus = Corpus::documents((0..14).collect::<Vec<_>>(), Ends::Memory((1..=7).map(|i| 2 * i).collect()));
        let batches = Batches::new(corpus.clone(), "split", DataOrder::Random, 3, 4, 7).unwrap();
        let documents = |steps: std::ops::Range<u64>| -> Vec<i32> {
            steps.flat_map(|s| batches.batch(s).tokens.chunks(4).map(|row| row[0] / 2).collect::<Vec<_>>()).collect()
        };
        let found = documents(0..7);
        let epochs: Vec<&[i32]> = found.chunks(7).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2], "each epoch has an order of its own");
        let batches = Batches::new(corpus, "split", DataOrder::Sequential, 3, 4, 7).unwrap();
        let firsts: Vec<i32> = batches.batch(2).tokens.chunks(4).map(|row| row[0]).collect();
        assert_eq!(firsts, [12, 0, 2]);
    }

    #[test]
    fn a_short_split_is_an_error() {
        assert!(batches(5, DataOrder::Random, 1, 4).is_ok());
        let error = batches(4, DataOrder::Random, 1, 4).unwrap_err().to_string();
        assert!(error.contains("split: has 4 tokens, fewer than a block and one more (5)"), "{error}");
        let none = Corpus::documents(vec![], Ends::Memory(vec![]));
        let error = Batches::new(none, "split", DataOrder::Random, 1, 4, 7).unwrap_err().to_string();
        assert!(error.contains("split: has no document"), "{error}");
    }
}
