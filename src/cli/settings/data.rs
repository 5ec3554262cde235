//! What is learned: the flags that choose and cut it.

use crate::data::tokenizer::Choice;
use crate::data::{Column, DataOrder, Documents, Format, addition};
use crate::error::{Error, Result};
use std::path::PathBuf;

/// Flags of the data.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DataArgs {
    /// Text to learn, in UTF-8 [default: generated two-digit addition, such as 12+34=640, the sum's digits in reverse]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Text to validate on [default: the last 10 % of --text]
    #[arg(long, value_name = "FILE")]
    pub validation_text: Option<PathBuf>,
    /// What a token is: characters; words, between white space; bpe, byte-level pairs learned from the text; or a file
    /// or directory with a tokenizer.json, or with GPT-2's vocab.json and merges.txt [default: characters, or what
    /// --init has]
    #[arg(long, value_name = "characters|words|bpe|PATH")]
    pub tokenizer: Option<Choice>,
    /// With --tokenizer words: rarer words are unknown [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_count: Option<u32>,
    /// With --tokenizer bpe: how many tokens to learn [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(258..))]
    pub vocab_size: Option<u32>,
    /// Whether a text is one stream, or each line a document of its own, between the tokenizer's start and stop where it
    /// has them; empty lines are left out [default: stream]
    #[arg(long, value_name = "stream|lines")]
    pub documents: Option<Documents>,
    /// With --documents lines: take this column of a table, by number from 1 or by its name in the first line;
    /// separated by commas in a .csv, else by tabs
    #[arg(long, value_name = "NAME_OR_NUMBER")]
    pub text_column: Option<Column>,
    /// With --documents lines: cut documents to N tokens, start and stop included [default: the block size and one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_length: Option<u32>,
    /// Tokens that the model sees at once [default: 128; 10, one problem, for addition]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub block_size: Option<u32>,
    /// Blocks, or documents, a step [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Instead of --steps: go through the text N times; a text is through when as many rows have been learned as it has
    /// whole blocks, or documents. The last step may take its last rows from the next round
    #[arg(long, value_name = "N", conflicts_with = "steps", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,
    /// Whether blocks start anywhere at random, or follow each other: row r of batch i (from 0) at (i·B + r)·block;
    /// documents come once an epoch either way, in an order drawn for each epoch, or in their own [default: random]
    #[arg(long, value_name = "ORDER")]
    pub data_order: Option<DataOrder>,
}

/// What is learned, and in which pieces. What later versions added has its default where a checkpoint lacks it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DataSettings {
    /// The text; none: addition.
    pub text: Option<PathBuf>,
    /// Its digest, so that a changed text is noticed.
    pub text_sha256: Option<String>,
    /// The text to validate on; none: the last tenth.
    #[serde(default)]
    pub validation_text: Option<PathBuf>,
    /// Its digest.
    #[serde(default)]
    pub validation_text_sha256: Option<String>,
    /// The tokenizer; none: characters, or what the initial weights were trained with.
    #[serde(default)]
    pub tokenizer: Option<Choice>,
    /// Words that occur less often are unknown.
    #[serde(default = "min_count")]
    pub min_count: u64,
    /// Tokens that a BPE learns.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
    /// How the text is read.
    #[serde(flatten)]
    pub format: Format,
    /// Tokens to which documents are cut.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// Tokens a block.
    pub block_size: usize,
    /// Rows a step.
    pub batch_size: usize,
    /// Times to go through the text, where that and not a number of steps was asked for.
    #[serde(default)]
    pub epochs: Option<u64>,
    /// How rows follow each other.
    pub data_order: DataOrder,
}

fn min_count() -> u64 {
    3
}

fn vocab_size() -> usize {
    4096
}

impl DataArgs {
    /// The defaults, which depend on what is learned.
    pub fn defaults(&self) -> DataSettings {
        DataSettings {
            text: None,
            text_sha256: None,
            validation_text: None,
            validation_text_sha256: None,
            tokenizer: None,
            min_count: min_count(),
            vocab_size: vocab_size(),
            format: Format::default(),
            max_length: None,
            block_size: if self.text.is_some() { 128 } else { addition::LINE },
            batch_size: 64,
            epochs: None,
            data_order: DataOrder::Random,
        }
    }

    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: DataSettings) -> DataSettings {
        let size = |given: Option<u32>, base: usize| given.map_or(base, |n| n as usize);
        DataSettings {
            text: self.text.clone().or(base.text),
            text_sha256: base.text_sha256,
            validation_text: self.validation_text.clone().or(base.validation_text),
            validation_text_sha256: base.validation_text_sha256,
            tokenizer: self.tokenizer.clone().or(base.tokenizer),
            min_count: self.min_count.map_or(base.min_count, u64::from),
            vocab_size: size(self.vocab_size, base.vocab_size),
            format: Format {
                documents: self.documents.unwrap_or(base.format.documents),
                text_column: self.text_column.clone().or(base.format.text_column),
            },
            max_length: self.max_length.map(|n| n as usize).or(base.max_length),
            block_size: size(self.block_size, base.block_size),
            batch_size: size(self.batch_size, base.batch_size),
            epochs: self.epochs.map(u64::from).or(base.epochs),
            data_order: self.data_order.unwrap_or(base.data_order),
        }
    }

    /// An error where a flag has no effect without another.
    ///
    /// # Errors
    /// Naming both.
    pub fn check(&self, settings: &DataSettings) -> Result<()> {
        let DataSettings { text, tokenizer, format, .. } = settings;
        let lines = format.documents == Documents::Lines;
        for (given, flag, fits, needed) in [
            (self.validation_text.is_some(), "--validation-text", text.is_some(), "--text"),
            (self.tokenizer.is_some(), "--tokenizer", text.is_some(), "--text"),
            (self.documents.is_some(), "--documents", text.is_some(), "--text"),
            (self.min_count.is_some(), "--min-count", *tokenizer == Some(Choice::Words), "--tokenizer words"),
            (self.vocab_size.is_some(), "--vocab-size", *tokenizer == Some(Choice::Bpe), "--tokenizer bpe"),
            (self.text_column.is_some(), "--text-column", lines, "--documents lines"),
            (self.max_length.is_some(), "--max-length", lines, "--documents lines"),
        ] {
            if given && !fits {
                let remedy = format!("add {needed}, or leave {flag} out");
                return Err(Error::argument(flag, format!("has no meaning without {needed}"), remedy));
            }
        }
        let block = settings.block_size;
        match settings.max_length {
            Some(n) if n > block + 1 => {
                let problem = format!("gives rows of {} tokens, more than --block-size {block}", n - 1);
                Err(Error::argument(format!("--max-length {n}"), problem, "give a smaller one, or a larger block"))
            }
            _ => Ok(()),
        }
    }
}

impl DataSettings {
    /// Tokens of a row that the model sees: a block, or what a document of the greatest length needs.
    pub fn row_length(&self) -> usize {
        match (self.format.documents, self.max_length) {
            (Documents::Lines, Some(n)) => n - 1,
            _ => self.block_size,
        }
    }

    /// Steps that go through the text as often as was asked for, given its rows and the rows of a step.
    ///
    /// # Errors
    /// If they are more than can be counted.
    pub fn steps(&self, rows_an_epoch: u64, rows_a_step: u64) -> Result<Option<u64>> {
        let Some(epochs) = self.epochs else { return Ok(None) };
        let steps = (epochs * rows_an_epoch).div_ceil(rows_a_step);
        if steps > u32::MAX as u64 {
            let problem = format!("takes {steps} steps, more than {}", u32::MAX);
            return Err(Error::argument(format!("--epochs {epochs}"), problem, "give fewer, or a larger batch"));
        }
        Ok(Some(steps))
    }
}
