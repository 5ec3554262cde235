//! Texts to rows of the table of vectors.

use super::config::{ClassifierConfig, ModelName};
use crate::data::words::{Splitter, WordIndex};

/// What becomes of words that have no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// They are left out.
    Skipped,
    /// They have this row.
    Row(u32),
}

/// Splits texts and looks their words up.
#[derive(Debug, Clone)]
pub struct Encoder {
    splitter: Splitter,
    lowercase: bool,
    index: WordIndex,
    unknown: Unknown,
    /// Words that are read of a text; 0: all.
    max_length: usize,
    /// Whether each word counts once.
    once: bool,
}

/// A text as rows, and what happened to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The words' rows.
    pub rows: Vec<i32>,
    /// The words that the rows stand for; only where asked for.
    pub words: Vec<String>,
    /// Words in all, before any was left out or cut off.
    pub found: usize,
    /// Words without a row of their own.
    pub unknown: usize,
    /// Words cut off.
    pub cut: usize,
}

impl Encoder {
    /// A model's encoder.
    pub fn new(config: &ClassifierConfig, index: WordIndex) -> Encoder {
        let unknown = match index.unk() {
            Some(row) if !config.model.skips_unknown() => Unknown::Row(row),
            _ => Unknown::Skipped,
        };
        Encoder {
            splitter: config.tokenizer,
            lowercase: config.lowercase,
            index,
            unknown,
            max_length: config.max_length,
            once: config.model == ModelName::BowLogreg && !config.counts,
        }
    }

    /// Which row is which word's.
    pub fn index(&self) -> &WordIndex {
        &self.index
    }

    /// A text's rows.
    pub fn encode(&self, text: &str) -> Encoded {
        self.encoded(text, false)
    }

    /// The same, with the words.
    pub fn encode_with_words(&self, text: &str) -> Encoded {
        self.encoded(text, true)
    }

    fn encoded(&self, text: &str, with_words: bool) -> Encoded {
        let mut to = Encoded::default();
        // Special tokens that stand in a text are words like any other, but their rows mean something else.
        let special = [self.index.pad(), self.index.unk()];
        self.splitter.each(text, self.lowercase, |word| {
            to.found += 1;
            let row = match self.index.get(word).filter(|row| !special.contains(&Some(*row))) {
                Some(row) => row,
                None => {
                    to.unknown += 1;
                    let Unknown::Row(row) = self.unknown else { return };
                    row
                }
            };
            if self.max_length > 0 && to.rows.len() == self.max_length {
                to.cut += 1;
                return;
            }
            to.rows.push(row as i32);
            if with_words {
                to.words.push(word.to_string());
            }
        });
        if self.once {
            to.rows.sort_unstable();
            to.rows.dedup();
            if with_words {
                to.words = to.rows.iter().map(|&row| self.index.word(row as u32).to_string()).collect();
            }
        }
        to
    }
}
