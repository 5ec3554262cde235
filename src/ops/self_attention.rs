//! Scaled dot-product self-attention over one sequence: q = x·W_q, k = x·W_k, v = x·W_v, out = softmax(q·kᵀ/√Dk)·v.
//!
//! No kernel of its own: three linear layers and softmax attention with one head, on the graph.

use crate::case::Case;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::Entry;
use crate::ops::attention::CAUSAL;
use crate::ops::linear::{Linear, WeightLayout};
use crate::ops::softmax_attention::SoftmaxAttention;
use crate::run_spec::{RunSpec, TensorDoc};

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "self-attention",
    summary: "softmax(x·W_q·(x·W_k)ᵀ/√Dk)·x·W_v over one sequence",
    cases,
    run: Some(&RUN),
    attention: None,
};

/// Records self-attention of x (B,n,E) with w_q, w_k (E,Dk) and w_v (E,Dv): (B,n,Dv).
///
/// # Errors
/// If a shape does not fit.
pub fn record(g: &mut Graph, [x, w_q, w_k, w_v]: [Tensor; 4], causal: bool) -> Result<Tensor> {
    let linear = Linear { weight: WeightLayout::InOut, bias: false, activation: None };
    if g.shape(x).len() != 3 {
        return Err(Error::shape(ENTRY.name, g.name(x), "(B, n, E)", g.spec(x).to_string()));
    }
    let mut project = |w: Tensor| -> Result<Tensor> {
        let projected = g.one(linear, &[x, w])?;
        let width = g.shape(projected)[2];
        g.heads(projected, 0..width, 1)
    };
    let (q, k, v) = (project(w_q)?, project(w_k)?, project(w_v)?);
    let out = g.record(SoftmaxAttention::causal(causal), &[q, k, v])?[0];
    let [batch, _, n, width] = g.shape(out)[..] else { unreachable!("attention gives (B,H,T,D)") };
    g.reshape(out, &[batch, n, width])
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(B,n,E)", optional: false },
        TensorDoc { name: "w_q", shape: "(E,Dk)", optional: false },
        TensorDoc { name: "w_k", shape: "(E,Dk)", optional: false },
        TensorDoc { name: "w_v", shape: "(E,Dv)", optional: false },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(B,n,Dv)", optional: false }],
    options: &[CAUSAL],
    record: |run| {
        let causal = run.switch("causal");
        let inputs = [
            run.real("x", "(B,n,E)")?,
            run.real("w_q", "(E,Dk)")?,
            run.real("w_k", "(E,Dk)")?,
            run.real("w_v", "(E,Dv)")?,
        ];
        Ok(vec![record(&mut run.graph, inputs, causal)?])
    },
};

fn cases() -> Vec<Case> {
    let case = |(b, n, e): (usize, usize, usize), (dk, dv): (usize, usize)| {
        Case::new(format!("B{b} n{n} E{e} Dk{dk} Dv{dv}"), move |g| {
            let x = g.normal("x", &[b, n, e]);
            let (w_q, w_k) = (g.scaled("w_q", &[e, dk], 0.3), g.scaled("w_k", &[e, dk], 0.3));
            let w_v = g.scaled("w_v", &[e, dv], 0.3);
            Ok(vec![record(g, [x, w_q, w_k, w_v], false)?])
        })
    };
    vec![case((1, 15, 20), (37, 2)), case((2, 66, 7), (5, 7))]
}
