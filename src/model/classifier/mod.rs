//! Classifiers of texts, from averaged word vectors to recurrent and attentive ones, all from the same kernels.
//!
//! A text becomes rows of a table of vectors ([`Encoder`]); the model makes one vector of them, and a linear layer logits:
//!
//! | model | one vector of a text |
//! |---|---|
//! | `mean-logreg` | the mean of its known words' vectors |
//! | `mean-ffnn` | tanh of a linear layer on that mean |
//! | `bow-logreg` | its words' counts, or which occur; sparse, so that a step touches the words that are there |
//! | `self-attention` | the mean over words of softmax(X·W_q·(X·W_k)ᵀ/√Dk)·X·W_v |
//! | `head-attention` | h averages of the words, weighted by softmax(X·H) over them |
//! | `gru`, `rnn` | the last layer's final states, of both directions |
//! | `transformer` | the mean over words of an encoder's output |
//!
//! Rows have lengths, and every op stops there: padding is neither computed with nor learned from, so that a text's logits
//! do not depend on what else is in the batch.
//!
//! - `config`: what a model is, as `config.json` keeps it.
//! - `record`: the model on a graph.
//! - `encoder`: texts to rows.
//! - `plans`: one plan for each length of rows, on the same parameters.
//! - `contributions`: what each word does for a prediction.
//! - `files`: a directory with all of it, and [`Classifier`], which predicts.

mod config;
mod contributions;
mod encoder;
pub(crate) mod files;
mod plans;
mod record;

pub use config::{ClassifierConfig, ModelName, Padding, Pool};
pub use contributions::{Contributions, contributions};
pub use encoder::{Encoded, Encoder, Unknown};
pub use files::{Classifier, INDEX, Predicted, VECTORS};
pub use plans::{Plans, Rows};
pub use record::{Initial, Recorded};
