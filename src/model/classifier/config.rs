//! What a classifier is: enough to record it again.

use crate::data::words::{SpecialTokens, Splitter};
use crate::error::{Error, Result};

/// What makes one vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// The mean of known words' vectors.
    MeanLogreg,
    /// A hidden layer on that mean.
    MeanFfnn,
    /// A bag of words.
    BowLogreg,
    /// The mean of scaled dot-product self-attention.
    SelfAttention,
    /// Averages weighted by softmax(X·H).
    HeadAttention,
    /// Final states of gated recurrent units.
    Gru,
    /// Final states of Elman's recurrence.
    Rnn,
    /// The mean of a transformer's encoder.
    Transformer,
}

impl ModelName {
    /// As `--model` takes it.
    pub fn name(self) -> &'static str {
        match self {
            ModelName::MeanLogreg => "mean-logreg",
            ModelName::MeanFfnn => "mean-ffnn",
            ModelName::BowLogreg => "bow-logreg",
            ModelName::SelfAttention => "self-attention",
            ModelName::HeadAttention => "head-attention",
            ModelName::Gru => "gru",
            ModelName::Rnn => "rnn",
            ModelName::Transformer => "transformer",
        }
    }

    /// Whether words without a row are left out; the others see the row of unknown words.
    pub fn skips_unknown(self) -> bool {
        matches!(self, ModelName::MeanLogreg | ModelName::MeanFfnn | ModelName::BowLogreg)
    }

    /// Whether its work grows with the padded length, so that rows of one length are better kept together.
    pub fn pads(self) -> bool {
        matches!(self, ModelName::SelfAttention | ModelName::Gru | ModelName::Rnn | ModelName::Transformer)
    }
}

/// What the mean of self-attention goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The tokens: a vector of the width of words.
    #[default]
    Tokens,
    /// Each token's features: a vector as long as the longest text, whose entries are places and mean the same in no two
    /// texts. A mistake, here for comparison. Of a token only one number is left, x·W_v's mean: x along one direction. It
    /// was published near chance, and is so with W_q, W_k and W_v as they were drawn; trained, W_v learns the direction
    /// that tells most, and it is behind by three points at most (docs/classifiers.md).
    Features,
}

/// What stands behind a text that is shorter than others of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Nothing that is seen.
    #[default]
    Masked,
    /// The padding word, zeros unless vectors for it are given or trained, up to the batch's longest text (`--pool features`:
    /// to the longest of all). A mistake, here for comparison: a score of 0 is a weight of e⁰, so that a text's weights
    /// depend on the texts beside it.
    Zeroed,
}

/// A model's shape, its labels, and how texts become rows.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassifierConfig {
    /// What makes one vector of a text.
    pub model: ModelName,
    /// Names of the classes, in order.
    pub labels: Vec<String>,
    /// Rows of the table of vectors.
    pub vocabulary: usize,
    /// Numbers in a word's vector; 0 for a bag of words, which has none.
    pub width: usize,
    /// Whether the vectors stay as they were given.
    pub freeze_embeddings: bool,
    /// Widths of hidden layers with tanh, before the last layer.
    pub hidden: Vec<usize>,
    /// Heads of `head-attention` and `transformer`.
    pub heads: usize,
    /// Whether attention's weights stay as they were drawn: H of `head-attention`; W_q, W_k and W_v of `self-attention`.
    pub freeze_heads: bool,
    /// Width of queries and keys of `self-attention`.
    pub key_width: usize,
    /// What its mean goes over.
    pub pool: Pool,
    /// What `self-attention` and `head-attention` see behind a text.
    #[serde(default)]
    pub padding: Padding,
    /// The padding word's row.
    #[serde(default)]
    pub pad_row: u32,
    /// Whether a learned vector for each place is added to the word's.
    pub positions: bool,
    /// Words of a text that are read; 0: all.
    pub max_length: usize,
    /// Layers of `gru`, `rnn`, `transformer`.
    pub layers: usize,
    /// Hidden units of `gru` and `rnn`, for each direction.
    pub units: usize,
    /// Whether those also go backwards.
    pub bidirectional: bool,
    /// The transformer's attention variant.
    pub attention: String,
    /// Part of the activations that is dropped in training: between layers, and before the last one.
    pub dropout: f64,
    /// Whether a bag of words counts, or only says what occurs.
    pub counts: bool,
    /// What splits texts.
    pub tokenizer: Splitter,
    /// Whether words are lower-cased.
    pub lowercase: bool,
    /// Words that stand for none.
    pub special: SpecialTokens,
}

impl ClassifierConfig {
    /// Logits of a text: one of two classes for `head-attention`, whose loss is binary cross-entropy; else one a class.
    pub fn logits(&self) -> usize {
        if self.is_binary() { 1 } else { self.labels.len() }
    }

    /// Whether the one logit is that of the second label.
    pub fn is_binary(&self) -> bool {
        self.model == ModelName::HeadAttention && self.labels.len() == 2
    }

    /// An error where sizes are 0 or do not go together; the flag is named.
    ///
    /// # Errors
    /// Naming the flag.
    pub fn check(&self) -> Result<()> {
        use ModelName::*;
        if self.labels.len() < 2 {
            let problem = format!("are {}", self.labels.len());
            return Err(Error::argument("labels", problem, "give a table with at least two, or name them by --labels"));
        }
        let of = |models: &[ModelName]| models.contains(&self.model);
        for (flag, value, used) in [
            ("--heads", self.heads, of(&[HeadAttention, Transformer])),
            ("--key-width", self.key_width, of(&[SelfAttention])),
            ("--layers", self.layers, of(&[Gru, Rnn, Transformer])),
            ("--units", self.units, of(&[Gru, Rnn])),
            ("--dim", self.width, !of(&[BowLogreg])),
        ] {
            if used && !(1..=1 << 20).contains(&value) {
                return Err(Error::argument(format!("{flag} {value}"), "is no size", "give 1 to 1048576"));
            }
        }
        if let Some(width) = self.hidden.iter().find(|n| !(1..=1 << 20).contains(*n)) {
            return Err(Error::argument(format!("--hidden {width}"), "is no size", "give 1 to 1048576"));
        }
        if self.model == Transformer && !self.width.is_multiple_of(self.heads) {
            let problem = format!("does not divide the vectors' width {}", self.width);
            return Err(Error::argument(format!("--heads {}", self.heads), problem, "give a divisor"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::argument(format!("--dropout {}", self.dropout), "is out of range", "give 0 to below 1"));
        }
        Ok(())
    }

    /// Whether a longest text must be known: there are weights for each place.
    pub fn needs_length(&self) -> bool {
        self.positions || self.pools_features()
    }

    /// How many places of a row the model sees: a text's own, or with padding that is seen those of its batch's longest text,
    /// or of the whole plan where the last layer has a weight for each.
    pub(super) fn seen(&self, own: usize, longest: usize, planned: usize) -> usize {
        match self.padding {
            Padding::Masked => own,
            Padding::Zeroed if self.pools_features() => planned,
            Padding::Zeroed => longest,
        }
    }

    /// Whether the last layer has a weight for each place of a text.
    pub fn pools_features(&self) -> bool {
        self.model == ModelName::SelfAttention && self.pool == Pool::Features
    }
}
