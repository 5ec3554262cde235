//! GPT-2's decoder as minGPT trains it: pre-LayerNorm, learned positions, GELU by tanh, an untied head without bias.
//! Each of these can be had otherwise, and each layer may have its own attention variant of the registry.
//!
//! Parameters have Hugging Face's names, shapes and layouts (a block's weights are stored (in, out), the head's
//! (out, in)), so that a checkpoint is theirs as it is.

use super::Inputs;
use super::config::GptConfig;
use super::options::{DropoutRates, HeadMerge, HeadMerging, Positions, alibi_slopes, sinusoids};
use crate::data::IGNORE;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::Spec;
use crate::ops::OPS;
use crate::ops::add::Add;
use crate::ops::dropout::Dropout;
use crate::ops::embedding::Embedding;
use crate::ops::key_value_cache::KeyValueCache;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::linear::{Activation, Linear, WeightLayout};
use crate::ops::linear_attention::{self, LinearAttention};
use crate::ops::linear_attention_step::LinearAttentionStep;
use crate::ops::linear_cross_entropy::LinearCrossEntropy;
use crate::ops::mean_similarity_attention::{self, MeanSimilarityAttention};
use crate::ops::permute_heads::{HeadOrder, PermuteHeads};
use crate::ops::reweight_heads::ReweightHeads;
use crate::ops::rotary::{self, Rotary, angles};
use crate::ops::softmax_attention::{self, Extra, SoftmaxAttention};
use crate::philox::Philox;
use crate::plan::Plan;

/// Standard deviation of initial weights.
pub const INITIAL_DEVIATION: f64 = 0.02;
/// The first stream of random numbers that draws initial weights; each parameter has its own.
const INIT_STREAM: u32 = 0x696e_0000;
/// The first stream that draws which attention weights are dropped; each layer has its own.
const ATTENTION_STREAM: u32 = 0x6174_0000;
/// The first stream that draws an order of heads; each layer has its own.
const SHUFFLE_STREAM: u32 = 0x7368_0000;

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

/// A model that can be recorded.
#[derive(Debug, Clone)]
pub struct Gpt {
    config: GptConfig,
}

/// What a forward pass depends on besides its tokens. The default is inference, without padding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions {
    /// What is dropped.
    pub dropout: DropoutRates,
    /// Integers (3) that hold seed low, seed high and step: for dropout, and for an order of heads that is drawn anew.
    pub random: Option<Tensor>,
    /// Integers (B): how many tokens of each row are no padding.
    pub lengths: Option<Tensor>,
    /// In generation token by token: where in the text the one token stands.
    pub place: Option<TokenPlace>,
}

/// Where one token stands after others that earlier runs have seen ([`Gpt::next_logits`]).
#[derive(Debug, Clone, Copy)]
pub struct TokenPlace {
    /// Its position, integer (1,1).
    pub position: Tensor,
    /// Tokens up to it, integer (1).
    pub length: Tensor,
    /// Rotary angles of the position, full (1,D) ([`rotary::angles_at`]).
    pub angles: Option<Tensor>,
}

/// What a layer's attention computed from, for looking inside.
#[derive(Debug, Clone)]
pub struct Tap {
    /// The variant's name in the registry.
    pub attention: String,
    /// Queries (B,H,T,D), after rotary positions.
    pub q: Tensor,
    /// Keys (B,H,T,D), likewise.
    pub k: Tensor,
    /// Values (B,H,T,D).
    pub v: Tensor,
    /// Each head's output (B,H,T,D), before heads are merged.
    pub out: Tensor,
    /// Softmax attention's log of the sum of exponentials (B,H,T).
    pub lse: Option<Tensor>,
    /// ALiBi's slopes (H).
    pub slopes: Option<Tensor>,
}

/// A recorded model up to its head.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// The last LayerNorm's output (B,T,C).
    pub states: Tensor,
    /// The head's weight (V,C): a parameter of its own, or the token embedding.
    pub head: Tensor,
    /// One a layer.
    pub taps: Vec<Tap>,
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

/// What the layers of one recording share.
struct Shared {
    conditions: Conditions,
    /// Rotary angles.
    angles: Option<Tensor>,
    /// ALiBi's slopes.
    slopes: Option<Tensor>,
    /// What decides the order of heads.
    order: Option<Tensor>,
}

impl Gpt {
    /// A model of this configuration.
    ///
    /// # Errors
    /// If sizes are zero, heads do not divide the width, an attention variant is unknown, or options contradict each
    /// other; the flag is named.
    pub fn new(config: GptConfig) -> Result<Gpt> {
        let GptConfig { layers, heads, width, block, vocabulary, .. } = config;
        for (what, size) in [
            ("number of layers", layers),
            ("number of heads", heads),
            ("width", width),
            ("inner width", config.inner_width()),
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
        config.check_attention()?;
        config.head_merging.check()?;
        let eps = config.layer_norm_eps;
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(Error::argument(format!("layer_norm_epsilon {eps}"), "is no small number", "give more than 0"));
        }
        Ok(Gpt { config })
    }

    /// Its configuration.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Records the logits (B,T,V) of tokens (B,T), T up to the block size.
    ///
    /// # Errors
    /// If an op refuses its inputs; a valid configuration gives none.
    pub fn logits(&self, g: &mut Graph, tokens: Tensor, conditions: Conditions) -> Result<Tensor> {
        let Hidden { states, head, .. } = self.hidden(g, tokens, conditions)?;
        g.one(Linear { weight: WeightLayout::OutIn, bias: false, activation: None }, &[states, head])
    }

    /// Whether [`Gpt::next_logits`] can be recorded; if not, what keeps it from.
    ///
    /// # Errors
    /// Naming the option.
    pub fn steps_by_token(&self) -> std::result::Result<(), String> {
        let known =
            [softmax_attention::ENTRY, linear_attention::ENTRY, mean_similarity_attention::ENTRY].map(|e| e.name);
        if let Some(other) = self.config.attention.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("--attention {other} has no cache"));
        }
        if self.config.head_merging.merge == HeadMerge::Reweight {
            return Err("--head-merge reweight takes norms over all tokens".into());
        }
        Ok(())
    }

    /// Records the logits (1,1,V) after one token (1,1), which stands behind those of earlier runs of the same plan: keys and
    /// values so far are kept in caches of a block, and linear attention's sums in a state of constant size. Position 0
    /// begins anew. What is to be written before each run is the token and its [`TokenPlace`].
    ///
    /// # Errors
    /// As [`Gpt::hidden`]; [`Gpt::steps_by_token`] says which models cannot.
    pub fn next_logits(&self, g: &mut Graph, token: Tensor) -> Result<(Tensor, TokenPlace)> {
        self.steps_by_token().map_err(|why| Error::argument("the model", why, "compute whole windows"))?;
        let GptConfig { block, width, heads, .. } = self.config;
        let position = g.indices("position", &[1, 1], 0..block as i64);
        let length = g.indices("length", &[1], 0..block as i64 + 1);
        let angles = (self.config.positions == Positions::Rotary).then(|| angles(g, 1, width / heads, rotary::BASE));
        let place = TokenPlace { position, length, angles };
        let logits = self.logits(g, token, Conditions { place: Some(place), ..Default::default() })?;
        Ok((logits, place))
    }

    /// Records all but the head, on tokens (B,T), T up to the block size.
    ///
    /// # Errors
    /// If dropout is asked for without random numbers; of a valid configuration no op refuses its inputs.
    pub fn hidden(&self, g: &mut Graph, tokens: Tensor, conditions: Conditions) -> Result<Hidden> {
        let (c, inner) = (self.config.width, self.config.inner_width());
        let DropoutRates { embedding, residual, .. } = conditions.dropout;
        let wte = g.parameter("transformer.wte.weight", &[self.config.vocabulary, c], false);
        let x = self.embed(g, tokens, wte, conditions.place)?; // (B,T,C)
        let shared = self.shared(g, g.shape(tokens)[1], conditions);
        // Each place that drops has a stream of its own: 0 here, then two a block.
        let mut stream = 0;
        let mut drop = |g: &mut Graph, x: Tensor, p: f64| {
            stream += 1;
            if p > 0.0 { g.one(Dropout { p, stream: stream - 1 }, &[x, conditions.random()?]) } else { Ok(x) }
        };
        let mut x = drop(g, x, embedding)?;
        let mut taps = Vec::new();
        for layer in 0..self.config.layers {
            let name = |part: &str| format!("transformer.h.{layer}.{part}");
            let y = self.layer_norm(g, &name("ln_1"), x)?;
            let (y, tap) = self.attend(g, layer, &name("attn"), y, &shared)?;
            taps.push(tap);
            let y = drop(g, y, residual)?;
            x = g.one(Add, &[x, y])?;
            let y = self.layer_norm(g, &name("ln_2"), x)?;
            let y = linear(g, &name("mlp.c_fc"), y, c, inner, Some(self.config.activation))?; // (B,T,4C)
            let y = linear(g, &name("mlp.c_proj"), y, inner, c, None)?;
            let y = drop(g, y, residual)?;
            x = g.one(Add, &[x, y])?;
        }
        let states = self.layer_norm(g, "transformer.ln_f", x)?;
        let head =
            if self.config.tied { wte } else { g.parameter("lm_head.weight", &[self.config.vocabulary, c], true) };
        Ok(Hidden { states, head, taps })
    }

    /// Tokens (B,T) as vectors (B,T,C), with positions where they are added.
    fn embed(&self, g: &mut Graph, tokens: Tensor, wte: Tensor, place: Option<TokenPlace>) -> Result<Tensor> {
        let (length, c) = (if place.is_some() { self.config.block } else { g.shape(tokens)[1] }, self.config.width);
        let positions = match self.config.positions {
            Positions::Learned => Some(g.parameter("transformer.wpe.weight", &[self.config.block, c], false)),
            kind @ (Positions::Sinusoidal | Positions::SinusoidalPaired) => {
                let table = sinusoids(kind == Positions::SinusoidalPaired, length, c);
                Some(g.constant("sinusoids", Spec::real([length, c]), table))
            }
            Positions::Rotary | Positions::Alibi | Positions::None => None,
        };
        if let (Some(place), Some(table)) = (place, positions) {
            let token = g.one(Embedding { positions: false }, &[tokens, wte])?;
            let position = g.one(Embedding { positions: false }, &[place.position, table])?;
            return g.one(Add, &[token, position]);
        }
        let inputs: Vec<Tensor> = [tokens, wte].into_iter().chain(positions).collect();
        g.one(Embedding { positions: positions.is_some() }, &inputs)
    }

    fn shared(&self, g: &mut Graph, length: usize, conditions: Conditions) -> Shared {
        let GptConfig { heads, width, positions, head_merging: merging, .. } = self.config;
        let angles = match conditions.place {
            Some(place) => place.angles,
            None => (positions == Positions::Rotary).then(|| angles(g, length, width / heads, rotary::BASE)),
        };
        let slopes = (positions == Positions::Alibi)
            .then(|| g.constant("ALiBi slopes", Spec::full([heads]), alibi_slopes(heads)));
        let order = match conditions.random {
            random @ Some(_) if merging.redraws() => random,
            _ => (merging.merge == HeadMerge::Shuffle).then(|| self.random(g, "order of heads")),
        };
        Shared { conditions, angles, slopes, order }
    }

    /// Seed low, seed high and step; until they are written, those of a fixed order of heads.
    fn random(&self, g: &mut Graph, name: &str) -> Tensor {
        let seed = self.config.head_merging.shuffle_seed;
        g.preset_indices(name, &[3], i32::MIN as i64..i32::MAX as i64 + 1, vec![seed as i32, (seed >> 32) as i32, 0])
    }

    fn attend(&self, g: &mut Graph, layer: usize, name: &str, x: Tensor, shared: &Shared) -> Result<(Tensor, Tap)> {
        let (c, heads) = (self.config.width, self.config.heads);
        let packed = linear(g, &format!("{name}.c_attn"), x, c, 3 * c, None)?; // (B,T,3C)
        let mut q = g.heads(packed, 0..c, heads)?; // (B,H,T,D), read in place
        let mut k = g.heads(packed, c..2 * c, heads)?;
        let v = g.heads(packed, 2 * c..3 * c, heads)?;
        if let Some(angles) = shared.angles {
            (q, k) = (g.one(Rotary, &[q, angles])?, g.one(Rotary, &[k, angles])?);
        }
        let attention = self.config.attention_of(layer);
        let (out, lse) = self.record_attention(g, layer, [q, k, v], shared)?; // (B,H,T,D), stored as (B,T,H,D)
        let y = self.merge(g, layer, out, shared)?; // (B,T,C)
        let y = linear(g, &format!("{name}.c_proj"), y, c, c, None)?;
        Ok((y, Tap { attention: attention.into(), q, k, v, out, lse, slopes: shared.slopes }))
    }

    /// The layer's attention variant with all that the model asks of it, and lse where it has one.
    fn record_attention(
        &self,
        g: &mut Graph,
        layer: usize,
        [q, k, v]: [Tensor; 3],
        shared: &Shared,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let name = self.config.attention_of(layer);
        if let Some(place) = shared.conditions.place {
            return Ok((self.attend_to_past(g, name, [q, k, v], shared, place)?, None));
        }
        if name == linear_attention::ENTRY.name {
            let op = LinearAttention { causal: true, feature_map: self.config.feature_map };
            return Ok((g.one(op, &[q, k, v])?, None));
        }
        if name != softmax_attention::ENTRY.name {
            let record = OPS.iter().find(|e| e.name == name).and_then(|e| e.attention).expect("checked by Gpt::new");
            return Ok((record(g, q, k, v, true)?, None));
        }
        let (mut op, mut inputs) = (SoftmaxAttention::causal(true), vec![q, k, v]);
        if let Some(slopes) = shared.slopes {
            op = op.with(Extra::AlibiSlopes);
            inputs.push(slopes);
        }
        let p = shared.conditions.dropout.attention;
        if p > 0.0 {
            op.dropout = Some(Dropout { p, stream: ATTENTION_STREAM + layer as u32 });
            op = op.with(Extra::Rng);
            inputs.push(shared.conditions.random()?);
        }
        let outputs = g.record(op, &inputs)?;
        Ok((outputs[0], Some(outputs[1])))
    }

    /// One token's attention: linear attention on its state, the others on all keys and values so far.
    fn attend_to_past(
        &self,
        g: &mut Graph,
        name: &str,
        [q, k, v]: [Tensor; 3],
        shared: &Shared,
        place: TokenPlace,
    ) -> Result<Tensor> {
        if name == linear_attention::ENTRY.name {
            let step = LinearAttentionStep { feature_map: self.config.feature_map };
            return g.one(step, &[q, k, v, place.position]);
        }
        let cache = KeyValueCache { length: self.config.block };
        let (k, v) = (g.one(cache, &[k, place.position])?, g.one(cache, &[v, place.position])?);
        if name != softmax_attention::ENTRY.name {
            return g.one(MeanSimilarityAttention::default(), &[q, k, v, place.length]);
        }
        let (mut op, mut inputs) =
            (SoftmaxAttention::causal(false).with(Extra::KeyLengths), vec![q, k, v, place.length]);
        if let Some(slopes) = shared.slopes {
            // Counted from the cache's end rather than the token: all scores fall by the same more, which softmax ignores.
            op = op.with(Extra::AlibiSlopes);
            inputs.push(slopes);
        }
        g.one(op, &inputs)
    }

    /// The order of a layer's heads where they are shuffled, for a generator's seed and step; a fixed order has
    /// [`HeadMerging::shuffle_seed`] and step 0.
    pub fn shuffled(layer: usize) -> HeadOrder {
        HeadOrder::Drawn { stream: SHUFFLE_STREAM + layer as u32 }
    }

    /// Heads (B,H,T,D) as one vector (B,T,C).
    fn merge(&self, g: &mut Graph, layer: usize, heads: Tensor, shared: &Shared) -> Result<Tensor> {
        let HeadMerging { merge, norm_scope: scope, norm_weight: weight, .. } = self.config.head_merging;
        match merge {
            HeadMerge::Concat => {
                let [batch, _, length, _] = g.shape(heads)[..] else { unreachable!("attention gives (B,H,T,D)") };
                g.reshape(heads, &[batch, length, self.config.width])
            }
            HeadMerge::Shift => g.one(PermuteHeads { order: HeadOrder::Shift }, &[heads]),
            HeadMerge::Shuffle => {
                let order = Self::shuffled(layer);
                g.one(PermuteHeads { order }, &[heads, shared.order.expect("made for shuffling")])
            }
            HeadMerge::Reweight => {
                let lengths = shared.conditions.lengths.filter(|_| self.config.head_merging.reads_lengths());
                let inputs: Vec<Tensor> = [heads].into_iter().chain(lengths).collect();
                g.one(ReweightHeads { scope, weight, lengths: lengths.is_some() }, &inputs)
            }
        }
    }

    fn layer_norm(&self, g: &mut Graph, name: &str, x: Tensor) -> Result<Tensor> {
        let width = self.config.width;
        let weight = g.parameter(&format!("{name}.weight"), &[width], false);
        let bias = g.parameter(&format!("{name}.bias"), &[width], false);
        g.one(LayerNorm { eps: self.config.layer_norm_eps }, &[x, weight, bias])
    }

    /// The tensors besides tokens that this model reads for `rows` rows of `length` tokens. Until others are written, rows
    /// are without padding, and an order of heads is the fixed one.
    pub fn conditions(&self, g: &mut Graph, [rows, length]: [usize; 2], dropout: DropoutRates) -> Conditions {
        let merging = self.config.head_merging;
        let random = (dropout.any() || merging.redraws()).then(|| self.random(g, "random"));
        let full = || vec![length as i32; rows];
        let lengths =
            merging.reads_lengths().then(|| g.preset_indices("lengths", &[rows], 0..length as i64 + 1, full()));
        Conditions { dropout, random, lengths, place: None }
    }

    /// Records the model with its loss, for batches of `rows` blocks. `dropout` is one probability for all places, or
    /// [`DropoutRates`]; 0 draws nothing.
    ///
    /// # Errors
    /// If a probability is not in [0, 1).
    pub fn loss(&self, rows: usize, dropout: impl Into<DropoutRates>) -> Result<LossGraph> {
        self.loss_of_length(rows, self.config.block, dropout)
    }

    /// The same for rows of `length` tokens, up to the block size.
    ///
    /// # Errors
    /// As [`Gpt::loss`], and if rows are longer than a block.
    pub fn loss_of_length(&self, rows: usize, length: usize, dropout: impl Into<DropoutRates>) -> Result<LossGraph> {
        let dropout = dropout.into();
        dropout.check()?;
        let (mut graph, shape) = (Graph::new(), [rows, length]);
        let vocabulary = self.config.vocabulary as i64;
        let tokens = graph.indices("tokens", &shape, 0..vocabulary);
        let targets = graph.indices("targets", &shape, IGNORE as i64..vocabulary);
        let conditions = self.conditions(&mut graph, shape, dropout);
        let Hidden { states, head, .. } = self.hidden(&mut graph, tokens, conditions)?;
        let losses = graph.record(LinearCrossEntropy { ignore: IGNORE }, &[states, head, targets])?;
        let Conditions { random, lengths, .. } = conditions;
        let inputs = Inputs { tokens, targets, lengths, random };
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
        // A model without learned positions lacks the second parameter; all others start as in one that has them.
        let place = graph.parameters().iter().position(|&t| t == parameter).unwrap_or_default() as u32;
        let stream = place + (place > 0 && self.config.positions != Positions::Learned) as u32;
        let random = Philox::new(seed, INIT_STREAM + stream, 0);
        (0..n as u64).map(|i| (random.normal(i) * INITIAL_DEVIATION * scale) as f32 as f64).collect()
    }
}

impl Conditions {
    fn random(&self) -> Result<Tensor> {
        let remedy = "give Conditions::random, as Gpt::conditions does";
        self.random.ok_or_else(|| Error::argument("dropout", "needs random numbers", remedy))
    }
}

fn linear(
    g: &mut Graph,
    name: &str,
    x: Tensor,
    from: usize,
    to: usize,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let weight = g.parameter(&format!("{name}.weight"), &[from, to], true);
    let bias = g.parameter(&format!("{name}.bias"), &[to], false);
    g.one(Linear { weight: WeightLayout::InOut, bias: true, activation }, &[x, weight, bias])
}
