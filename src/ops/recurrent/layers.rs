//! nn.GRU and nn.RNN, batch first, by their parameters' names: layers one above the other, each one product for the gates of
//! x, with b_ih, and one recurrence over both directions.

use super::{Cell, Recurrence};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::concatenate::Concatenate;
use crate::ops::dropout::Dropout;
use crate::ops::linear::{Linear, WeightLayout};
use crate::run_spec::{Given, OptionDoc, RunGraph, RunSpec, TensorDoc};

/// The parameters of one direction of a layer with inputs of width I and G gates of H units.
#[derive(Debug, Clone, Copy)]
pub struct Direction {
    /// (G·H,I).
    pub weight_ih: Tensor,
    /// (G·H,H).
    pub weight_hh: Tensor,
    /// b_ih and b_hh, each (G·H).
    pub biases: Option<[Tensor; 2]>,
}

/// A layer: forwards, and where there are two, backwards in time.
pub type Layer = Vec<Direction>;

/// The sizes of nn.GRU or nn.RNN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stack {
    /// What happens in a step.
    pub cell: Cell,
    /// I: the width of what the lowest layer takes.
    pub inputs: usize,
    /// H: hidden units of a direction.
    pub hidden: usize,
    /// One above the other.
    pub layers: usize,
    /// 1, or 2: forwards, and backwards in time.
    pub directions: usize,
    /// Whether there are b_ih and b_hh.
    pub bias: bool,
}

impl Stack {
    /// The layers, without dropout. `parameter` records each parameter, in nn.GRU's order and by its name: `weight_ih_l0`
    /// (G·H,I), `weight_hh_l0` (G·H,H), `bias_ih_l0` and `bias_hh_l0` (G·H), with `_reverse` those of the second direction,
    /// then those of `l1`, whose inputs are directions·H wide.
    ///
    /// # Errors
    /// Those of `parameter`.
    pub fn layers(&self, mut parameter: impl FnMut(&str, &[usize]) -> Result<Tensor>) -> Result<Layers> {
        let columns = self.cell.gates() * self.hidden;
        let mut direction = |k: usize, suffix: &str| -> Result<Direction> {
            let inputs = if k == 0 { self.inputs } else { self.directions * self.hidden };
            let mut parameter = |name: &str, shape: &[usize]| parameter(&format!("{name}_l{k}{suffix}"), shape);
            Ok(Direction {
                weight_ih: parameter("weight_ih", &[columns, inputs])?,
                weight_hh: parameter("weight_hh", &[columns, self.hidden])?,
                biases: match self.bias {
                    true => Some([parameter("bias_ih", &[columns])?, parameter("bias_hh", &[columns])?]),
                    false => None,
                },
            })
        };
        let layers = (0..self.layers).map(|k| {
            let suffixes = ["", "_reverse"].into_iter().take(self.directions);
            suffixes.map(|suffix| direction(k, suffix)).collect()
        });
        let layers = layers.collect::<Result<Vec<Layer>>>()?;
        Ok(Layers { cell: self.cell, layers, dropout: None })
    }
}

/// Layers of a recurrence; each takes what the one below gives, (B,T,directions·H).
#[derive(Debug, Clone)]
pub struct Layers {
    /// What happens in a step.
    pub cell: Cell,
    /// From the lowest.
    pub layers: Vec<Layer>,
    /// Between layers: the probability, the rng (see [`Dropout`]), and the stream of the lowest; each has the next.
    pub dropout: Option<(f64, Tensor, u32)>,
}

impl Layers {
    /// Records them on x (B,T,I), with h_0 (layers·directions,B,H) and lengths int (B) if there are. Gives out
    /// (B,T,directions·H), zeros past a length, and h_n (layers·directions,B,H) at each sequence's last valid step.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn record(
        &self,
        g: &mut Graph,
        x: Tensor,
        h_0: Option<Tensor>,
        lengths: Option<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (mut below, mut last) = (x, Vec::new());
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some((p, rng, stream)) = self.dropout.filter(|_| i > 0) {
                below = g.one(Dropout { p, stream: stream + i as u32 - 1 }, &[below, rng])?;
            }
            let mut inputs = Vec::new();
            for direction in layer {
                let linear = Linear { weight: WeightLayout::OutIn, bias: direction.biases.is_some(), activation: None };
                let of_x = [below, direction.weight_ih].into_iter().chain(direction.biases.map(|b| b[0]));
                inputs.push(g.one(linear, &of_x.collect::<Vec<_>>())?);
                inputs.extend([direction.weight_hh].into_iter().chain(direction.biases.map(|b| b[1])));
            }
            let directions = layer.len();
            if let Some(h_0) = h_0 {
                let own = i * directions..(i + 1) * directions;
                inputs.push(if self.layers.len() == 1 { h_0 } else { g.slice(h_0, own)? });
            }
            inputs.extend(lengths);
            let op = Recurrence {
                cell: self.cell,
                directions,
                bias: layer.iter().any(|d| d.biases.is_some()),
                initial: h_0.is_some(),
                lengths: lengths.is_some(),
                kernel: None,
            };
            let [out, h_n] = g.record(op, &inputs)?[..] else { unreachable!("two outputs") };
            below = out;
            last.push(h_n);
        }
        let h_n = if let [only] = last[..] { only } else { g.one(Concatenate { axis: 0 }, &last)? };
        Ok((below, h_n))
    }
}

const fn doc(name: &'static str, shape: &'static str, optional: bool) -> TensorDoc {
    TensorDoc { name, shape, optional }
}

const OUTPUTS: &[TensorDoc] = &[doc("out", "(B,T,directions·H)", false), doc("h_n", "(layers·directions,B,H)", false)];

pub(super) static GRU_RUN: RunSpec = RunSpec {
    inputs: &[
        doc("x", "(B,T,I)", false),
        doc("lengths", "(B), each in 0…T", true),
        doc("h_0", "(layers·directions,B,H)", true),
        doc("weight_ih_l{k}[_reverse]", "(3H,I), above layer 0 (3H,directions·H)", false),
        doc("weight_hh_l{k}[_reverse]", "(3H,H)", false),
        doc("bias_ih_l{k}[_reverse]", "(3H)", true),
        doc("bias_hh_l{k}[_reverse]", "(3H)", true),
        doc("dh_n", "(layers·directions,B,H)", true),
    ],
    outputs: OUTPUTS,
    options: &[],
    record: |run| record(run, Cell::Gru),
};

pub(super) static RNN_RUN: RunSpec = RunSpec {
    inputs: &[
        doc("x", "(B,T,I)", false),
        doc("lengths", "(B), each in 0…T", true),
        doc("h_0", "(layers·directions,B,H)", true),
        doc("weight_ih_l{k}[_reverse]", "(H,I), above layer 0 (H,directions·H)", false),
        doc("weight_hh_l{k}[_reverse]", "(H,H)", false),
        doc("bias_ih_l{k}[_reverse]", "(H)", true),
        doc("bias_hh_l{k}[_reverse]", "(H)", true),
        doc("dh_n", "(layers·directions,B,H)", true),
    ],
    outputs: OUTPUTS,
    options: &[OptionDoc {
        name: "nonlinearity",
        value: Some("tanh|relu|identity"),
        help: "of the new state; tanh unless given",
    }],
    record: |run| {
        let cell = match run.options.get("nonlinearity").map(String::as_str) {
            None | Some("tanh") => Cell::Tanh,
            Some("relu") => Cell::Relu,
            Some("identity") => Cell::Identity,
            Some(other) => {
                let argument = format!("--nonlinearity {other}");
                return Err(Error::argument(argument, "is unknown", "give tanh, relu or identity"));
            }
        };
        record(run, cell)
    },
};

/// Layers, directions, sizes and biases follow from the names that are there.
fn record(run: &mut RunGraph, cell: Cell) -> Result<Vec<Tensor>> {
    let x = run.real("x", "(B,T,I)")?;
    let [batch, length, width] = run.graph.shape(x)[..] else { unreachable!("three axes") };
    let letters = if cell.gates() == 1 { "(H,H)".into() } else { format!("({}H,H)", cell.gates()) };
    let hidden = match run.given.get("weight_hh_l0") {
        Some(Given::Real(shape, _)) if shape.len() == 2 && shape[0] == cell.gates() * shape[1] && shape[1] > 0 => {
            shape[1]
        }
        Some(other) => {
            let kind = if matches!(other, Given::Int(..)) { "integers" } else { "floating point" };
            let problem = format!("is {kind} of shape {:?}", other.shape());
            let remedy = format!("give floating point of shape {letters}");
            return Err(Error::argument("tensor `weight_hh_l0`", problem, remedy));
        }
        None => {
            let remedy = format!("add it with shape {letters}");
            return Err(Error::argument("weight_hh_l0", "is missing from the input", remedy));
        }
    };
    let reverse = ["weight_ih", "weight_hh"].iter().any(|n| run.has(&format!("{n}_l0_reverse")));
    let layers = (0..).take_while(|k| ["ih", "hh"].iter().any(|n| run.has(&format!("weight_{n}_l{k}")))).count();
    let stack = Stack {
        cell,
        inputs: width,
        hidden,
        layers,
        directions: 1 + reverse as usize,
        bias: ["bias_ih_l0", "bias_hh_l0"].iter().any(|n| run.has(n)),
    };
    let recorded = stack.layers(|name, shape| parameter(run, name.into(), shape))?;
    let h_0 = match run.has("h_0") {
        true => Some(parameter(run, "h_0".into(), &[layers * stack.directions, batch, hidden])?),
        false => None,
    };
    let lengths = match run.has("lengths") {
        true => Some(run.ints("lengths", &[batch], 0..length as i64 + 1)?),
        false => None,
    };
    let (out, h_n) = recorded.record(&mut run.graph, x, h_0, lengths)?;
    Ok(vec![out, h_n])
}

/// A tensor of the user's that must have this shape.
fn parameter(run: &mut RunGraph, name: String, shape: &[usize]) -> Result<Tensor> {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let letters = format!("({})", sizes.join(","));
    let t = run.real(&name, &letters)?;
    let got = run.graph.shape(t);
    if got != shape {
        let problem = format!("has shape {got:?}");
        let remedy = format!("give it as {letters}: x and weight_hh_l0 set the sizes");
        return Err(Error::argument(format!("tensor `{name}`"), problem, remedy));
    }
    Ok(t)
}
