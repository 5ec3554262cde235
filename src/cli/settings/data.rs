//! What is learned: the flags that choose and cut it.

use crate::data::{DataOrder, addition};
use std::path::PathBuf;

/// Flags of the data.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DataArgs {
    /// Text to learn, in UTF-8 [default: generated two-digit addition, such as 12+34=640, the sum's digits in reverse]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens that the model sees at once [default: 128; 10, one problem, for addition]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub block_size: Option<u32>,
    /// Blocks a step [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Whether blocks start anywhere at random, or follow each other: row r of batch i (from 0) at (i·B + r)·block
    /// [default: random]
    #[arg(long, value_name = "ORDER")]
    pub data_order: Option<DataOrder>,
}

/// What is learned, and in which pieces.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DataSettings {
    /// The text; none: addition.
    pub text: Option<PathBuf>,
    /// Its digest, so that a changed text is noticed.
    pub text_sha256: Option<String>,
    /// Tokens a block.
    pub block_size: usize,
    /// Blocks a step.
    pub batch_size: usize,
    /// How blocks follow each other.
    pub data_order: DataOrder,
}

impl DataArgs {
    /// The defaults, which depend on what is learned.
    pub fn defaults(&self) -> DataSettings {
        let block_size = if self.text.is_some() { 128 } else { addition::LINE };
        DataSettings { text: None, text_sha256: None, block_size, batch_size: 64, data_order: DataOrder::Random }
    }

    /// What the flags say, and where they say nothing, `base`.
    pub fn over(&self, base: DataSettings) -> DataSettings {
        let size = |given: Option<u32>, base: usize| given.map_or(base, |n| n as usize);
        DataSettings {
            text: self.text.clone().or(base.text),
            text_sha256: base.text_sha256,
            block_size: size(self.block_size, base.block_size),
            batch_size: size(self.batch_size, base.batch_size),
            data_order: self.data_order.unwrap_or(base.data_order),
        }
    }
}
