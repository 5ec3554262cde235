//! y\[b,t\] = table\[token\[b,t\]\] + positions\[t\]; the table of positions may be absent. Nothing is saved.
//! d_table\[v\] = Σ dy over the occurrences of v, in their order; d_positions\[t\] = Σ dy\[b,t\] over the batch.
//!
//! On a GPU one warp adds up all occurrences of a token, without atomics: for N tokens, each different one costs a scan
//! of N integers for every 128 columns (N = 16,384, 5,000 different, 768 columns: 120 M warp instructions, some 0.2 ms).

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: positions and columns are compared with the sizes that the launch code takes from the places; tokens lie in
// the range that the graph declares and the plan enforces.
const SOURCE: Source = unsafe {
    Source::new(
        "embedding",
        include_str!("../../kernels/embedding.cu"),
        &["embedding_forward", "embedding_backward_table", "embedding_backward_positions"],
    )
};

/// Rows of a table, chosen by tokens: [tokens int (B,T) in 0..V, table (V,C)], with `positions` also [positions (P,C)], P ≥ T.
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    /// Whether row t of a second table is added at position t.
    pub positions: bool,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "embedding", summary: "table[token] + positions[t]", cases, run: None, attention: None };

impl Op for Embedding {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2 + self.positions as usize, "tokens, table and perhaps positions")?;
        let (Kind::Int, [batch, length]) = (inputs[0].kind, &inputs[0].shape[..]) else {
            return Err(Error::shape(self.name(), "tokens", "int (B, T)", inputs[0].to_string()));
        };
        let table = |i: usize, argument: &str, at_least: usize| match inputs[i].shape[..] {
            [rows, columns] if inputs[i].kind == Kind::Real && rows >= at_least && columns > 0 => Ok(columns),
            _ => {
                let expected = format!("real (rows, C) with at least {at_least} rows and one column");
                Err(Error::shape(self.name(), argument, expected, inputs[i].to_string()))
            }
        };
        let columns = table(1, "table", 1)?;
        if self.positions && table(2, "positions", *length)? != columns {
            let expected = format!("real (rows, {columns}) as the table has");
            return Err(Error::shape(self.name(), "positions", expected, inputs[2].to_string()));
        }
        Ok(Contract {
            outputs: vec![Output::real([*batch, *length, columns])],
            backward_reads_inputs: [true, false, false][..inputs.len()].to_vec(),
            weights: [false, true, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let columns = inputs[1].shape[1];
        let (n, table) = ((inputs[0].numel() * columns) as f64, inputs[1].numel() as f64);
        Cost {
            forward_flops: if self.positions { n } else { 0.0 },
            forward_bytes: 8.0 * n,
            backward_flops: n,
            backward_bytes: 4.0 * (n + table),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for Embedding {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let (tokens, table) = (io.inputs[0].ints(), io.inputs[1].all());
        let columns = io.inputs[1].real().shape[1];
        let y = io.outputs[0].contiguous();
        let length = io.outputs[0].shape[1];
        let block = block_rows(columns);
        let blocks = y.par_chunks_mut(block * columns).zip(tokens.par_chunks(block)).enumerate();
        blocks.for_each(|(b, (y, tokens))| {
            for (i, (y, &token)) in y.chunks_exact_mut(columns).zip(tokens).enumerate() {
                y.copy_from_slice(&table[token as usize * columns..][..columns]);
                if self.positions {
                    let t = (b * block + i) % length;
                    add_to(y, &io.inputs[2].all()[t * columns..][..columns], true);
                }
            }
        });
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let (tokens, columns) = (io.inputs[0].ints(), dy.real().shape[2]);
        let (length, dy) = (dy.real().shape[1], dy.all());
        if let Some(d) = io.d_inputs[1] {
            // Each part of the table takes its own tokens in order.
            let d_table = d.added();
            let part = (d_table.len() / columns).div_ceil(8);
            d_table.par_chunks_mut(part * columns).enumerate().for_each(|(p, d_table)| {
                for (&token, dy) in tokens.iter().zip(dy.chunks_exact(columns)) {
                    let row = (token as usize).wrapping_sub(p * part);
                    if let Some(d) = d_table.chunks_exact_mut(columns).nth(row) {
                        add_to(d, dy, true);
                    }
                }
            });
        }
        if let Some(Some(d)) = io.d_inputs.get(2) {
            let d_positions = d.added();
            let each_sequence = dy.chunks_exact((length * columns).max(1));
            each_sequence.for_each(|dy| add_to(&mut d_positions[..length * columns], dy, true));
        }
    }
}

impl GpuOp for Embedding {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (tokens, table) = (&io.inputs[0], &io.inputs[1]);
        let positions = io.inputs.get(2).map_or(0, |p| p.address);
        let (length, columns) = (tokens.shape[1] as i32, table.shape[1] as i32);
        let count = tokens.numel();
        gpu.launch(
            &gpu.module(&SOURCE),
            "embedding_forward",
            Launch { grid: [count.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 },
            &[&tokens.address, &table.address, &positions, &io.outputs[0].address, &(count as i64), &length, &columns],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let tokens = &io.inputs[0];
        let (count, columns) = (tokens.numel(), dy.shape[2]);
        let module = gpu.module(&SOURCE);
        if let Some(d) = &io.d_inputs[1] {
            let to = gpu.added(d)?.address;
            let grid = [count.div_ceil(8) as u32, columns.div_ceil(128) as u32, 1];
            gpu.launch(
                &module,
                "embedding_backward_table",
                Launch { grid, block: [256, 1, 1], shared: 0 },
                &[&tokens.address, &dy.address, &to, &(count as i64), &(columns as i32)],
            )?;
        }
        if let Some(Some(d)) = io.d_inputs.get(2) {
            let to = gpu.added(d)?.address;
            let n = dy.shape[1] * columns;
            gpu.launch_flat(
                &module,
                "embedding_backward_positions",
                n,
                &[&dy.address, &to, &(dy.shape[0] as i32), &(n as i64)],
            )?;
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |[batch, length]: [usize; 2], [vocabulary, columns]: [usize; 2], positions: Option<usize>| {
        let name = format!("({batch}, {length}) of ({vocabulary}, {columns}), positions {positions:?}");
        Case::new(name, move |g| {
            // Some tokens often, some never.
            let tokens = (0..batch * length).map(|i| ((i * i + i / 3) % vocabulary) as i32).collect();
            let tokens = g.ints("tokens", &[batch, length], 0..vocabulary as i64, tokens);
            let mut inputs = vec![tokens, g.normal("table", &[vocabulary, columns])];
            if let Some(rows) = positions {
                inputs.push(g.normal("positions", &[rows, columns]));
            }
            g.record(Embedding { positions: positions.is_some() }, &inputs)
        })
    };
    // The second use's gradients are added to the first's.
    let twice = Case::new("one table twice", |g| {
        let tokens = g.ints("tokens", &[1, 3], 0..4, vec![3, 0, 3]);
        let (table, positions) = (g.normal("table", &[4, 5]), g.normal("positions", &[3, 5]));
        let mut outputs = g.record(Embedding { positions: true }, &[tokens, table, positions])?;
        outputs.extend(g.record(Embedding { positions: true }, &[tokens, table, positions])?);
        Ok(outputs)
    });
    vec![
        case([1, 1], [1, 1], None),
        case([3, 37], [11, 37], Some(37)).in_every_order(),
        case([1, 65], [1000, 5], Some(128)),
        case([2, 150], [3, 130], None).in_every_order(),
        case([2, 3], [65, 1000], Some(3)),
        case([0, 5], [7, 3], Some(5)),
        twice,
    ]
}
