//! GPT-2's decoder as minGPT trains it: pre-LayerNorm, learned positions, GELU by tanh, an untied head without bias.
//!
//! Parameters have Hugging Face's names, shapes and layouts (a block's weights are stored (in, out), the head's
//! (out, in)), so that a checkpoint is theirs as it is. Attention is any variant of the registry.

use super::Inputs;
use crate::data::IGNORE;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::add::Add;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::dropout::Dropout;
use crate::ops::embedding::Embedding;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Gelu, Linear, WeightLayout};
use crate::ops::{OPS, RecordAttention};
use crate::philox::Philox;
use crate::plan::Plan;

/// Added to the variance in every LayerNorm.
pub const LAYER_NORM_EPS: f64 = 1e-5;
/// Standard deviation of initial weights.
pub const INITIAL_DEVIATION: f64 = 0.02;
/// The first stream of random numbers that draws initial weights; each parameter has its own.
const INIT_STREAM: u32 = 0x696e_0000;

/// A size that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// As `--preset` takes it.
    pub name: &'static str,
    /// Blocks.
    pub layers: usize,
    /// Attention heads a block.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
}

/// minGPT's small sizes.
pub const PRESETS: [Preset; 3] = [
    Preset { name: "gpt-nano", layers: 3, heads: 3, width: 48 },
    Preset { name: "gpt-micro", layers: 4, heads: 4, width: 128 },
    Preset { name: "gpt-mini", layers: 6, heads: 6, width: 192 },
];

/// All that decides a model's function and parameters' shapes.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GptConfig {
    /// Blocks.
    pub layers: usize,
    /// Attention heads a block; divides the width.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Tokens that the model sees at once.
    pub block: usize,
    /// Different tokens.
    pub vocabulary: usize,
    /// The attention variant's name in the registry.
    pub attention: String,
}

/// A model that can be recorded.
#[derive(Debug, Clone)]
pub struct Gpt {
    config: GptConfig,
    attention: RecordAttention,
}

/// A recorded loss: what the training loop and evaluation know of a model.
#[derive(Debug, Clone)]
pub struct LossGraph {
    /// The model and its loss.
    pub graph: Graph,
    /// What is to be written before each run.
    pub inputs: Inputs,
    /// The mean over targets that count.
    pub loss: Tensor,
    /// Each target's loss (B,T); 0 where it is ignored.
    pub token_losses: Tensor,
}

/// Names of the registry's attention variants.
pub fn attention_variants() -> Vec<&'static str> {
    OPS.iter().filter(|e| e.attention.is_some()).map(|e| e.name).collect()
}

impl Gpt {
    /// A model of this configuration.
    ///
    /// # Errors
    /// If sizes are zero, heads do not divide the width, or the attention variant is unknown.
    pub fn new(config: GptConfig) -> Result<Gpt> {
        let GptConfig { layers, heads, width, block, vocabulary, .. } = config;
        for (what, size) in [
            ("number of layers", layers),
            ("number of heads", heads),
            ("width", width),
            ("block size", block),
            ("vocabulary", vocabulary),
        ] {
            if size == 0 || size > i32::MAX as usize {
                return Err(Error::argument(what, format!("is {size}"), "give a size from 1 to 2147483647"));
            }
        }
        if !width.is_multiple_of(heads) {
            let problem = format!("is {heads}, which does not divide the width {width}");
            return Err(Error::argument("number of heads", problem, "give a divisor of the width"));
        }
        let found = OPS.iter().find(|e| e.name == config.attention).and_then(|e| e.attention);
        let Some(attention) = found else {
            let remedy = format!("give one of {}", attention_variants().join(", "));
            return Err(Error::argument(
                format!("--attention {}", config.attention),
                "is no attention variant",
                remedy,
            ));
        };
        Ok(Gpt { config, attention })
    }

    /// Its configuration.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Records the logits (B,T,V) of tokens (B,T), T up to the block size. With dropout, its probability and the
    /// integers (3) that hold seed low, seed high and step.
    ///
    /// # Errors
    /// If an op refuses its inputs; a valid configuration gives none.
    pub fn logits(&self, g: &mut Graph, tokens: Tensor, dropout: Option<(f64, Tensor)>) -> Result<Tensor> {
        let c = self.config.width;
        let wte = g.parameter("transformer.wte.weight", &[self.config.vocabulary, c], false);
        let wpe = g.parameter("transformer.wpe.weight", &[self.config.block, c], false);
        let x = g.one(Embedding { positions: true }, &[tokens, wte, wpe])?; // (B,T,C)
        // Each place that drops has a stream of its own: 0 here, then two a block.
        let mut stream = 0;
        let mut drop = |g: &mut Graph, x: Tensor| {
            stream += 1;
            match dropout {
                Some((p, random)) => g.one(Dropout { p, stream: stream - 1 }, &[x, random]),
                None => Ok(x),
            }
        };
        let mut x = drop(g, x)?;
        for layer in 0..self.config.layers {
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            let y = layer_norm(g, &name("ln_1"), x, c)?;
            let y = self.attend(g, &name("attn"), y)?;
            let y = drop(g, y)?;
            x = g.one(Add, &[x, y])?;
            let y = layer_norm(g, &name("ln_2"), x, c)?;
            let y = linear(g, &name("mlp.c_fc"), y, c, 4 * c, Some(Gelu::Tanh))?; // (B,T,4C)
            let y = linear(g, &name("mlp.c_proj"), y, 4 * c, c, None)?;
            let y = drop(g, y)?;
            x = g.one(Add, &[x, y])?;
        }
        let x = layer_norm(g, "transformer.ln_f", x, c)?;
        let head = g.parameter("lm_head.weight", &[self.config.vocabulary, c], true);
        g.one(Linear { weight: WeightLayout::OutIn, bias: false, gelu: None }, &[x, head])
    }

    fn attend(&self, g: &mut Graph, name: &str, x: Tensor) -> Result<Tensor> {
        let (c, heads) = (self.config.width, self.config.heads);
        let (batch, length) = (g.shape(x)[0], g.shape(x)[1]);
        let packed = linear(g, &format!("{name}.c_attn"), x, c, 3 * c, None)?; // (B,T,3C)
        let q = g.heads(packed, 0..c, heads)?; // (B,H,T,D), read in place
        let k = g.heads(packed, c..2 * c, heads)?;
        let v = g.heads(packed, 2 * c..3 * c, heads)?;
        let y = (self.attention)(g, q, k, v, true)?; // (B,H,T,D), stored as (B,T,H,D)
        let y = g.reshape(y, &[batch, length, c])?;
        linear(g, &format!("{name}.c_proj"), y, c, c, None)
    }

    /// Records the model with its loss, for batches of `rows` blocks. `dropout` of 0 draws nothing.
    ///
    /// # Errors
    /// If `dropout` is not in [0, 1).
    pub fn loss(&self, rows: usize, dropout: f64) -> Result<LossGraph> {
        self.loss_of_length(rows, self.config.block, dropout)
    }

    /// The same for rows of `length` tokens, up to the block size.
    ///
    /// # Errors
    /// As [`Gpt::loss`], and if rows are longer than a block.
    pub fn loss_of_length(&self, rows: usize, length: usize, dropout: f64) -> Result<LossGraph> {
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::argument(
                format!("--dropout {dropout}"),
                "is no probability",
                "give 0 or more, below 1",
            ));
        }
        let (mut graph, shape) = (Graph::new(), [rows, length]);
        let vocabulary = self.config.vocabulary as i64;
        let tokens = graph.indices("tokens", &shape, 0..vocabulary);
        let targets = graph.indices("targets", &shape, IGNORE as i64..vocabulary);
        let any = i32::MIN as i64..i32::MAX as i64 + 1;
        let random = (dropout > 0.0).then(|| graph.indices("random", &[3], any));
        let logits = self.logits(&mut graph, tokens, random.map(|r| (dropout, r)))?;
        let losses = graph.record(CrossEntropy { ignore: IGNORE }, &[logits, targets])?;
        let inputs = Inputs { tokens, targets, lengths: None, random };
        Ok(LossGraph { graph, inputs, loss: losses[0], token_losses: losses[1] })
    }

    /// Writes [`Gpt::initial`] values to a plan of this model.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialize(&self, plan: &Plan, seed: u64) -> Result<()> {
        let graph = plan.graph();
        graph.parameters().into_iter().try_for_each(|t| plan.write(t, &self.initial(graph, t, seed)))
    }

    /// Initial values of a parameter, in row-major order, as minGPT draws them: weights and embeddings N(0, 0.02),
    /// projections back to the residual stream N(0, 0.02/√(2·layers)), biases 0, LayerNorm 1 and 0. Rounded to f32.
    pub fn initial(&self, graph: &Graph, parameter: Tensor, seed: u64) -> Vec<f64> {
        let (name, n) = (graph.name(parameter), graph.spec(parameter).numel());
        if name.ends_with(".bias") {
            return vec![0.0; n];
        }
        if name.contains("ln_") {
            return vec![1.0; n];
        }
        let residual = name.ends_with("c_proj.weight");
        let scale = if residual { 1.0 / (2.0 * self.config.layers as f64).sqrt() } else { 1.0 };
        let stream = graph.parameters().iter().position(|&t| t == parameter).unwrap_or_default() as u32;
        let random = Philox::new(seed, INIT_STREAM + stream, 0);
        (0..n as u64).map(|i| (random.normal(i) * INITIAL_DEVIATION * scale) as f32 as f64).collect()
    }
}

fn layer_norm(g: &mut Graph, name: &str, x: Tensor, width: usize) -> Result<Tensor> {
    let weight = g.parameter(&format!("{name}.weight"), &[width], false);
    let bias = g.parameter(&format!("{name}.bias"), &[width], false);
    g.one(LayerNorm { eps: LAYER_NORM_EPS }, &[x, weight, bias])
}

/// A layer whose weight is stored (in, out), as GPT-2's are.
fn linear(g: &mut Graph, name: &str, x: Tensor, from: usize, to: usize, gelu: Option<Gelu>) -> Result<Tensor> {
    let weight = g.parameter(&format!("{name}.weight"), &[from, to], true);
    let bias = g.parameter(&format!("{name}.bias"), &[to], false);
    g.one(Linear { weight: WeightLayout::InOut, bias: true, gelu }, &[x, weight, bias])
}
