//! Pooling by attention without queries: with x\[t\] = table\[token\[t\]\] (+ positions\[t\]) and H (E,h), the scores
//! s\[i,t\] = x\[t\]·H\[:,i\] (no bias, no scale), a\[i,·\] = softmax of s\[i,·\] over t < length, and
//! y = (Σ a\[0,t\]·x\[t\], …, Σ a\[h−1,t\]·x\[t\]): h weighted averages, head after head.
//!
//! Fused with the gather: x is never written. The weights a (B,h,T) are an output for reading; zeros past a length, and no
//! gradient flows through them. With g\[i\] = dy's part of head i: da\[i,t\] = g\[i\]·x\[t\];
//! ds = a·(da − g\[i\]·y\[i\]), as Σ a·da = g\[i\]·y\[i\]; dH\[:,i\] = Σ ds\[i,t\]·x\[t\];
//! dx\[t\] = Σ a\[i,t\]·g\[i\] + ds\[i,t\]·H\[:,i\], which is added to the token's row of the table, and to the position's.
//! A sequence of length 0 gives zeros.

mod cpu;
mod gpu;

use crate::case::Case;
use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::ops::table;
use crate::precision::Precision;

/// On [tokens int (B,T) in 0..V, lengths int (B) in 0..=T, table (V,E), heads (E,h)], with `positions` also
/// [positions (P,E)], P ≥ T: gives (B,h·E) and the weights (B,h,T).
#[derive(Debug, Clone, Copy)]
pub struct HeadPooling {
    /// Whether row t of a second table is added at position t.
    pub positions: bool,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "head-pooling",
    summary: "averages of table[token] by softmax(x·H) over the tokens",
    cases,
    run: None,
    attention: None,
};

/// Sizes of the op.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    width: usize,
    heads: usize,
}

impl Sizes {
    fn of(tokens: &[usize], heads: &[usize]) -> Sizes {
        Sizes { batch: tokens[0], length: tokens[1], width: heads[0], heads: heads[1] }
    }
}

impl Op for HeadPooling {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        let names = "tokens, lengths, table, heads and perhaps positions";
        expect_inputs(self.name(), inputs, 4 + self.positions as usize, names)?;
        let table::Sizes { batch, length, columns } = table::sizes(self.name(), [inputs[0], inputs[1], inputs[2]])?;
        let heads = match inputs[3].shape[..] {
            [rows, heads] if inputs[3].kind == Kind::Real && rows == columns && heads > 0 => heads,
            _ => {
                let expected = format!("real ({columns}, h) with at least one head");
                return Err(Error::shape(self.name(), "heads", expected, inputs[3].to_string()));
            }
        };
        if self.positions {
            let fits = matches!(inputs[4].shape[..], [rows, width] if rows >= length && width == columns);
            if !fits || inputs[4].kind != Kind::Real {
                let expected = format!("real (P, {columns}) with at least {length} rows");
                return Err(Error::shape(self.name(), "positions", expected, inputs[4].to_string()));
            }
        }
        let s = Sizes { batch, length, width: columns, heads };
        Ok(Contract {
            outputs: vec![Output::real([batch, heads * columns]), Output::full([batch, heads, length])],
            constant_outputs: vec![1],
            backward_reads_outputs: vec![true, true],
            scratch_backward: gpu::Scratch::of(&s).elements,
            weights: [false, false, true, true, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = Sizes::of(&inputs[0].shape, &inputs[3].shape);
        let x = (s.batch * s.length * s.width) as f64;
        let (product, y) = (2.0 * x * s.heads as f64, (s.batch * s.heads * s.width) as f64);
        let table = inputs[2].numel() as f64;
        Cost {
            forward_flops: 2.0 * product,
            forward_bytes: 4.0 * (x + y),
            backward_flops: 4.0 * product,
            backward_bytes: 4.0 * (x + 2.0 * y + table),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

fn cases() -> Vec<Case> {
    let case =
        |[batch, length]: [usize; 2], [vocabulary, width]: [usize; 2], heads: usize, positions: Option<usize>| {
            let name =
                format!("({batch}, {length}) of ({vocabulary}, {width}), {heads} heads, positions {positions:?}");
            Case::new(name, move |g| {
                let tokens = (0..batch * length).map(|i| ((i * i + i / 3) % vocabulary) as i32).collect();
                let lengths = (0..batch).map(|b| ((b + 1) * 5 % (length + 1)) as i32).collect();
                let tokens = g.ints("tokens", &[batch, length], 0..vocabulary as i64, tokens);
                let lengths = g.ints("lengths", &[batch], 0..length as i64 + 1, lengths);
                let table = g.normal("table", &[vocabulary, width]);
                let mut inputs = vec![tokens, lengths, table];
                inputs.push(g.scaled("heads", &[width, heads], 1.0 / (width as f64).sqrt()));
                if let Some(rows) = positions {
                    inputs.push(g.normal("positions", &[rows, width]));
                }
                g.record(HeadPooling { positions: positions.is_some() }, &inputs)
            })
        };
    // Scores of some hundreds: without the maximum taken off, e^s would overflow.
    let large = Case::new("large scores", |g| {
        let tokens = g.ints("tokens", &[2, 3], 0..4, vec![3, 0, 1, 2, 1, 0]);
        let lengths = g.ints("lengths", &[2], 0..4, vec![3, 2]);
        let (table, heads) = (g.normal("table", &[4, 5]), g.scaled("heads", &[5, 2], 100.0));
        g.record(HeadPooling { positions: false }, &[tokens, lengths, table, heads])
    });
    // The second use's gradients are added to the first's.
    let twice = Case::new("one table twice", |g| {
        let tokens = g.ints("tokens", &[2, 3], 0..4, vec![3, 0, 3, 1, 1, 0]);
        let lengths = g.ints("lengths", &[2], 0..4, vec![3, 1]);
        let (table, heads) = (g.normal("table", &[4, 5]), g.normal("heads", &[5, 2]));
        let positions = g.normal("positions", &[3, 5]);
        let (op, inputs) = (HeadPooling { positions: true }, [tokens, lengths, table, heads, positions]);
        let mut outputs = g.record(op, &inputs)?;
        outputs.extend(g.record(op, &inputs)?);
        Ok(outputs)
    });
    vec![
        case([1, 1], [1, 1], 1, None),
        case([2, 3], [5, 2], 2, Some(4)),
        case([5, 37], [11, 37], 4, Some(37)).in_every_order(),
        case([3, 70], [100, 130], 3, None).in_every_order(),
        case([2, 300], [50, 20], 9, None),
        case([0, 5], [7, 3], 2, Some(5)),
        case([2, 0], [7, 3], 2, None),
        large,
        twice,
    ]
}
