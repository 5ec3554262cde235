//! The ops. To add one: its `NAME.rs` here, its `kernels/NAME.cu`, and the two lines that list it below.

pub mod add;
pub mod attention;
pub mod binary_cross_entropy;
pub mod concatenate;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod embedding_bag;
pub mod ffnn;
pub mod head_pooling;
pub mod key_value_cache;
pub mod layer_norm;
pub mod linear;
pub mod linear_attention;
pub mod linear_attention_step;
pub mod linear_cross_entropy;
pub mod matmul;
pub mod mean_pooling;
pub mod mean_similarity_attention;
pub mod multi_head_attention;
pub mod narrow;
pub mod permute_heads;
pub mod recurrent;
pub mod reweight_heads;
pub mod rotary;
pub(crate) mod rows;
pub mod self_attention;
pub mod softmax;
pub mod softmax_attention;
pub(crate) mod table;
pub mod tanh;

use crate::case::Case;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::run_spec::RunSpec;

/// An op as the tools see it: `attn validate`, `bench`, `run`.
#[derive(Clone, Copy)]
pub struct Entry {
    /// One string: registry, command line, bench id.
    pub name: &'static str,
    /// One line on what it computes.
    pub summary: &'static str,
    /// What `attn validate` runs.
    pub cases: fn() -> Vec<Case>,
    /// How `attn run` takes somebody's tensors; `None`: not from the command line.
    pub run: Option<&'static RunSpec>,
    /// How `attn bench` and `attn train lm --attention` record it on (B,H,T,D) queries, keys and values;
    /// `None`: no attention variant.
    pub attention: Option<RecordAttention>,
}

/// Records an attention variant: queries (B,H,T,D), keys and values (B,Hk,S,D), the output (B,H,T,D) stored as (B,T,H,D).
pub type RecordAttention = fn(&mut Graph, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Result<Tensor>;

/// Every op, and last the updates, which are validated alike.
#[rustfmt::skip]
pub static OPS: &[&Entry] = &[
    &softmax_attention::ENTRY,
    &linear_attention::ENTRY,
    &linear_attention_step::ENTRY,
    &mean_similarity_attention::ENTRY,
    &multi_head_attention::ENTRY,
    &self_attention::ENTRY,
    &softmax::ENTRY,
    &linear::ENTRY,
    &ffnn::ENTRY,
    &layer_norm::ENTRY,
    &embedding::ENTRY,
    &embedding_bag::ENTRY,
    &head_pooling::ENTRY,
    &mean_pooling::ENTRY,
    &rotary::ENTRY,
    &permute_heads::ENTRY,
    &reweight_heads::ENTRY,
    &add::ENTRY,
    &dropout::ENTRY,
    &tanh::ENTRY,
    &cross_entropy::ENTRY,
    &binary_cross_entropy::ENTRY,
    &linear_cross_entropy::ENTRY,
    &recurrent::GRU,
    &recurrent::RNN,
    &copy::ENTRY,
    &concatenate::ENTRY,
    &key_value_cache::ENTRY,
    &crate::optimizer::clip::ENTRY,
    &crate::optimizer::adamw::ENTRY,
    &crate::optimizer::adam::ENTRY,
    &crate::optimizer::sgd::ENTRY,
    &crate::optimizer::adagrad::ENTRY,
];
