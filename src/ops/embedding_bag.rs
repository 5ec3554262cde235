//! y\[b\] = Σ table\[token\[b,t\]\] over t < length\[b\], or their mean; then + bias if there is one. Nothing is saved.
//! (nn.EmbeddingBag; as the sum, a linear layer on counts of words that never writes the zeros down.)
//!
//! A sequence of length 0 gives zeros, and the bias. d_table\[v\] = Σ dy\[b\], for the mean over length\[b\], over the
//! occurrences of v, in their order; d_bias = Σ dy.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Launch, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::ops::table::{self, Sizes, add_rows, sequences, valid};
use crate::precision::Precision;
use rayon::prelude::*;

// SAFETY: sequences, places and columns are compared with the sizes that the launch code takes from the places; tokens
// and lengths lie in the ranges that the graph declares and the plan enforces.
const SOURCE: Source = unsafe {
    Source::new(
        "embedding_bag",
        include_str!("../../kernels/embedding_bag.cu"),
        &["embedding_bag_forward", "embedding_bag_backward_table", "embedding_bag_backward_bias"],
    )
};

/// Sums or means of rows: [tokens int (B,T) in 0..V, lengths int (B) in 0..=T, table (V,C)], with `bias` also [bias (C)].
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingBag {
    /// Whether sums are divided by the lengths.
    pub mean: bool,
    /// Whether a bias follows.
    pub bias: bool,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "embedding-bag",
    summary: "sum or mean of table[token] over each sequence",
    cases,
    run: None,
    attention: None,
};

impl EmbeddingBag {
    fn scale<R: Real>(&self, length: usize) -> R {
        if self.mean && length > 0 { R::ONE / R::from_usize(length) } else { R::ONE }
    }
}

impl Op for EmbeddingBag {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 3 + self.bias as usize, "tokens, lengths, table and perhaps a bias")?;
        let s = table::sizes(self.name(), [inputs[0], inputs[1], inputs[2]])?;
        if self.bias {
            expect(self.name(), "bias", inputs[3], Spec::real([s.columns]))?;
        }
        Ok(Contract {
            outputs: vec![Output::real([s.batch, s.columns])],
            backward_reads_inputs: [true, true, false, false][..inputs.len()].to_vec(),
            weights: [false, false, true, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let columns = inputs[2].shape[1] as f64;
        let (n, table) = (inputs[0].numel() as f64 * columns, inputs[2].numel() as f64);
        let y = inputs[0].shape[0] as f64 * columns;
        Cost {
            forward_flops: n,
            forward_bytes: 4.0 * (n + y),
            backward_flops: n,
            backward_bytes: 4.0 * (n + y + table),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for EmbeddingBag {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let (tokens, lengths, table) = (io.inputs[0].ints(), io.inputs[1].ints(), io.inputs[2].all());
        let (places, columns) = (io.inputs[0].int_tensor().shape[1], io.inputs[2].real().shape[1]);
        let bias = if self.bias { Some(io.inputs[3].all()) } else { None };
        let block = sequences(places * columns);
        io.outputs[0].contiguous().par_chunks_mut(block * columns).enumerate().for_each(|(i, y)| {
            wide!(R, || {
                for (b, y) in y.chunks_exact_mut(columns).enumerate().map(|(b, y)| (i * block + b, y)) {
                    let length = valid(lengths[b], places);
                    y.fill(R::ZERO);
                    for &token in &tokens[b * places..][..length] {
                        add_to(y, &table[token as usize * columns..][..columns], true);
                    }
                    let scale = self.scale::<R>(length);
                    y.iter_mut().for_each(|y| *y *= scale);
                    if let Some(bias) = bias {
                        add_to(y, bias, true);
                    }
                }
            });
        });
    }

    fn backward_cpu(&self, mut io: BackwardCpu<R>, _: Mode) {
        let Some(dy) = &io.d_outputs[0] else { return };
        let (tokens, lengths) = (io.inputs[0].ints(), io.inputs[1].ints());
        let [length, columns] = [io.inputs[0].int_tensor().shape[1], dy.real().shape[1]];
        let (batch, dy) = (dy.real().shape[0], dy.all());
        if let Some(d) = io.d_inputs[2].take() {
            let s = Sizes { batch, length, columns };
            add_rows(d, s, (tokens, lengths), |b, _, row| {
                let scale = self.scale::<R>(valid(lengths[b], length));
                row.iter_mut().zip(&dy[b * columns..][..columns]).for_each(|(d, &dy)| *d += scale * dy);
            });
        }
        if let Some(Some(d)) = io.d_inputs.get_mut(3).map(Option::take) {
            let d_bias = d.added();
            dy.chunks_exact(columns).for_each(|dy| add_to(d_bias, dy, true));
        }
    }
}

impl GpuOp for EmbeddingBag {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (tokens, lengths, table) = (&io.inputs[0], &io.inputs[1], &io.inputs[2]);
        let bias = io.inputs.get(3).map_or(0, |b| b.address);
        let n = tokens.shape[0] * table.shape[1];
        let arguments: [&dyn crate::gpu::Argument; 9] = [
            &tokens.address,
            &lengths.address,
            &table.address,
            &bias,
            &io.outputs[0].address,
            &(n as i64),
            &(tokens.shape[1] as i32),
            &(table.shape[1] as i32),
            &(self.mean as i32),
        ];
        gpu.launch_flat(&gpu.module(&SOURCE), "embedding_bag_forward", n, &arguments)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(dy) = &io.d_outputs[0] else { return Ok(()) };
        let (tokens, lengths) = (&io.inputs[0], &io.inputs[1]);
        let (count, columns) = (tokens.numel(), dy.shape[1]);
        let module = gpu.module(&SOURCE);
        if let Some(d) = &io.d_inputs[2] {
            let to = gpu.added(d)?.address;
            let grid = [count.div_ceil(8) as u32, columns.div_ceil(128) as u32, 1];
            let arguments: [&dyn crate::gpu::Argument; 8] = [
                &tokens.address,
                &lengths.address,
                &dy.address,
                &to,
                &(count as i64),
                &(tokens.shape[1] as i32),
                &(columns as i32),
                &(self.mean as i32),
            ];
            let launch = Launch { grid, block: [256, 1, 1], shared: 0 };
            gpu.launch(&module, "embedding_bag_backward_table", launch, &arguments)?;
        }
        if let Some(Some(d)) = io.d_inputs.get(3) {
            let to = gpu.added(d)?.address;
            let arguments: [&dyn crate::gpu::Argument; 4] =
                [&dy.address, &to, &(dy.shape[0] as i32), &(columns as i32)];
            gpu.launch_flat(&module, "embedding_bag_backward_bias", columns, &arguments)?;
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let case = |[batch, length]: [usize; 2], [vocabulary, columns]: [usize; 2], mean: bool, bias: bool| {
        let name = format!("({batch}, {length}) of ({vocabulary}, {columns}), mean {mean}, bias {bias}");
        Case::new(name, move |g| {
            // Some tokens often, some never; lengths 0, 1 and all between.
            let tokens = (0..batch * length).map(|i| ((i * i + i / 3) % vocabulary) as i32).collect();
            let lengths = (0..batch).map(|b| (b * 5 % (length + 1)) as i32).collect();
            let tokens = g.ints("tokens", &[batch, length], 0..vocabulary as i64, tokens);
            let lengths = g.ints("lengths", &[batch], 0..length as i64 + 1, lengths);
            let mut inputs = vec![tokens, lengths, g.normal("table", &[vocabulary, columns])];
            if bias {
                inputs.push(g.normal("bias", &[columns]));
            }
            g.record(EmbeddingBag { mean, bias }, &inputs)
        })
    };
    // The second use's gradients are added to the first's.
    let twice = Case::new("one table twice", |g| {
        let tokens = g.ints("tokens", &[2, 3], 0..4, vec![3, 0, 3, 1, 1, 0]);
        let lengths = g.ints("lengths", &[2], 0..4, vec![3, 1]);
        let (table, bias) = (g.normal("table", &[4, 5]), g.normal("bias", &[5]));
        let op = EmbeddingBag { mean: true, bias: true };
        let mut outputs = g.record(op, &[tokens, lengths, table, bias])?;
        outputs.extend(g.record(op, &[tokens, lengths, table, bias])?);
        Ok(outputs)
    });
    vec![
        case([1, 1], [1, 1], true, false),
        case([2, 3], [5, 2], false, true),
        case([7, 37], [11, 37], true, true).in_every_order(),
        case([65, 5], [1000, 3], false, true),
        case([3, 150], [3, 130], true, false).in_every_order(),
        case([2, 3], [65, 1000], true, false),
        case([0, 5], [7, 3], true, true),
        case([2, 0], [7, 3], true, true),
        twice,
    ]
}
