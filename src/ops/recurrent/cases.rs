//! What `attn validate` runs: awkward lengths and widths, ragged batches, every cell.

use super::{Cell, Kernel, Recurrence, Stack};
use crate::case::{Case, CaseGraph};
use crate::error::Result;
use crate::graph::Tensor;

/// A recurrence on inputs of its own.
#[derive(Clone)]
struct Shape {
    cell: Cell,
    batch: usize,
    length: usize,
    hidden: usize,
    directions: usize,
    bias: bool,
    initial: bool,
    lengths: Option<Vec<i32>>,
    kernel: Option<Kernel>,
}

impl Shape {
    fn of(cell: Cell, batch: usize, length: usize, hidden: usize) -> Shape {
        let (directions, bias) = (1, true);
        Shape { cell, batch, length, hidden, directions, bias, initial: false, lengths: None, kernel: None }
    }
    fn both_ways(self) -> Shape {
        Shape { directions: 2, ..self }
    }
    fn without_bias(self) -> Shape {
        Shape { bias: false, ..self }
    }
    fn with_a_state(self) -> Shape {
        Shape { initial: true, ..self }
    }
    fn ragged(self, lengths: &[i32]) -> Shape {
        Shape { lengths: Some(lengths.to_vec()), ..self }
    }
    fn by(self, kernel: Kernel) -> Shape {
        Shape { kernel: Some(kernel), ..self }
    }

    fn case(self) -> Case {
        let Shape { cell, batch, length, hidden, directions, .. } = self;
        let mut name = format!("{cell:?} B{batch} T{length} H{hidden} directions {directions}");
        let marks = [
            (!self.bias, "no bias".to_string()),
            (self.initial, "h_0".to_string()),
            (self.lengths.is_some(), format!("lengths {:?}", self.lengths.as_deref().unwrap_or_default())),
            (self.kernel.is_some(), self.kernel.map(|kernel| format!("{kernel:?}")).unwrap_or_default()),
        ];
        marks.into_iter().filter(|(shown, _)| *shown).for_each(|(_, mark)| name += &format!(", {mark}"));
        Case::new(name, move |g| self.record(g))
    }

    fn record(&self, g: &mut CaseGraph) -> Result<Vec<Tensor>> {
        let Shape { cell, batch, length, hidden, directions, bias, initial, kernel, .. } = *self;
        let columns = cell.gates() * hidden;
        let mut inputs = Vec::new();
        for d in 0..directions {
            inputs.push(g.normal(&format!("gates_{d}"), &[batch, length, columns]));
            // As nn.GRU begins, and small enough that the identity's states do not grow.
            inputs.push(g.scaled(&format!("weight_hh_{d}"), &[columns, hidden], 0.6 * (hidden as f64).powf(-0.5)));
            if bias {
                inputs.push(g.scaled(&format!("bias_hh_{d}"), &[columns], 0.3));
            }
        }
        if initial {
            inputs.push(g.normal("h_0", &[directions, batch, hidden]));
        }
        if let Some(lengths) = &self.lengths {
            inputs.push(g.ints("lengths", &[batch], 0..length as i64 + 1, lengths.clone()));
        }
        let lengths = self.lengths.is_some();
        g.record(Recurrence { cell, directions, bias, initial, lengths, kernel }, &inputs)
    }
}

/// Two layers with their products, on parameters, in both directions.
fn layered(cell: Cell) -> Case {
    Case::new(format!("{cell:?}, two layers of parameters, both ways"), move |g| {
        let stack = Stack { cell, inputs: 5, hidden: 9, layers: 2, directions: 2, bias: true };
        let layers = stack.layers(|name, shape| Ok(g.weight(name, shape, 0.3)))?;
        let x = g.normal("x", &[3, 7, 5]);
        let h_0 = g.normal("h_0", &[4, 3, 9]);
        let lengths = g.ints("lengths", &[3], 0..8, vec![4, 7, 1]);
        let (out, h_n) = layers.record(g, x, Some(h_0), Some(lengths))?;
        Ok(vec![out, h_n])
    })
}

pub(super) fn gru() -> Vec<Case> {
    let shape = |batch, length, hidden| Shape::of(Cell::Gru, batch, length, hidden);
    vec![
        shape(1, 1, 1).case(),
        shape(3, 2, 1).both_ways().with_a_state().case(),
        shape(1, 37, 16).without_bias().case(),
        shape(3, 2, 37).both_ways().case().in_every_order(),
        shape(8, 5, 16).both_ways().with_a_state().ragged(&[5, 0, 1, 3, 5, 2, 4, 1]).case().in_every_order(),
        shape(3, 5, 20).both_ways().with_a_state().ragged(&[0, 5, 1]).by(Kernel::Stepwise).case().in_every_order(),
        // In 16 bits too, as on sm_75.
        shape(8, 4, 20)
            .both_ways()
            .with_a_state()
            .ragged(&[4, 0, 1, 3, 4, 2, 4, 1])
            .by(Kernel::OnChip)
            .case()
            .in_every_order(),
        // Three teams of each direction.
        shape(19, 3, 37).both_ways().ragged(&[3; 19]).case(),
        shape(8, 37, 64).both_ways().with_a_state().without_bias().case().large(),
        shape(3, 2, 256).both_ways().case().large(),
        shape(2, 0, 5).with_a_state().case(),
        shape(0, 3, 5).both_ways().case(),
        shape(3, 4, 5).ragged(&[0, 0, 0]).case(),
        layered(Cell::Gru),
    ]
}

pub(super) fn rnn() -> Vec<Case> {
    let shape = |cell, batch, length, hidden| Shape::of(cell, batch, length, hidden);
    vec![
        shape(Cell::Tanh, 3, 7, 37).both_ways().with_a_state().ragged(&[7, 1, 0]).case().in_every_order(),
        shape(Cell::Relu, 3, 5, 20).without_bias().case(),
        shape(Cell::Identity, 1, 37, 1).with_a_state().case(),
        shape(Cell::Identity, 9, 3, 16).both_ways().ragged(&[3, 2, 1, 0, 3, 2, 1, 3, 2]).case(),
        shape(Cell::Tanh, 2, 4, 20).both_ways().with_a_state().by(Kernel::Stepwise).case(),
        layered(Cell::Tanh),
    ]
}
