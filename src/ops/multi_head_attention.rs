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
        let linear = |bias: Option<Tensor>| Linear { weight: WeightLayout::OutIn, bias: bias.is_some(), gelu: None };
        let mut inputs = Vec::new();
        for (i, x) in [self.query, self.key, self.value].into_iter().enumerate() {
            let bias = self.in_proj_bias.map(|b| g.slice(b, i * width..(i + 1) * width)).transpose()?;
            let arguments: Vec<Tensor> = [x, self.projections[i]].into_iter().chain(bias).collect();
            let projected = g.one(linear(bias), &arguments)?;
            inputs.push(g.heads(projected, 0..width, self.heads)?);
        }
        inputs.extend(self.key_lengths);
        let extras = self.key_lengths.map(|_| Extra::KeyLengths).into_iter().collect();
        let attention = SoftmaxAttention { causal: self.causal, extras, ..Default::default() };
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
        let op = MultiHeadAttention {
            query,
            key,
            value,
            projections,
            in_proj_bias: optional(run, "in_proj_bias", "(3E)")?,
            out_proj_weight: run.real("out_proj.weight", "(E,E)")?,
            out_proj_bias: optional(run, "out_proj.bias", "(E)")?,
            key_lengths: key_lengths(run, key)?,
            heads,
            causal: run.switch("causal"),
        };
        Ok(vec![op.record(&mut run.graph)?])
    },
};

/// key_padding_mask (true: ignored) as key_lengths: the padding must stand at the end.
fn key_lengths(run: &mut RunGraph, key: Tensor) -> Result<Option<Tensor>> {
    let name = "key_padding_mask";
    let (batch, keys) = (run.graph.shape(key)[0], run.graph.shape(key)[1]);
    let lengths = match run.given.get(name) {
        None => return Ok(None),
        Some(Given::Int(shape, mask)) if *shape == [batch, keys] => {
            let mut lengths = Vec::new();
            for (b, row) in mask.chunks(keys.max(1)).enumerate() {
                let length = row.iter().position(|&m| m != 0).unwrap_or(keys);
                if let Some(gap) = row[length..].iter().position(|&m| m == 0) {
                    let problem = format!("row {b} hides key {length} but shows key {}", length + gap);
                    return Err(Error::argument(name, problem, "mask padding at the end of a row only"));
                }
                lengths.push(length as i64);
            }
            lengths
        }
        Some(other) => {
            let problem = format!("has shape {:?}", other.shape());
            return Err(Error::argument(name, problem, format!("give booleans of shape ({batch}, {keys})")));
        }
    };
    run.given.remove(name);
    run.given.insert("key_lengths".into(), Given::Int(vec![batch], lengths));
    run.ints("key_lengths", &[batch], 0..keys as i64 + 1).map(Some)
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
            heads: 2,
            causal: false,
        };
        Ok(vec![op.record(g)?])
    });
    vec![packed, apart]
}
