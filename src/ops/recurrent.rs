//! Recurrences over time, hₚ = cell(gates of x, hₚ₋₁): the GRU's and Elman's, in one or both directions.
//!
//! GRU (Cho et al., "Learning phrase representations using RNN encoder–decoder", 2014, with the reset gate after the
//! product, as in cuDNN and nn.GRU): with a = x·W_ihᵀ + b_ih in three parts r, z, n, and c = h·W_hhᵀ + b_hh likewise,
//! r = σ(aᵣ + cᵣ), z = σ(a_z + c_z), n = tanh(aₙ + r·cₙ), h′ = (1 − z)·n + z·h.
//! Elman (nn.RNN): h′ = g(a + c), g the tanh, relu or identity.
//!
//! The op takes a, which is one product over all steps, and does the recurrence. The second direction begins at each
//! sequence's last valid step. Past a length outputs and gradients are zeros, and what is there is not read.
//!
//! Saves r, z, n and cₙ (GRU), or nothing (Elman). Backward goes through time once; with ga and gc the gradients of a and c,
//! which differ in n only (gcₙ = r·gaₙ), dh = gc·W_hh + z·dh′; then dW_hh = Σ gcᵀ·h and db_hh = Σ gc over all steps at once.
//!
//! - `cpu`: the definition, and the fast one.
//! - `gpu`: the launches; `kernels/recurrent.cu`.
//! - `layers`: nn.GRU and nn.RNN by their parameters' names.

mod cases;
mod cells;
mod cpu;
mod gpu;
mod layers;
#[cfg(test)]
mod tests;

pub use layers::{Direction, Layer, Layers, Stack};

use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::expect;
use crate::precision::Precision;

/// What happens in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cell {
    /// Three gates.
    Gru,
    /// h′ = tanh(a + c).
    Tanh,
    /// h′ = max(a + c, 0).
    Relu,
    /// h′ = a + c.
    Identity,
}

impl Cell {
    /// Rows of W_hh for each hidden unit.
    pub fn gates(self) -> usize {
        if self == Cell::Gru { 3 } else { 1 }
    }

    /// Numbers that forward saves for each hidden unit and step.
    fn saved(self) -> usize {
        if self == Cell::Gru { 4 } else { 0 }
    }
}

/// What computes a recurrence on a GPU (`kernels/recurrent.cu`, `kernels/recurrent_mma.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// All steps in one launch, weights on chip, products on tensor cores: tensors stored in 16 bits, sm_80 and later.
    TensorCores,
    /// All steps in one launch, weights on chip, products in f32.
    OnChip,
    /// A launch a step, weights in memory, products in f32.
    Stepwise,
}

/// A recurrence on, for each direction, [gates of x (B,T,G·H), W_hh (G·H,H), and with a bias b_hh (G·H)]; then, where
/// there are, h_0 (directions,B,H) and lengths int (B), each in 0…T. Gives out (B,T,directions·H) and h_n
/// (directions,B,H), the state after each sequence's last valid step; h_0, or zeros, where the length is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recurrence {
    /// What happens in a step.
    pub cell: Cell,
    /// 1, or 2: forwards, and backwards in time.
    pub directions: usize,
    /// Whether there is a b_hh for each direction.
    pub bias: bool,
    /// Whether h_0 is given; otherwise it is zeros.
    pub initial: bool,
    /// Whether lengths are given; otherwise each is T.
    pub lengths: bool,
    /// On a GPU, this one rather than the best that fits: for comparison.
    pub kernel: Option<Kernel>,
}

/// The GRU in the registry.
pub static GRU: Entry = Entry {
    name: "gru",
    summary: "nn.GRU: layers of gated recurrent units, in one or both directions",
    cases: cases::gru,
    run: Some(&layers::GRU_RUN),
    attention: None,
};

/// Elman's in the registry.
pub static RNN: Entry = Entry {
    name: "rnn",
    summary: "nn.RNN: layers of Elman's recurrence with tanh, relu or identity, in one or both directions",
    cases: cases::rnn,
    run: Some(&layers::RNN_RUN),
    attention: None,
};

/// Sizes of a recurrence.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    hidden: usize,
    /// G·H: columns of the gates.
    columns: usize,
    directions: usize,
}

impl Sizes {
    /// Of the tensors that backward keeps of every step: (directions,B,T,G·H) and (directions,B,T,H).
    fn steps(&self) -> usize {
        self.directions * self.batch * self.length
    }
}

impl Recurrence {
    /// Tensors of each direction.
    fn per_direction(&self) -> usize {
        2 + self.bias as usize
    }

    /// The input that is the gates of x of direction `d`; W_hh and b_hh come after it.
    fn gates_at(&self, d: usize) -> usize {
        d * self.per_direction()
    }

    /// The input that is h_0.
    fn initial_at(&self) -> Option<usize> {
        self.initial.then_some(self.directions * self.per_direction())
    }

    /// The input that is the lengths.
    fn lengths_at(&self) -> Option<usize> {
        self.lengths.then_some(self.directions * self.per_direction() + self.initial as usize)
    }

    fn sizes(&self, gates: &[usize], weight: &[usize]) -> Sizes {
        Sizes { batch: gates[0], length: gates[1], hidden: weight[1], columns: weight[0], directions: self.directions }
    }
}

impl Op for Recurrence {
    fn name(&self) -> &'static str {
        if self.cell == Cell::Gru { GRU.name } else { RNN.name }
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let count = self.directions * self.per_direction() + self.initial as usize + self.lengths as usize;
        if !(1..=2).contains(&self.directions) || inputs.len() != count {
            let names = "per direction gates, weight_hh and bias_hh if any; then h_0 and lengths if any";
            return Err(Error::shape(self.name(), "inputs", names, format!("{} tensors", inputs.len())));
        }
        let gates = self.cell.gates();
        let (&[_, _, columns], &Kind::Real) = (&inputs[0].shape[..], &inputs[0].kind) else {
            let expected = format!("real (B, T, {gates}·H)");
            return Err(Error::shape(self.name(), "gates", expected, inputs[0].to_string()));
        };
        if columns == 0 || !columns.is_multiple_of(gates) {
            let expected = format!("columns that divide into {gates} gates of at least one hidden unit");
            return Err(Error::shape(self.name(), "gates", expected, inputs[0].to_string()));
        }
        let hidden = columns / gates;
        for d in 0..self.directions {
            let at = self.gates_at(d);
            expect(self.name(), "gates", inputs[at], inputs[0].clone())?;
            expect(self.name(), "weight_hh", inputs[at + 1], Spec::real([columns, hidden]))?;
            if self.bias {
                expect(self.name(), "bias_hh", inputs[at + 2], Spec::real([columns]))?;
            }
        }
        let [batch, length] = [inputs[0].shape[0], inputs[0].shape[1]];
        if let Some(at) = self.initial_at() {
            expect(self.name(), "h_0", inputs[at], Spec::real([self.directions, batch, hidden]))?;
        }
        if let Some(at) = self.lengths_at() {
            expect(self.name(), "lengths", inputs[at], Spec::int([batch]))?;
        }
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let saved = Spec::real([self.directions, batch, length, self.cell.saved(), hidden]);
        let of_direction = |values: [bool; 3]| values.into_iter().take(self.per_direction());
        let each = |values: [bool; 3], initial: bool, lengths: bool| -> Vec<bool> {
            let directions = (0..self.directions).flat_map(|_| of_direction(values));
            directions.chain(self.initial.then_some(initial)).chain(self.lengths.then_some(lengths)).collect()
        };
        Ok(Contract {
            outputs: vec![
                Output::real([batch, length, self.directions * hidden]),
                Output::real([self.directions, batch, hidden]),
            ],
            saved: if self.cell.saved() > 0 { vec![saved] } else { vec![] },
            scratch_forward: gpu::scratch_forward(&s),
            scratch_backward: gpu::scratch_backward(&s),
            backward_reads_inputs: each([false, true, false], true, true),
            backward_reads_outputs: vec![true, false],
            weights: each([false, true, true], false, false),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let steps = s.steps() as f64;
        let (gates, hidden) = (s.columns as f64, s.hidden as f64);
        let product = 2.0 * steps * gates * hidden;
        let weights = s.directions as f64 * gates * hidden;
        let saved = (self.cell.saved() * s.hidden) as f64;
        Cost {
            forward_flops: product + 4.0 * steps * gates,
            forward_bytes: 4.0 * (steps * (gates + hidden + saved) + weights),
            backward_flops: 2.0 * product + 8.0 * steps * gates,
            backward_bytes: 4.0 * (steps * (gates + 2.0 * hidden + saved) + 2.0 * weights),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}
