//! nn.MultiheadAttention, batch first: projections, softmax attention per head, output projection.
//!
//! No kernel of its own. Heads are views of the projections and the output is stored as (B,T,H,D), so nothing is
//! permuted or copied. (Vaswani et al., "Attention is all you need", 2017, section 3.2.2.)

use crate::case::Case;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::Entry;
use crate::ops::attention::CAUSAL;
use crate::ops::linear::{Linear, WeightLayout};
use crate::ops::softmax_attention::{Extra, SoftmaxAttention};
use crate::run_spec::{Given, OptionDoc, RunGraph, RunSpec, TensorDoc};

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "multi-head-attention",
    summary: "nn.MultiheadAttention: projections, attention per head, output projection",
    cases,
    run: Some(&RUN),
    attention: None,
};

/// The tensors of a multi-head attention.
#[derive(Debug, Clone, Copy)]
pub struct MultiHeadAttention {
    /// (B,T,E).
    pub query: Tensor,
    /// (B,S,Ek).
    pub key: Tensor,
    /// (B,S,Ev).
    pub value: Tensor,
    /// (E,E), (E,Ek), (E,Ev): slices of a packed in_proj_weight, or tensors of their own.
    pub projections: [Tensor; 3],
    /// (3E), if there are biases.
    pub in_proj_bias: Option<Tensor>,
    /// (E,E).
    pub out_proj_weight: Tensor,
    /// (E).
    pub out_proj_bias: Option<Tensor>,
    /// int (B).
    pub key_lengths: Option<Tensor>,
    /// int (B or 1, H or 1, T or 1, S): 0 hides a key.
    pub mask: Option<Tensor>,
    /// Added to the scores (B or 1, H or 1, T or 1, S); −inf hides a key.
    pub bias: Option<Tensor>,
    /// H, a divisor of E.
    pub heads: usize,
    /// Whether the mask is causal.
    pub causal: bool,
}

impl MultiHeadAttention {
    /// Records it: (B,T,E).
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn record(&self, g: &mut Graph) -> Result<Tensor> {
        let width = *g.shape(self.query).last().unwrap_or(&0);
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            let expected = format!("a width that divides into {} heads", self.heads);
            return Err(Error::shape(ENTRY.name, "query", expected, g.spec(self.query).to_string()));
        }
        if let Some(bias) = self.in_proj_bias
            && g.shape(bias) != [3 * width]
        {
            let expected = format!("real ({})", 3 * width);
            return Err(Error::shape(ENTRY.name, "in_proj_bias", expected, g.spec(bias).to_string()));
        }
        let linear =
            |bias: Option<Tensor>| Linear { weight: WeightLayout::OutIn, bias: bias.is_some(), activation: None };
        let mut inputs = Vec::new();
        for (i, x) in [self.query, self.key, self.value].into_iter().enumerate() {
            let bias = self.in_proj_bias.map(|b| g.slice(b, i * width..(i + 1) * width)).transpose()?;
            let arguments: Vec<Tensor> = [x, self.projections[i]].into_iter().chain(bias).collect();
            let projected = g.one(linear(bias), &arguments)?;
            inputs.push(g.heads(projected, 0..width, self.heads)?);
        }
        let mut attention = SoftmaxAttention::causal(self.causal);
        let extras = [(Extra::KeyLengths, self.key_lengths), (Extra::Mask, self.mask), (Extra::Bias, self.bias)];
        for (extra, t) in extras.into_iter().filter_map(|(extra, t)| Some((extra, t?))) {
            attention = attention.with(extra);
            inputs.push(t);
        }
        let merged = g.record(attention, &inputs)?[0];
        let [batch, _, length, _] = g.shape(merged)[..] else { unreachable!("attention gives (B,H,T,D)") };
        let merged = g.reshape(merged, &[batch, length, width])?;
        let arguments: Vec<Tensor> = [merged, self.out_proj_weight].into_iter().chain(self.out_proj_bias).collect();
        g.one(linear(self.out_proj_bias), &arguments)
    }
}

const fn doc(name: &'static str, shape: &'static str, optional: bool) -> TensorDoc {
    TensorDoc { name, shape, optional }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        doc("query", "(B,T,E)", false),
        doc("key", "(B,S,Ek)", false),
        doc("value", "(B,S,Ev)", false),
        doc("in_proj_weight", "(3E,E)", true),
        doc("q_proj_weight", "(E,E)", true),
        doc("k_proj_weight", "(E,Ek)", true),
        doc("v_proj_weight", "(E,Ev)", true),
        doc("in_proj_bias", "(3E)", true),
        doc("out_proj.weight", "(E,E)", false),
        doc("out_proj.bias", "(E)", true),
        doc("key_padding_mask", "(B,S)", true),
        doc("attn_mask", "(T,S) or (B·H,T,S)", true),
    ],
    outputs: &[doc("out", "(B,T,E)", false)],
    options: &[OptionDoc { name: "num-heads", value: Some("N"), help: "heads; required, a divisor of E" }, CAUSAL],
    record: |run| {
        let heads = run.option("num-heads", "a whole number")?;
        let heads =
            heads.ok_or_else(|| Error::argument("--num-heads", "is missing", "say how many heads there are"))?;
        let [query, key, value] =
            [run.real("query", "(B,T,E)"), run.real("key", "(B,S,Ek)"), run.real("value", "(B,S,Ev)")];
        let (query, key, value) = (query?, key?, value?);
        let width = run.graph.shape(query)[2];
        let projections = if run.has("in_proj_weight") {
            let packed = run.real("in_proj_weight", "(3E,E)")?;
            if run.graph.shape(packed)[0] != 3 * width {
                let expected = format!("real ({}, {width})", 3 * width);
                let got = run.graph.spec(packed).to_string();
                return Err(Error::shape(ENTRY.name, "in_proj_weight", expected, got));
            }
            let [q, k, v] = [0, 1, 2].map(|i| run.graph.slice(packed, i * width..(i + 1) * width));
            [q?, k?, v?]
        } else {
            [
                run.real("q_proj_weight", "(E,E)")?,
                run.real("k_proj_weight", "(E,Ek)")?,
                run.real("v_proj_weight", "(E,Ev)")?,
            ]
        };
        let optional = |run: &mut RunGraph, name: &str, letters: &str| {
            if run.has(name) { run.real(name, letters).map(Some) } else { Ok(None) }
        };
        let Masks { key_lengths, mask, bias } = masks(run, query, key, heads)?;
        let op = MultiHeadAttention {
            query,
            key,
            value,
            projections,
            in_proj_bias: optional(run, "in_proj_bias", "(3E)")?,
            out_proj_weight: run.real("out_proj.weight", "(E,E)")?,
            out_proj_bias: optional(run, "out_proj.bias", "(E)")?,
            key_lengths,
            mask,
            bias,
            heads,
            causal: run.switch("causal"),
        };
        Ok(vec![op.record(&mut run.graph)?])
    },
};

/// What nn.MultiheadAttention's two masks become.
#[derive(Default)]
struct Masks {
    key_lengths: Option<Tensor>,
    mask: Option<Tensor>,
    bias: Option<Tensor>,
}

/// key_padding_mask and attn_mask, both true where a key is ignored. Padding at the end of rows becomes key_lengths;
/// other padding and a boolean attn_mask become one mask; an attn_mask of floating point is a bias.
fn masks(run: &mut RunGraph, query: Tensor, key: Tensor, heads: usize) -> Result<Masks> {
    let (batch, queries, keys) = (run.graph.shape(query)[0], run.graph.shape(query)[1], run.graph.shape(key)[1]);
    let mut masks = Masks::default();
    let mut shown = attention_mask(run, &mut masks, [batch, heads, queries, keys])?;
    if let Some(padding) = shown_by_padding(run, batch, keys)? {
        let length = |row: &[i64]| row.iter().take_while(|&&shown| shown != 0).count();
        let rows = || padding.chunks(keys.max(1));
        if rows().all(|row| row[length(row)..].iter().all(|&shown| shown == 0)) {
            let lengths = rows().map(|row| length(row) as i64).chain(std::iter::repeat(0)).take(batch).collect();
            run.given.insert("key_lengths".into(), Given::Int(vec![batch], lengths));
            masks.key_lengths = Some(run.ints("key_lengths", &[batch], 0..keys as i64 + 1)?);
        } else {
            shown = Some(match shown {
                None => ([batch, 1, 1, keys], padding),
                Some(([b, h, t, s], mask)) => {
                    let at = |i: usize| (i / (h * t * s), i % (h * t * s), i % s);
                    let both = |(b_i, rest, s_i)| mask[(b_i % b) * h * t * s + rest] & padding[b_i * s + s_i];
                    ([batch, h, t, s], (0..batch * h * t * s).map(at).map(both).collect())
                }
            });
        }
    }
    if let Some((shape, mask)) = shown {
        run.given.insert("mask".into(), Given::Int(shape.to_vec(), mask));
        masks.mask = Some(run.ints("mask", &shape, 0..2)?);
    }
    Ok(masks)
}

/// Which keys key_padding_mask shows (B,S): 1 where it is false.
fn shown_by_padding(run: &mut RunGraph, batch: usize, keys: usize) -> Result<Option<Vec<i64>>> {
    let name = "key_padding_mask";
    match run.given.remove(name) {
        None => Ok(None),
        Some(Given::Int(shape, hidden)) if shape == [batch, keys] => {
            Ok(Some(hidden.into_iter().map(|hidden| (hidden == 0) as i64).collect()))
        }
        Some(other) => {
            let problem = format!("has shape {:?}", other.shape());
            Err(Error::argument(name, problem, format!("give booleans of shape ({batch}, {keys})")))
        }
    }
}

/// A mask's shape and values: 1 shows a key.
type Shown = ([usize; 4], Vec<i64>);

/// attn_mask (T,S) or (B·H,T,S): booleans as what they show, floating point as a bias.
fn attention_mask(run: &mut RunGraph, masks: &mut Masks, full: [usize; 4]) -> Result<Option<Shown>> {
    let name = "attn_mask";
    let [batch, heads, queries, keys] = full;
    let Some(given) = run.given.get(name) else { return Ok(None) };
    let shape = match given.shape() {
        [t, s] if [*t, *s] == [queries, keys] => [1, 1, queries, keys],
        [n, t, s] if [*n, *t, *s] == [batch * heads, queries, keys] => full,
        other => {
            let problem = format!("has shape {other:?}");
            let remedy = format!("give ({queries}, {keys}) or ({}, {queries}, {keys})", batch * heads);
            return Err(Error::argument(name, problem, remedy));
        }
    };
    if matches!(given, Given::Real(..)) {
        let bias = run.real_of_any_shape(name)?;
        masks.bias = Some(run.graph.reshape(bias, &shape)?);
        return Ok(None);
    }
    let Some(Given::Int(_, hidden)) = run.given.remove(name) else { return Ok(None) };
    Ok(Some((shape, hidden.into_iter().map(|hidden| (hidden == 0) as i64).collect())))
}

fn cases() -> Vec<Case> {
    let packed = Case::new("packed weights, ragged, causal", |g| {
        let [query, key, value] = ["query", "key", "value"].map(|name| g.normal(name, &[2, 9, 12]));
        let weight = g.scaled("in_proj_weight", &[36, 12], 0.3);
        let bias = g.normal("in_proj_bias", &[36]);
        let [q, k, v] = [0, 1, 2].map(|i| g.slice(weight, i * 12..(i + 1) * 12));
        let op = MultiHeadAttention {
            query,
            key,
            value,
            projections: [q?, k?, v?],
            in_proj_bias: Some(bias),
            out_proj_weight: g.scaled("out_proj.weight", &[12, 12], 0.3),
            out_proj_bias: Some(g.normal("out_proj.bias", &[12])),
            key_lengths: Some(g.ints("key_lengths", &[2], 0..10, vec![9, 4])),
            mask: None,
            bias: None,
            heads: 3,
            causal: true,
        };
        Ok(vec![op.record(g)?])
    });
    let apart = Case::new("weights of their own, other widths, T ≠ S", |g| {
        let query = g.normal("query", &[2, 5, 8]);
        let (key, value) = (g.normal("key", &[2, 70, 3]), g.normal("value", &[2, 70, 6]));
        let op = MultiHeadAttention {
            query,
            key,
            value,
            projections: [
                g.scaled("q_proj_weight", &[8, 8], 0.3),
                g.scaled("k_proj_weight", &[8, 3], 0.3),
                g.scaled("v_proj_weight", &[8, 6], 0.3),
            ],
            in_proj_bias: None,
            out_proj_weight: g.scaled("out_proj.weight", &[8, 8], 0.3),
            out_proj_bias: None,
            key_lengths: None,
            mask: None,
            bias: None,
            heads: 2,
            causal: false,
        };
        Ok(vec![op.record(g)?])
    });
    let masked = Case::new("a mask with gaps, and a bias for each head", |g| {
        let [query, key, value] = ["query", "key", "value"].map(|name| g.normal(name, &[2, 9, 8]));
        let weights = ["q_proj_weight", "k_proj_weight", "v_proj_weight"].map(|name| g.scaled(name, &[8, 8], 0.3));
        let op = MultiHeadAttention {
            query,
            key,
            value,
            projections: weights,
            in_proj_bias: None,
            out_proj_weight: g.scaled("out_proj.weight", &[8, 8], 0.3),
            out_proj_bias: None,
            key_lengths: None,
            mask: Some(g.ints("mask", &[2, 1, 1, 9], 0..2, (0..18).map(|i| (i % 4 > 0) as i32).collect())),
            bias: Some(g.normal("bias", &[1, 2, 9, 9])),
            heads: 2,
            causal: false,
        };
        Ok(vec![op.record(g)?])
    });
    vec![packed, apart, masked]
}
