//! `attn run softmax-attention`.

use super::{Extra, SoftmaxAttention};
use crate::ops::attention::{ATTENTION_INPUTS, CAUSAL, SCALE, bind};
use crate::run_spec::{RunSpec, TensorDoc};

pub(super) static RUN: RunSpec = RunSpec {
    inputs: ATTENTION_INPUTS,
    outputs: &[
        TensorDoc { name: "out", shape: "(B,H,T,Dv)", optional: false },
        TensorDoc { name: "lse", shape: "(B,H,T)", optional: false },
    ],
    options: &[CAUSAL, SCALE],
    record: |run| {
        let inputs = bind(run)?;
        let extras = inputs.get(3).map(|_| Extra::KeyLengths).into_iter().collect();
        let (causal, scale) = (run.switch("causal"), run.option("scale", "a number")?);
        let op = SoftmaxAttention { causal, scale, extras, ..Default::default() };
        run.graph.record(op, &inputs)
    },
};
