//! How an op takes somebody's tensors in `attn run`.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use std::collections::BTreeMap;

/// A tensor that an op takes or gives, for `attn run --list` and for errors.
#[derive(Debug, Clone, Copy)]
pub struct TensorDoc {
    /// Its name in the safetensors file. `{k}` in it is a number, and what follows in brackets may be left out: so
    /// `weight_ih_l{k}[_reverse]` is a tensor of each layer and direction.
    pub name: &'static str,
    /// Its shape in letters, such as `(B,H,T,Dk)`.
    pub shape: &'static str,
    /// Whether it may be left out.
    pub optional: bool,
}

impl TensorDoc {
    /// Whether a tensor of this name is meant.
    pub fn names(&self, name: &str) -> bool {
        let Some((before, after)) = self.name.split_once("{k}") else { return self.name == name };
        let (after, optional) = after.split_once('[').unwrap_or((after, ""));
        let Some(rest) = name.strip_prefix(before) else { return false };
        let tail = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(tail) = tail.strip_prefix(after).filter(|_| tail.len() < rest.len()) else { return false };
        tail.is_empty() || tail == optional.trim_end_matches(']')
    }
}

/// A flag of an op.
#[derive(Debug, Clone, Copy)]
pub struct OptionDoc {
    /// Without dashes: `feature-map`.
    pub name: &'static str,
    /// What the value is, such as `X` or `elu1|relu`; `None`: a switch.
    pub value: Option<&'static str>,
    /// One line.
    pub help: &'static str,
}

/// Everything that `attn run OP` needs to know.
pub struct RunSpec {
    /// What it takes. For each floating-point input, backward gives `d` + name.
    pub inputs: &'static [TensorDoc],
    /// What it gives. The first takes `dout` as its gradient.
    pub outputs: &'static [TensorDoc],
    /// Its flags.
    pub options: &'static [OptionDoc],
    /// Records it and returns the outputs, in order.
    pub record: fn(&mut RunGraph) -> Result<Vec<Tensor>>,
}

/// A tensor from the user's file.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Floating point, widened.
    Real(Vec<usize>, Vec<f64>),
    /// Integers or booleans.
    Int(Vec<usize>, Vec<i64>),
}

impl Given {
    /// Its sizes.
    pub fn shape(&self) -> &[usize] {
        match self {
            Given::Real(shape, _) | Given::Int(shape, _) => shape,
        }
    }
}

/// A graph under construction from a user's tensors and flags.
pub struct RunGraph {
    /// Where the op is recorded.
    pub graph: Graph,
    /// The user's tensors by name.
    pub given: BTreeMap<String, Given>,
    /// The user's flags by name; a switch that was given holds an empty string.
    pub options: BTreeMap<String, String>,
    /// Which tensor of the graph each of the user's became, and for integers the values to write.
    pub bound: Vec<(String, Tensor)>,
}

impl RunGraph {
    /// Whether a tensor was given.
    pub fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A floating-point tensor of the user's, as a differentiable input with as many axes as `letters` has.
    ///
    /// # Errors
    /// If it is missing, holds integers, or has another number of axes.
    pub fn real(&mut self, name: &str, letters: &str) -> Result<Tensor> {
        let shape = self.real_shape(name, letters)?;
        let t = self.graph.variable(name, &shape);
        self.bound.push((name.into(), t));
        Ok(t)
    }

    /// The same without a gradient, stored in the precision of the computation.
    ///
    /// # Errors
    /// As [`RunGraph::real`].
    pub fn constant(&mut self, name: &str, letters: &str) -> Result<Tensor> {
        let shape = self.real_shape(name, letters)?;
        let t = self.graph.full_input(name, &shape);
        self.bound.push((name.into(), t));
        Ok(t)
    }

    fn real_shape(&self, name: &str, letters: &str) -> Result<Vec<usize>> {
        let shape = match self.given.get(name) {
            None => {
                return Err(Error::argument(name, "is missing from the input", format!("add it with shape {letters}")));
            }
            Some(Given::Int(..)) => {
                return Err(Error::argument(name, "holds integers", format!("give floating point of shape {letters}")));
            }
            Some(Given::Real(shape, _)) => shape.clone(),
        };
        if shape.len() != letters.split(',').count() {
            return Err(Error::argument(name, format!("has shape {shape:?}"), format!("give it as {letters}")));
        }
        Ok(shape)
    }

    /// A floating-point tensor of the user's, of any number of axes.
    ///
    /// # Errors
    /// If it is missing or holds integers.
    pub fn real_of_any_shape(&mut self, name: &str) -> Result<Tensor> {
        let axes = self.given.get(name).map_or(1, |given| given.shape().len());
        self.real(name, &vec!["…"; axes].join(","))
    }

    /// An integer tensor of the user's, with values in `range`.
    ///
    /// # Errors
    /// If it is missing, not of integers, of another shape, or out of range.
    pub fn ints(&mut self, name: &str, shape: &[usize], range: std::ops::Range<i64>) -> Result<Tensor> {
        match self.given.get(name) {
            Some(Given::Int(got, values)) if got == shape => {
                if let Some(i) = values.iter().position(|v| !range.contains(v)) {
                    let problem = format!("value {} at position {i} is out of range", values[i]);
                    let remedy = format!("give values from {} to {}", range.start, range.end - 1);
                    return Err(Error::argument(name, problem, remedy));
                }
            }
            Some(other) => {
                let kind = if matches!(other, Given::Int(..)) { "integers" } else { "floating point" };
                let problem = format!("is {kind} of shape {:?}", other.shape());
                return Err(Error::argument(name, problem, format!("give integers of shape {shape:?}")));
            }
            None => return Err(Error::argument(name, "is missing from the input", "add it")),
        }
        let t = self.graph.indices(name, shape, range);
        self.bound.push((name.into(), t));
        Ok(t)
    }

    /// Whether a switch was given.
    pub fn switch(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    /// A flag's value.
    ///
    /// # Errors
    /// If it does not parse as `T`.
    pub fn option<T: std::str::FromStr>(&self, name: &str, kind: &str) -> Result<Option<T>> {
        let parse = |text: &String| {
            text.parse().map_err(|_| {
                Error::argument(format!("--{name} {text}"), format!("is not {kind}"), format!("give {kind}"))
            })
        };
        self.options.get(name).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::TensorDoc;

    #[test]
    fn a_name_may_stand_for_many() {
        let doc = |name| TensorDoc { name, shape: "", optional: false };
        let weight = doc("weight_l{k}[_reverse]");
        for name in ["weight_l0", "weight_l12", "weight_l3_reverse"] {
            assert!(weight.names(name), "{name}");
        }
        for name in ["weight_l", "weight_l_reverse", "weight_l0_rev", "weight_l0x", "eight_l0", "weight_l{k}"] {
            assert!(!weight.names(name), "{name}");
        }
        assert!(doc("x").names("x") && !doc("x").names("x0") && doc("a{k}").names("a7") && !doc("a{k}").names("a7_"));
    }
}
