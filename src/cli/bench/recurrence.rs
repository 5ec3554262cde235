//! The recurrences in `attn bench`: what runs over T in O(T) steps, one after another, beside attention over T.
//!
//! They have no heads: the width of all heads together is the hidden size, and the width of what they take, unless asked
//! otherwise. Rows name their own sizes.

use super::{Direction, Setting};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::recurrent::{Cell, Stack};
use serde::Serialize;

/// The names in the registry.
pub const NAMES: [&str; 2] = ["gru", "rnn"];

/// The options.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Recurrences: --variants gru, rnn (tanh)")]
pub struct Args {
    /// Hidden units of a direction [default: heads × head size, attention's width]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    hidden: Option<u32>,
    /// Width of the inputs [default: as --hidden]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    inputs: Option<u32>,
    /// Layers, one above the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    layers: u32,
    /// Run over each sequence backwards too
    #[arg(long)]
    bidirectional: bool,
}

/// Sizes of a recurrence; fields of a row in the JSON file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Recurrence {
    /// H.
    pub hidden: usize,
    /// I.
    pub inputs: usize,
    /// One above the other.
    pub layers: usize,
    /// Whether there are two directions.
    pub bidirectional: bool,
}

impl Recurrence {
    /// From the options and the width of all heads together.
    ///
    /// # Errors
    /// If options were given that no variant asked for takes, or causality is asked of what looks ahead.
    pub fn new(args: &Args, width: usize, asked: bool, causal: bool) -> Result<Recurrence> {
        let given = [
            (args.hidden.is_some(), "--hidden"),
            (args.inputs.is_some(), "--inputs"),
            (args.layers != 1, "--layers"),
            (args.bidirectional, "--bidirectional"),
        ];
        if let Some((_, flag)) = given.iter().find(|(given, _)| *given && !asked) {
            return Err(Error::argument(
                *flag,
                "is for recurrences, and none is timed",
                "add gru or rnn to --variants",
            ));
        }
        if args.bidirectional && causal {
            let problem = "contradict each other: the second direction has seen what follows";
            return Err(Error::argument("--bidirectional and --causal", problem, "leave one out"));
        }
        let hidden = args.hidden.map_or(width, |n| n as usize);
        let inputs = args.inputs.map_or(hidden, |n| n as usize);
        Ok(Recurrence { hidden, inputs, layers: args.layers as usize, bidirectional: args.bidirectional })
    }

    /// For people: `hidden 256 · inputs 768 · 2 layers · both ways`.
    pub fn summary(&self) -> String {
        let Recurrence { hidden, inputs, layers, bidirectional } = self;
        let mut parts = vec![format!("hidden {hidden}")];
        parts.extend((inputs != hidden).then(|| format!("inputs {inputs}")));
        parts.extend((*layers > 1).then(|| format!("{layers} layers")));
        parts.extend(bidirectional.then(|| "both ways".to_string()));
        parts.join(" · ")
    }

    /// Records it on x (B,T,I) and its parameters; gives each with the scale of the normal numbers that it shall hold, and
    /// the output (B,T,directions·H).
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn record(
        &self,
        graph: &mut Graph,
        name: &str,
        s: &Setting,
        length: usize,
    ) -> Result<(Vec<(Tensor, f64)>, Tensor)> {
        let forward = s.direction == Direction::Forward;
        let shape = [s.batch, length, self.inputs];
        let x = if forward { graph.input("x", &shape) } else { graph.variable("x", &shape) };
        let stack = Stack {
            cell: if name == NAMES[0] { Cell::Gru } else { Cell::Tanh },
            inputs: self.inputs,
            hidden: self.hidden,
            layers: self.layers,
            directions: 1 + self.bidirectional as usize,
            bias: true,
        };
        // As wide as nn.GRU's uniform numbers, so that no gate is always open or shut.
        let scale = (3.0 * self.hidden as f64).powf(-0.5);
        let mut inputs = vec![(x, 1.0)];
        let layers = stack.layers(|name, shape| {
            let t = match forward {
                true => graph.input(name, shape),
                false => graph.parameter(name, shape, false),
            };
            inputs.push((t, scale));
            Ok(t)
        })?;
        let (out, _) = layers.record(graph, x, None, None)?;
        Ok((inputs, out))
    }
}
