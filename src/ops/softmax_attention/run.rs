//! `attn run softmax-attention`.

use super::{Extra, SoftmaxAttention};
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::ops::attention::{CAUSAL, SCALE, bind};
use crate::ops::dropout::Dropout;
use crate::run_spec::{Given, OptionDoc, RunGraph, RunSpec, TensorDoc};

const fn doc(name: &'static str, shape: &'static str, optional: bool) -> TensorDoc {
    TensorDoc { name, shape, optional }
}

const fn option(name: &'static str, value: Option<&'static str>, help: &'static str) -> OptionDoc {
    OptionDoc { name, value, help }
}

/// Shape of mask and bias: each axis but the last may be 1.
const BROADCAST: &str = "(B|1,H|1,T|1,S)";

pub(super) static RUN: RunSpec = RunSpec {
    inputs: &[
        doc("q", "(B,H,T,Dk)", false),
        doc("k", "(B,Hk,S,Dk)", false),
        doc("v", "(B,Hk,S,Dv)", false),
        doc("key_lengths", "(B)", true),
        doc("cu_seqlens_q", "(N+1)", true),
        doc("cu_seqlens_k", "(N+1)", true),
        doc("mask", BROADCAST, true),
        doc("bias", BROADCAST, true),
        doc("alibi_slopes", "(H)", true),
        doc("dlse", "(B,H,T)", true),
    ],
    outputs: &[doc("out", "(B,H,T,Dv)", false), doc("lse", "(B,H,T)", false), doc("weights", "(B,H,T,S)", true)],
    options: &[
        CAUSAL,
        SCALE,
        option("window", Some("LEFT,RIGHT"), "see t + S − T − LEFT ≤ s ≤ t + S − T + RIGHT only; -1: no bound"),
        option("softcap", Some("X"), "scores become X·tanh(score/X)"),
        option("alibi", None, "scores fall by slope·|t + S − T − s|; slopes 2^(−8(h+1)/H) unless given"),
        option("dropout", Some("P"), "drop weights; element ((b·H+h)·T+t)·S+s of Philox, stream 0, step 0"),
        option("seed", Some("N"), "seed of the dropout [default: 0]"),
        option("weights", None, "also give the softmax weights, before dropout"),
        option("unordered", None, "on a GPU: gradients in one pass whose sums of dq may change in their last bits"),
        option("splits", Some("N"), "on a GPU: split the keys among N blocks [default: by shape]"),
    ],
    record,
};

fn record(run: &mut RunGraph) -> Result<Vec<Tensor>> {
    let mut inputs = bind(run)?;
    let mut op = SoftmaxAttention {
        causal: run.switch("causal"),
        scale: run.option("scale", "a number")?,
        window: window(run, &inputs)?,
        softcap: run.option("softcap", "a number")?,
        dropout: dropout(run)?,
        extras: inputs.get(3).map(|_| Extra::KeyLengths).into_iter().collect(),
        weights: run.switch("weights"),
        unordered: run.switch("unordered"),
        splits: run.option("splits", "a whole number")?,
    };
    let [heads, queries] = [1, 2].map(|axis| run.graph.shape(inputs[0])[axis]);
    let keys = run.graph.shape(inputs[1])[2];
    let mut give = |extra: Extra, t: Tensor| {
        op.extras.push(extra);
        inputs.push(t);
    };
    for (extra, total) in [(Extra::CuSeqlensQ, queries), (Extra::CuSeqlensK, keys)] {
        if run.has(extra.name()) {
            give(extra, bounds(run, extra.name(), total)?);
        }
    }
    if run.has("mask") {
        give(Extra::Mask, mask(run)?);
    }
    if run.has("bias") {
        give(Extra::Bias, run.real("bias", BROADCAST)?);
    }
    if run.switch("alibi") && !run.has("alibi_slopes") {
        let slopes = (1..=heads).map(|h| 2f64.powf(-8.0 * h as f64 / heads as f64)).collect();
        run.given.insert("alibi_slopes".into(), Given::Real(vec![heads], slopes));
    }
    if run.has("alibi_slopes") {
        give(Extra::AlibiSlopes, run.constant("alibi_slopes", "(H)")?);
    }
    if let Some(seed) = run.option::<u64>("seed", "a whole number")? {
        if op.dropout.is_none() {
            return Err(Error::argument("--seed", "has nothing to draw", "give --dropout P too, or leave it out"));
        }
        run.given.insert("rng".into(), rng(seed));
    } else if op.dropout.is_some() {
        run.given.insert("rng".into(), rng(0));
    }
    if op.dropout.is_some() {
        op.extras.push(Extra::Rng);
        inputs.push(run.ints("rng", &[3], i32::MIN as i64..i32::MAX as i64 + 1)?);
    }
    run.graph.record(op, &inputs)
}

/// Seed low, seed high, step.
fn rng(seed: u64) -> Given {
    Given::Int(vec![3], vec![seed as u32 as i32 as i64, (seed >> 32) as u32 as i32 as i64, 0])
}

fn dropout(run: &RunGraph) -> Result<Option<Dropout>> {
    let p: Option<f64> = run.option("dropout", "a number")?;
    if let Some(p) = p.filter(|p| !(0.0..=1.0).contains(p)) {
        return Err(Error::argument(format!("--dropout {p}"), "is no probability", "give 0 to 1"));
    }
    Ok(p.map(|p| Dropout { p, stream: 0 }))
}

/// `--window LEFT,RIGHT`, where −1 reaches past every key.
fn window(run: &RunGraph, inputs: &[Tensor]) -> Result<Option<(usize, usize)>> {
    let Some(text) = run.options.get("window") else { return Ok(None) };
    let everything = run.graph.shape(inputs[0])[2] + run.graph.shape(inputs[1])[2];
    let reach = |text: &str| match text.trim().parse::<i64>() {
        Ok(-1) => Some(everything),
        Ok(n) => usize::try_from(n).ok().map(|n| n.min(everything)),
        Err(_) => None,
    };
    let both = text.split_once(',').and_then(|(left, right)| Some((reach(left)?, reach(right)?)));
    let wrong = || Error::argument(format!("--window {text}"), "is no window", "give LEFT,RIGHT, such as 128,0");
    let (left, right) = both.ok_or_else(wrong)?;
    if run.switch("causal") && right > 0 && right < everything {
        let remedy = format!("give --window {left},0, or leave --causal out");
        return Err(Error::argument(format!("--window {text}"), "looks ahead, which --causal forbids", remedy));
    }
    Ok(Some((left, if run.switch("causal") { 0 } else { right })))
}

/// Bounds of packed sequences: from 0 to `total`, not decreasing.
fn bounds(run: &mut RunGraph, name: &str, total: usize) -> Result<Tensor> {
    let shape = run.given[name].shape().to_vec();
    if let Given::Int(_, values) = &run.given[name] {
        let wrong = |problem: String| {
            Err(Error::argument(name, problem, format!("give N+1 bounds that rise from 0 to {total}")))
        };
        if shape.len() != 1 || values.len() < 2 {
            return wrong(format!("has shape {shape:?}"));
        }
        if let Some(i) = values.windows(2).position(|pair| pair[0] > pair[1]) {
            return wrong(format!("falls from {} to {} at position {}", values[i], values[i + 1], i + 1));
        }
        let (first, last) = (values[0], values[values.len() - 1]);
        if (first, last) != (0, total as i64) {
            return wrong(format!("goes from {first} to {last}"));
        }
    }
    run.ints(name, &shape, 0..total as i64 + 1)
}

/// Booleans or integers, where all that is not 0 is one.
fn mask(run: &mut RunGraph) -> Result<Tensor> {
    let shape = run.given["mask"].shape().to_vec();
    match run.given.get_mut("mask") {
        Some(Given::Int(_, values)) => values.iter_mut().for_each(|x| *x = (*x != 0) as i64),
        _ => {
            let remedy = format!("give booleans or integers of shape {BROADCAST}; what is added to scores is `bias`");
            return Err(Error::argument("mask", "holds floating point", remedy));
        }
    }
    run.ints("mask", &shape, 0..2)
}
