//! What models are trained on: texts become tokens, tokens a corpus, and a corpus batches.

pub mod addition;
mod batches;
pub mod cache;
mod corpus;
pub mod labelled;
mod order;
mod read;
pub mod tasks;
mod text;
pub mod tokenizer;
mod tokens;
pub mod words;

pub use batches::{Batches, DataOrder};
pub use corpus::{Corpus, Ends, Window};
pub use labelled::{Columns, Example, Header, Labelled, Separator};
pub use order::Permutation;
pub use read::{Found, read};
pub use text::{Column, Documents, Format, Piece, Text};
pub use tokenizer::Tokenizer;
pub use tokens::Tokens;
pub use words::{SpecialTokens, Splitter, WordIndex};

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
