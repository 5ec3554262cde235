//! A classifier on a graph.

use super::config::{ClassifierConfig, ModelName};
use crate::data::IGNORE;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::OPS;
use crate::ops::add::Add;
use crate::ops::binary_cross_entropy::BinaryCrossEntropy;
use crate::ops::concatenate::Concatenate;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::dropout::Dropout;
use crate::ops::embedding::Embedding;
use crate::ops::embedding_bag::EmbeddingBag;
use crate::ops::head_pooling::HeadPooling;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Activation, Linear, WeightLayout};
use crate::ops::mean_pooling::MeanPooling;
use crate::ops::recurrent::{Cell, Stack};
use crate::ops::softmax_attention::{self, Extra, SoftmaxAttention};
use crate::ops::tanh::Tanh;
use crate::philox::Philox;
use crate::plan::Plan;

/// The weights of a bag of words.
pub(super) const BAG: &str = "bag.weight";
/// The table of vectors.
pub(super) const EMBEDDING: &str = "embedding.weight";
/// The first stream of random numbers that draws initial weights; each tensor has its own.
const INITIAL_STREAM: u32 = 0x636c_0000;

/// What a tensor of the model holds before training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// Uniform between −x and x.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// The same number everywhere.
    Constant(f64),
}

/// A recorded classifier.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The model and its loss.
    pub graph: Graph,
    /// Rows of the table, int (B,T).
    pub tokens: Tensor,
    /// How many of each text's are its own, int (B).
    pub lengths: Tensor,
    /// Classes, int (B); [`IGNORE`] where there is no text.
    pub targets: Tensor,
    /// Seed low, seed high and step, where something is dropped.
    pub random: Option<Tensor>,
    /// Logits (B, classes), or (B) of the second of two.
    pub logits: Tensor,
    /// The mean loss.
    pub loss: Tensor,
    /// Each text's (B).
    pub losses: Tensor,
    /// `head-attention`: the weights (B,h,T).
    pub weights: Option<Tensor>,
    /// `gru`, `rnn`, `transformer`, `self-attention`: the words' vectors (B,T,E), where a gradient flows to them.
    pub vectors: Option<Tensor>,
    /// What parameters and frozen tensors hold at first.
    pub initial: Vec<(Tensor, Initial)>,
}

/// A graph under construction.
struct Recorder<'a> {
    config: &'a ClassifierConfig,
    g: Graph,
    initial: Vec<(Tensor, Initial)>,
    random: Option<Tensor>,
    streams: u32,
}

impl ClassifierConfig {
    /// Records the model on `batch` rows of `length` tokens. With `training`, what is to be dropped is.
    ///
    /// # Errors
    /// If the attention variant is unknown or knows no lengths; of a valid configuration no op refuses its inputs.
    pub fn record(&self, batch: usize, length: usize, training: bool) -> Result<Recorded> {
        let mut g = Graph::new();
        let tokens = g.indices("tokens", &[batch, length], 0..self.vocabulary as i64);
        let lengths = g.indices("lengths", &[batch], 0..length as i64 + 1);
        let targets = g.indices("targets", &[batch], IGNORE as i64..self.labels.len() as i64);
        let any = i32::MIN as i64..i32::MAX as i64 + 1;
        let random = (training && self.dropout > 0.0).then(|| g.indices("random", &[3], any));
        let mut r = Recorder { config: self, g, initial: Vec::new(), random, streams: 0 };
        let (x, weights, vectors) = r.pooled(tokens, lengths)?;
        let logits = if self.model == ModelName::BowLogreg {
            x
        } else {
            let mut x = x;
            for (i, &width) in self.hidden.iter().enumerate() {
                let z = r.linear(&format!("hidden.{i}"), x, width, None)?;
                x = r.g.one(Tanh, &[z])?;
            }
            let x = r.dropped(x)?;
            r.linear("linear", x, self.logits(), None)?
        };
        let Recorder { mut g, initial, random, .. } = r;
        let (logits, losses) = if self.is_binary() {
            let logits = g.reshape(logits, &[batch])?;
            (logits, g.record(BinaryCrossEntropy { ignore: IGNORE }, &[logits, targets])?)
        } else {
            (logits, g.record(CrossEntropy { ignore: IGNORE }, &[logits, targets])?)
        };
        let (loss, losses) = (losses[0], losses[1]);
        Ok(Recorded { graph: g, tokens, lengths, targets, random, logits, loss, losses, weights, vectors, initial })
    }
}

impl Recorder<'_> {
    /// A trained tensor. Weight decay applies to all, as torch.optim has it.
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Tensor {
        let t = self.g.parameter(name, shape, true);
        self.initial.push((t, initial));
        t
    }

    /// One that is trained or not.
    fn kept(&mut self, name: &str, shape: &[usize], frozen: bool, initial: Initial) -> Tensor {
        if !frozen {
            return self.parameter(name, shape, initial);
        }
        let t = self.g.frozen(name, shape);
        self.initial.push((t, initial));
        t
    }

    /// nn.Linear, as it draws its parameters.
    fn linear(&mut self, name: &str, x: Tensor, outputs: usize, activation: Option<Activation>) -> Result<Tensor> {
        let inputs = *self.g.shape(x).last().expect("at least one axis");
        let bound = Initial::Uniform(1.0 / (inputs as f64).sqrt());
        let weight = self.parameter(&format!("{name}.weight"), &[outputs, inputs], bound);
        let bias = self.parameter(&format!("{name}.bias"), &[outputs], bound);
        self.g.one(Linear { activation, ..Linear::TORCH }, &[x, weight, bias])
    }

    fn dropped(&mut self, x: Tensor) -> Result<Tensor> {
        let Some(random) = self.random else { return Ok(x) };
        self.streams += 1;
        self.g.one(Dropout { p: self.config.dropout, stream: self.streams - 1 }, &[x, random])
    }

    /// One vector (B,·) of each text; the weights of heads and the words' vectors where there are.
    fn pooled(&mut self, tokens: Tensor, lengths: Tensor) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let config = self.config;
        if config.model == ModelName::BowLogreg {
            let (rows, classes) = (config.vocabulary, config.logits());
            let bound = Initial::Uniform(1.0 / (rows as f64).sqrt());
            let weight = self.parameter(BAG, &[rows, classes], bound);
            let bias = self.parameter("bag.bias", &[classes], bound);
            let bag = EmbeddingBag { mean: false, bias: true };
            return Ok((self.g.one(bag, &[tokens, lengths, weight, bias])?, None, None));
        }
        let width = config.width;
        let shape = [config.vocabulary, width];
        let table = self.kept(EMBEDDING, &shape, config.freeze_embeddings, Initial::Normal(1.0));
        let positions = config.positions.then(|| {
            let rows = config.max_length.max(1);
            self.parameter("positions.weight", &[rows, width], Initial::Normal(0.02))
        });
        match config.model {
            ModelName::MeanLogreg | ModelName::MeanFfnn => {
                let bag = EmbeddingBag { mean: true, bias: false };
                return Ok((self.g.one(bag, &[tokens, lengths, table])?, None, None));
            }
            ModelName::HeadAttention => {
                let heads = self.kept("heads", &[width, config.heads], config.freeze_heads, Initial::Uniform(0.5));
                let inputs: Vec<Tensor> = [tokens, lengths, table, heads].into_iter().chain(positions).collect();
                let outputs = self.g.record(HeadPooling { positions: positions.is_some() }, &inputs)?;
                return Ok((outputs[0], Some(outputs[1]), None));
            }
            _ => {}
        }
        let inputs: Vec<Tensor> = [tokens, table].into_iter().chain(positions).collect();
        let x = self.g.one(Embedding { positions: positions.is_some() }, &inputs)?; // (B,T,E)
        let pooled = match config.model {
            ModelName::SelfAttention => {
                let y = self.self_attention(x, lengths)?;
                self.g.one(MeanPooling { features: config.pools_features() }, &[y, lengths])?
            }
            ModelName::Transformer => {
                let mut x = self.dropped(x)?;
                for layer in 0..config.layers {
                    x = self.block(&format!("layers.{layer}"), x, lengths)?;
                }
                let x = self.layer_norm("norm", x)?;
                self.g.one(MeanPooling { features: false }, &[x, lengths])?
            }
            _ => self.recurrent(x, lengths)?,
        };
        Ok((pooled, None, Some(x)))
    }

    /// The last layer's final states, of both directions one after the other: (B, directions·H).
    fn recurrent(&mut self, x: Tensor, lengths: Tensor) -> Result<Tensor> {
        let ClassifierConfig { units, layers, dropout, .. } = *self.config;
        let cell = if self.config.model == ModelName::Gru { Cell::Gru } else { Cell::Tanh };
        let directions = 1 + self.config.bidirectional as usize;
        let stack = Stack { cell, inputs: self.config.width, hidden: units, layers, directions, bias: true };
        let bound = Initial::Uniform(1.0 / (units as f64).sqrt());
        let mut layers_of = stack.layers(|name, shape| Ok(self.parameter(&format!("rnn.{name}"), shape, bound)))?;
        if let Some(random) = self.random.filter(|_| layers > 1) {
            layers_of.dropout = Some((dropout, random, self.streams));
            self.streams += layers as u32 - 1;
        }
        let (_, states) = layers_of.record(&mut self.g, x, None, Some(lengths))?; // (layers·directions,B,H)
        let [all, batch, _] = self.g.shape(states)[..] else { unreachable!("states are (layers·directions,B,H)") };
        if all == 1 {
            return self.g.reshape(states, &[batch, units]);
        }
        let each: Vec<Tensor> =
            (all - directions..all).map(|d| self.g.slice(states, d..d + 1)).collect::<Result<_>>()?;
        let last = self.g.one(Concatenate { axis: 2 }, &each)?;
        self.g.reshape(last, &[batch, directions * units])
    }

    /// softmax(X·W_q·(X·W_k)ᵀ/√Dk)·X·W_v, (B,T,E).
    fn self_attention(&mut self, x: Tensor, lengths: Tensor) -> Result<Tensor> {
        let width = self.config.width;
        let bound = Initial::Uniform(1.0 / (width as f64).sqrt());
        let mut heads = [x; 3];
        for ((name, columns), head) in
            [("w_q", self.config.key_width), ("w_k", self.config.key_width), ("w_v", width)].into_iter().zip(&mut heads)
        {
            let weight = self.kept(name, &[width, columns], self.config.freeze_heads, bound);
            let op = Linear { weight: WeightLayout::InOut, bias: false, activation: None };
            let projected = self.g.one(op, &[x, weight])?;
            *head = self.g.heads(projected, 0..columns, 1)?;
        }
        self.attended(softmax_attention::ENTRY.name, heads, lengths, width)
    }

    /// Attention of heads (B,H,T,D) to the keys before each length, merged: (B,T,width).
    fn attended(&mut self, variant: &str, [q, k, v]: [Tensor; 3], lengths: Tensor, width: usize) -> Result<Tensor> {
        let out = if variant == softmax_attention::ENTRY.name {
            let op = SoftmaxAttention::causal(false).with(Extra::KeyLengths);
            self.g.record(op, &[q, k, v, lengths])?[0]
        } else {
            with_lengths(&mut self.g, variant, [q, k, v], lengths)?
        };
        let [batch, _, length, _] = self.g.shape(out)[..] else { unreachable!("attention gives (B,H,T,D)") };
        self.g.reshape(out, &[batch, length, width])
    }

    fn layer_norm(&mut self, name: &str, x: Tensor) -> Result<Tensor> {
        let width = self.config.width;
        let weight = self.parameter(&format!("{name}.weight"), &[width], Initial::Constant(1.0));
        let bias = self.parameter(&format!("{name}.bias"), &[width], Initial::Constant(0.0));
        self.g.one(LayerNorm { eps: 1e-5 }, &[x, weight, bias])
    }

    /// A block of the encoder, LayerNorm first: nn.TransformerEncoderLayer(norm_first=True, activation="gelu").
    fn block(&mut self, name: &str, x: Tensor, lengths: Tensor) -> Result<Tensor> {
        let ClassifierConfig { width, heads, attention, .. } = self.config;
        let (width, heads) = (*width, *heads);
        let y = self.layer_norm(&format!("{name}.norm1"), x)?;
        let packed = self.linear(&format!("{name}.self_attn.in_proj"), y, 3 * width, None)?;
        let mut part = |i: usize| self.g.heads(packed, i * width..(i + 1) * width, heads);
        let qkv = [part(0)?, part(1)?, part(2)?];
        let y = self.attended(attention, qkv, lengths, width)?;
        let y = self.linear(&format!("{name}.self_attn.out_proj"), y, width, None)?;
        let y = self.dropped(y)?;
        let x = self.g.one(Add, &[x, y])?;
        let y = self.layer_norm(&format!("{name}.norm2"), x)?;
        let y = self.linear(&format!("{name}.linear1"), y, 4 * width, Some(Activation::GeluErf))?;
        let y = self.linear(&format!("{name}.linear2"), y, width, None)?;
        let y = self.dropped(y)?;
        self.g.one(Add, &[x, y])
    }
}

impl Recorded {
    /// Writes initial values to a plan of this graph.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialize(initial: &[(Tensor, Initial)], plan: &Plan, seed: u64) -> Result<()> {
        for (i, &(t, initial)) in initial.iter().enumerate() {
            let n = plan.graph().spec(t).numel() as u64;
            let random = Philox::new(seed, INITIAL_STREAM + i as u32, 0);
            let value = |j: u64| match initial {
                Initial::Uniform(x) => (2.0 * random.uniform(j) as f64 - 1.0) * x,
                Initial::Normal(deviation) => random.normal(j) * deviation,
                Initial::Constant(x) => x,
            };
            plan.write(t, &(0..n).map(value).collect::<Vec<f64>>())?;
        }
        Ok(())
    }
}

/// An attention variant of the registry that takes lengths of keys.
fn with_lengths(g: &mut Graph, variant: &str, [q, k, v]: [Tensor; 3], lengths: Tensor) -> Result<Tensor> {
    use crate::ops::linear_attention::{self, LinearAttention};
    use crate::ops::mean_similarity_attention::{self, MeanSimilarityAttention};
    if variant == linear_attention::ENTRY.name {
        return g.one(LinearAttention::default(), &[q, k, v, lengths]);
    }
    if variant == mean_similarity_attention::ENTRY.name {
        return g.one(MeanSimilarityAttention::default(), &[q, k, v, lengths]);
    }
    let known: Vec<&str> = OPS.iter().filter(|e| e.attention.is_some()).map(|e| e.name).collect();
    let remedy = format!("give one of {}", known.join(", "));
    Err(Error::argument(format!("--attention {variant}"), "is no attention variant that takes lengths", remedy))
}
