//! Rotary positions (Su et al., "RoFormer", 2021, eq. 34): of each row at position t, the pair (xᵢ, xᵢ₊D/2) is turned by
//! the angle t·base^(−2i/D), i < D/2. Queries and keys so turned have products that depend on their distance alone.
//!
//! Pairs are halves apart, as GPT-NeoX and Llama have them; RoFormer itself pairs neighbours (2i, 2i+1), which is the
//! same up to an order of the columns. y = (x₁·cos − x₂·sin, x₂·cos + x₁·sin). Nothing is saved: gradients are turned back
//! by the same angles, dx = (dy₁·cos + dy₂·sin, dy₂·cos − dy₁·sin).

use crate::case::Case;
use crate::cpu::{Mut, Real, Ref};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Source, View};
use crate::graph::{Graph, Tensor};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};
use rayon::prelude::*;

// SAFETY: each thread touches one pair of a row of x and y and of the table, which the contract has at least T rows
// long; indices are below the sizes that the launch code takes from the places.
const SOURCE: Source = unsafe { Source::new("rotary", include_str!("../../kernels/rotary.cu"), &["rotary"]) };

/// The base of the angles that all the models in circulation began with.
pub const BASE: f64 = 10_000.0;

/// Turns [x (B,H,T,D), strided as it likes, D even; angles full (P,D), P ≥ T, as [`angles`] makes them]: y (B,H,T,D), stored as
/// (B,T,H,D).
#[derive(Debug, Clone, Copy)]
pub struct Rotary;

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "rotary",
    summary: "each pair (x_i, x_(i+D/2)) turned by its position's angle",
    cases,
    run: Some(&RUN),
    attention: None,
};

static RUN: RunSpec = RunSpec {
    inputs: &[TensorDoc { name: "x", shape: "(B,H,T,D)", optional: false }],
    outputs: &[TensorDoc { name: "out", shape: "(B,H,T,D)", optional: false }],
    options: &[OptionDoc { name: "base", value: Some("X"), help: "angle i is t·X^(−2i/D); 10000 unless given" }],
    record: |run| {
        let base = match run.options.get("base") {
            None => BASE,
            Some(text) => text.parse().ok().filter(|&x: &f64| x > 0.0 && x.is_finite()).ok_or_else(|| {
                Error::argument(format!("--base {text}"), "is no base of angles", "give a number above 0")
            })?,
        };
        let x = run.real("x", "(B,H,T,D)")?;
        let (length, columns) = (run.graph.shape(x)[2], run.graph.shape(x)[3]);
        let table = angles(&mut run.graph, length, columns, base);
        run.graph.record(Rotary, &[x, table])
    },
};

/// The table (P,D) of positions 0 to P−1: row t holds cos of t·base^(−2i/D) for i < D/2, then sin of the same.
pub fn angles(g: &mut Graph, positions: usize, columns: usize, base: f64) -> Tensor {
    let values = (0..positions).flat_map(|t| angles_at(t, columns, base)).collect();
    g.constant("rotary angles", Spec::full([positions, columns]), values)
}

/// The table's row of one position.
pub fn angles_at(position: usize, columns: usize, base: f64) -> Vec<f64> {
    let half = columns / 2;
    let angle = |i: usize| position as f64 * base.powf(-2.0 * i as f64 / columns as f64);
    (0..half).map(|i| angle(i).cos()).chain((0..columns - half).map(|i| angle(i).sin())).collect()
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "x, angles")?;
        let (Kind::Real, [batch, heads, length, columns]) = (inputs[0].kind, &inputs[0].shape[..]) else {
            return Err(Error::shape(self.name(), "x", "real (B, H, T, D)", inputs[0].to_string()));
        };
        if *columns == 0 || !columns.is_multiple_of(2) || *heads == 0 {
            let expected = "at least one head and an even number of columns, which make pairs";
            return Err(Error::shape(self.name(), "x", expected, inputs[0].to_string()));
        }
        if inputs[1].kind != Kind::Full || !matches!(inputs[1].shape[..], [p, c] if p >= *length && c == *columns) {
            let expected = format!("full (P, {columns}) with P of at least {length}");
            return Err(Error::shape(self.name(), "angles", expected, inputs[1].to_string()));
        }
        let spec = Spec::real([*batch, *heads, *length, *columns]);
        let strides = vec![length * heads * columns, *columns, heads * columns, 1];
        Ok(Contract {
            outputs: vec![Output { spec, strides }],
            backward_reads_inputs: vec![false, true],
            constant_inputs: vec![1],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let n = inputs[0].numel() as f64;
        Cost { forward_flops: 3.0 * n, forward_bytes: 8.0 * n, backward_flops: 3.0 * n, backward_bytes: 8.0 * n }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

/// y ← x turned by `sign` times the angles, or added to y.
fn turn<R: Real>(x: Ref<R>, angles: &[R], y: &Mut<R>, sign: R, accumulate: bool) {
    let (&[batch, heads, length, columns], half) = (x.shape.first_chunk().expect("4 axes"), x.shape[3] / 2);
    (0..batch * length).into_par_iter().with_min_len(block_rows(heads * columns)).for_each(|row| {
        let (b, t) = (row / length, row % length);
        let (cosines, sines) = angles[t * columns..][..columns].split_at(half);
        for h in 0..heads {
            let (first, second) = x.row(&[b, h, t]).split_at(half);
            // SAFETY: each row is visited once, by one thread.
            let (to_first, to_second) = unsafe { y.row(&[b, h, t]) }.split_at_mut(half);
            for i in 0..half {
                let (cosine, sine) = (cosines[i], sign * sines[i]);
                let turned = (first[i] * cosine - second[i] * sine, second[i] * cosine + first[i] * sine);
                let before = if accumulate { (to_first[i], to_second[i]) } else { (R::ZERO, R::ZERO) };
                (to_first[i], to_second[i]) = (before.0 + turned.0, before.1 + turned.1);
            }
        }
    });
}

impl<R: Real> CpuOp<R> for Rotary {
    fn forward_cpu(&self, io: ForwardCpu<R>, _: Mode) {
        turn(io.inputs[0].real(), io.inputs[1].all(), &io.outputs[0], R::ONE, false);
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return };
        turn(dy.real(), io.inputs[1].all(), &dx.to, -R::ONE, dx.accumulate);
    }
}

fn launch(gpu: &Gpu, x: &Place, angles: &Place, y: &Place, sign: f32, accumulate: bool) -> Result<()> {
    let [heads, length, half] = [x.shape[1], x.shape[2], x.shape[3] / 2].map(|n| n as i32);
    let pairs = x.numel() / 2;
    let (from, to) = (View::of(x), View::of(y));
    let arguments: &[&dyn crate::gpu::Argument] =
        &[&from, &angles.address, &to, &(pairs as i64), &length, &heads, &half, &sign, &(accumulate as i32)];
    gpu.launch_flat(&gpu.module(&SOURCE), "rotary", pairs, arguments)
}

impl GpuOp for Rotary {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        launch(gpu, &io.inputs[0], &io.inputs[1], &io.outputs[0], 1.0, false)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(dy), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        launch(gpu, dy, &io.inputs[1], &dx.to, -1.0, dx.accumulate)
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: [usize; 4], positions: usize| {
        Case::new(format!("{shape:?} of {positions} positions"), move |g| {
            let x = g.normal("x", &shape);
            let table = angles(g, positions, shape[3], BASE);
            g.record(Rotary, &[x, table])
        })
    };
    // Queries and keys of one packed projection, in place; both gradients go into parts of one tensor.
    let packed = Case::new("packed q and k", |g| {
        let packed = g.normal("packed", &[2, 37, 3 * 3 * 16]);
        let table = angles(g, 37, 16, BASE);
        let mut outputs = Vec::new();
        for part in 0..2 {
            let x = g.heads(packed, part * 48..(part + 1) * 48, 3)?;
            outputs.push(g.one(Rotary, &[x, table])?);
        }
        Ok(outputs)
    });
    // x contributes twice, so one of its gradients is added to the other.
    let twice = Case::new("by two bases", |g| {
        let x = g.normal("x", &[1, 2, 5, 6]);
        let (near, far) = (angles(g, 5, 6, 10.0), angles(g, 5, 6, 1e6));
        Ok(vec![g.one(Rotary, &[x, near])?, g.one(Rotary, &[x, far])?])
    });
    vec![
        case([1, 1, 1, 2], 1),
        case([2, 3, 65, 40], 100),
        case([1, 2, 1000, 6], 1000),
        case([0, 2, 3, 4], 3),
        packed,
        twice,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::plan::{Plan, PlanOptions};
    use std::sync::Arc;

    fn turned(x: &[f64], shape: [usize; 4]) -> Vec<f64> {
        let mut g = Graph::new();
        let input = g.input("x", &shape);
        let table = angles(&mut g, shape[2], shape[3], BASE);
        let y = g.one(Rotary, &[input, table]).unwrap();
        let options = PlanOptions { keep: vec![y], ..Default::default() };
        let plan = Plan::new(g, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
        plan.write(input, x).unwrap();
        plan.forward().unwrap();
        plan.read(y).unwrap()
    }

    #[test]
    fn turns_by_hand() {
        // Position 1: pair (0, 2) by 1 radian, pair (1, 3) by 10000^(−1/2) = 0.01.
        let y = turned(&[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0], [1, 1, 2, 4]);
        let expected = [
            1f64.cos() - 3.0 * 1f64.sin(),
            2.0 * 0.01f64.cos() - 4.0 * 0.01f64.sin(),
            3.0 * 1f64.cos() + 1f64.sin(),
            4.0 * 0.01f64.cos() + 2.0 * 0.01f64.sin(),
        ];
        assert!(y[4..].iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-14), "{y:?}");
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        // One query and one key, repeated at each of eight positions.
        let (q, k) = ([0.3, -1.0, 2.0, 0.5, 1.5, -0.2], [1.0, 0.4, -0.7, 2.0, 0.1, 0.9]);
        let (q, k) = (turned(&q.repeat(8), [1, 1, 8, 6]), turned(&k.repeat(8), [1, 1, 8, 6]));
        let product = |t: usize, s: usize| -> f64 { (0..6).map(|i| q[t * 6 + i] * k[s * 6 + i]).sum() };
        assert!((product(5, 2) - product(7, 4)).abs() < 1e-13);
        assert!((product(5, 2) - product(5, 3)).abs() > 1e-3);
    }

    #[test]
    fn an_odd_width_is_refused() {
        let mut g = Graph::new();
        let x = g.input("x", &[1, 1, 2, 3]);
        let table = angles(&mut g, 2, 3, BASE);
        let error = g.one(Rotary, &[x, table]).unwrap_err().to_string();
        assert!(error.contains("an even number of columns"), "{error}");
    }
}
