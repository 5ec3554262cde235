//! What models are trained on: tokens with their targets, split into training and validation.

pub mod addition;
mod batches;
mod characters;
pub mod tasks;

pub use batches::{Batches, DataOrder};
pub use characters::{Vocabulary, read_text};

use crate::error::{Error, Result};

/// The target that counts for nothing.
pub const IGNORE: i32 = -1;

/// Rows of tokens, one after another and of one length, with what is to be predicted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// What the model sees.
    pub tokens: Vec<i32>,
    /// What follows each token, or [`IGNORE`].
    pub targets: Vec<i32>,
    /// Tokens of each row that are no padding.
    pub lengths: Vec<i32>,
}

/// A row of tokens to be learned.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The tokens.
    pub tokens: Vec<i32>,
    /// Random blocks start at multiples of this many tokens: 1 for text.
    pub stride: usize,
    /// Whether the token at this position within a stride is to be predicted.
    pub counts: fn(usize) -> bool,
}

impl Corpus {
    /// Text, of which every token is to be predicted.
    pub fn text(tokens: Vec<i32>) -> Corpus {
        Corpus { tokens, stride: 1, counts: |_| true }
    }

    /// The first nine tenths, rounded down to whole strides, for training, and the rest for validation.
    pub fn split(mut self) -> (Corpus, Corpus) {
        let cut = self.tokens.len() * 9 / 10 / self.stride * self.stride;
        let validation = Corpus { tokens: self.tokens.split_off(cut), ..self };
        (self, validation)
    }

    /// How many whole blocks follow each other, each with a token after it to predict.
    pub fn whole_blocks(&self, block: usize) -> usize {
        self.tokens.len().saturating_sub(1) / block
    }

    /// How many blocks follow each other until every token but the first has been predicted; the last may be short.
    pub fn all_blocks(&self, block: usize) -> usize {
        self.tokens.len().saturating_sub(1).div_ceil(block)
    }

    /// An error where there is no whole block; `what` names the corpus in it.
    ///
    /// # Errors
    /// With fewer than a block's tokens and one more.
    pub fn check_length(&self, what: &str, block: usize) -> Result<()> {
        if self.whole_blocks(block) == 0 {
            let problem = format!("has {} tokens, fewer than a block and one more ({})", self.tokens.len(), block + 1);
            return Err(Error::argument(what, problem, "give a longer --text or a smaller --block-size"));
        }
        Ok(())
    }

    /// Appends the block that starts at `start` to a batch. Past the end of the corpus, tokens are 0 and targets
    /// [`IGNORE`].
    pub fn append_block(&self, start: usize, block: usize, batch: &mut Batch) {
        let end = (start + block).min(self.tokens.len().saturating_sub(1)).max(start);
        let padding = block - (end - start);
        let target = |i: usize| if (self.counts)(i % self.stride) { self.tokens[i] } else { IGNORE };
        batch.tokens.extend(self.tokens.get(start..end).unwrap_or_default());
        batch.targets.extend((start + 1..end + 1).map(target));
        batch.tokens.extend(std::iter::repeat_n(0, padding));
        batch.targets.extend(std::iter::repeat_n(IGNORE, padding));
        batch.lengths.push((end - start) as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tenth_is_for_validation() {
        let (train, validation) = Corpus::text((0..115).collect()).split();
        assert_eq!((train.tokens.len(), validation.tokens.len()), (103, 12));
        assert_eq!(validation.tokens[0], 103);
    }

    #[test]
    fn blocks_cover_every_prediction_once() {
        let corpus = Corpus::text((0..11).collect());
        assert_eq!((corpus.whole_blocks(4), corpus.all_blocks(4)), (2, 3));
        let mut batch = Batch::default();
        for i in 0..corpus.all_blocks(4) {
            corpus.append_block(4 * i, 4, &mut batch);
        }
        assert_eq!(batch.lengths, [4, 4, 2]);
        assert_eq!(batch.tokens, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]);
        assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, IGNORE, IGNORE]);
        assert_eq!(Corpus::text(vec![3, 4]).whole_blocks(1), 1);
        assert_eq!(Corpus::text(vec![]).all_blocks(4), 0);
    }
}
