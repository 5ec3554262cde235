//! Linear attention (Katharopoulos et al., "Transformers are RNNs", ICML 2020, eq. 4–9):
//! outₜ = φ(qₜ)ᵀS / φ(qₜ)ᵀz with S = Σₛ φ(kₛ)vₛᵀ (Dk×Dv) and z = Σₛ φ(kₛ), over the keys that query t sees.
//!
//! Time and memory grow linearly in the length. Where the denominator dₜ = φ(qₜ)ᵀz is 0, the row and its gradients are 0.
//! Saved: dₜ, and on a GPU the sums (S, z) up to the start of each segment of keys; without a mask one total.
//! Backward, with pₜ = φ(qₜ)/dₜ and cₜ = −doutₜ·outₜ:
//! dφ(qₜ) = (S doutₜ + cₜz)/dₜ, dφ(kₛ) = G vₛ + y, dvₛ = Gᵀφ(kₛ), where G = Σₜ pₜdoutₜᵀ and y = Σₜ cₜpₜ over the
//! queries that see key s. With a mask, prefixes of (S, z) and suffixes of (G, y) are carried from chunk to chunk.

mod cpu;
mod fast;
mod gpu;
mod rows;
mod schedule;
#[cfg(test)]
mod tests;
mod validation;

use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::attention::Sizes;
use crate::ops::attention::{ATTENTION_INPUTS, CAUSAL, bind};
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use std::fmt;
use std::str::FromStr;

/// The feature map φ, applied to each element. To add one: a variant, its two formulas here, and its `#elif` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeatureMap {
    /// elu(x) + 1: x + 1 above 0, eˣ below. The paper's eq. 7.
    #[default]
    Elu1,
    /// max(x, 0). Rows without a positive entry have a zero denominator.
    Relu,
}

impl FeatureMap {
    /// Every feature map; a position in it is the kernel's `FEATURE_MAP`.
    pub const ALL: [FeatureMap; 2] = [FeatureMap::Elu1, FeatureMap::Relu];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FeatureMap::Elu1 => "elu1",
            FeatureMap::Relu => "relu",
        }
    }

    /// φ(x); NaN stays NaN.
    pub fn apply<R: Real>(self, x: R) -> R {
        match self {
            FeatureMap::Elu1 => {
                if x > R::ZERO {
                    x + R::ONE
                } else {
                    x.exp()
                }
            }
            FeatureMap::Relu => {
                if x < R::ZERO {
                    R::ZERO
                } else {
                    x
                }
            }
        }
    }

    /// φ′(x), from φ(x) alone, so that backward computes no second exponential.
    pub fn slope<R: Real>(self, feature: R) -> R {
        match self {
            FeatureMap::Elu1 => {
                if feature > R::ONE {
                    R::ONE
                } else {
                    feature
                }
            }
            FeatureMap::Relu => {
                if feature > R::ZERO {
                    R::ONE
                } else {
                    R::ZERO
                }
            }
        }
    }
}

impl fmt::Display for FeatureMap {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FeatureMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known: Vec<&str> = Self::ALL.iter().map(|m| m.name()).collect();
        let remedy = format!("give one of {}", known.join(", "));
        let found = Self::ALL.into_iter().find(|m| m.name() == text);
        found.ok_or_else(|| Error::argument(format!("feature map {text}"), "is not known", remedy))
    }
}

/// Linear attention on q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv) and optionally key_lengths (B), each perhaps a
/// strided view: out (B,H,T,Dv), stored as (B,T,H,Dv).
#[derive(Debug, Clone, Copy, Default)]
pub struct LinearAttention {
    /// Whether query t sees only keys s ≤ t + S − T.
    pub causal: bool,
    /// φ.
    pub feature_map: FeatureMap,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "linear-attention",
    summary: "out = φ(q)·Σφ(k)vᵀ / φ(q)·Σφ(k), in time linear in the length",
    cases: validation::cases,
    run: Some(&RUN),
    attention: Some(|g, q, k, v, causal| g.one(LinearAttention { causal, ..Default::default() }, &[q, k, v])),
};

static RUN: RunSpec = RunSpec {
    inputs: ATTENTION_INPUTS,
    outputs: &[TensorDoc { name: "out", shape: "(B,H,T,Dv)", optional: false }],
    options: &[
        CAUSAL,
        OptionDoc { name: "feature-map", value: Some("elu1|relu"), help: "φ: elu(x)+1 (the default), or max(x, 0)" },
    ],
    record: |g| {
        let feature_map = match g.options.get("feature-map") {
            None => FeatureMap::default(),
            Some(text) => text.parse().map_err(|_| {
                Error::argument(format!("--feature-map {text}"), "is no feature map", "give elu1 or relu")
            })?,
        };
        let causal = g.switch("causal");
        let inputs = bind(g)?;
        g.graph.record(LinearAttention { causal, feature_map }, &inputs)
    },
};

impl LinearAttention {
    /// Of inputs that the contract has accepted.
    fn sizes(&self, inputs: &[&Spec]) -> Result<Sizes> {
        Sizes::of(ENTRY.name, inputs, self.causal)
    }
}

impl Op for LinearAttention {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let s = self.sizes(inputs)?;
        let segments = gpu::Segments::of(&s);
        let unit = s.batch * s.kv_heads * gpu::state_len(&s);
        Ok(Contract {
            outputs: vec![s.output()],
            saved: vec![Spec::full([s.batch, s.heads, s.queries, 1]), Spec::full([unit * segments.keys])],
            scratch_backward: unit * segments.queries + 2 * s.batch * s.heads * s.queries,
            backward_reads_outputs: vec![true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let Ok(s) = self.sizes(inputs) else { return Cost::default() };
        let rows = (s.batch * (s.heads * s.queries + s.kv_heads * s.keys)) as f64;
        let flops = 2.0 * rows * (s.key_dim * s.value_dim) as f64;
        let gradients = 4.0 * inputs[..3].iter().map(|i| i.numel() as f64).sum::<f64>();
        Cost {
            forward_flops: flops,
            forward_bytes: s.bytes(),
            backward_flops: 2.0 * flops,
            backward_bytes: s.bytes() + gradients,
        }
    }

    fn accepts_strides(&self) -> bool {
        true
    }
}

impl<R: Real> CpuOp<R> for LinearAttention {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, mode: Mode) {
        let p = cpu::Problem::new(self, &io.inputs);
        let [denominators, states] = &mut io.saved[..] else { panic!("two tensors are saved") };
        match mode {
            Mode::Definition => cpu::forward_by_definition(&p, &io.outputs[0], denominators),
            Mode::Fast => fast::forward(&p, &io.outputs[0], denominators, states.contiguous()),
        }
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, mode: Mode) {
        let p = cpu::Problem::new(self, &io.inputs);
        let Some(d_out) = &io.d_outputs[0] else { return };
        let known = cpu::Known {
            out: io.outputs[0].real(),
            d_out: d_out.real(),
            denominators: io.saved[0].all(),
            states: io.saved[1].all(),
        };
        let to = cpu::Gradients { q: io.d_inputs[0], k: io.d_inputs[1], v: io.d_inputs[2] };
        match mode {
            Mode::Definition => cpu::backward_by_definition(&p, &known, &to),
            Mode::Fast => fast::backward(&p, &known, &to),
        }
    }
}
