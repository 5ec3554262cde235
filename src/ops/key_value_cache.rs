//! A cache of keys or values for generation: x (B,H,1,D) becomes row `position` of the cache (B,H,S,D), whose other rows stay
//! as earlier runs left them (zeros at first). What was computed for a token once is then there for all later ones.
//!
//! Nothing is saved. dx is the cache's gradient at that row; none flows to the runs that wrote the others.

use crate::case::Case;
use crate::cpu::Real;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Source, View};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;

// SAFETY: a thread touches one element of x and the cache, whose index is below the number that the launch code takes
// from the place; the position lies in the range that the graph declares and the plan enforces.
const SOURCE: Source = unsafe {
    Source::new(
        "key_value_cache",
        include_str!("../../kernels/key_value_cache.cu"),
        &["key_value_cache_forward", "key_value_cache_backward"],
    )
};

/// Writes [x (B,H,1,D), strided as it likes; position int, one number in 0..S] into a cache (B,H,S,D), stored as (B,S,H,D).
#[derive(Debug, Clone, Copy)]
pub struct KeyValueCache {
    /// S: how many rows there are.
    pub length: usize,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "key-value-cache",
    summary: "row `position` of a cache that stays from run to run",
    cases,
    run: None,
    attention: None,
};

/// Checks a position: one integer.
pub(crate) fn expect_position(op: &str, spec: &Spec) -> Result<()> {
    if spec.kind == Kind::Int && spec.numel() == 1 {
        return Ok(());
    }
    Err(Error::shape(op, "position", "one integer", spec.to_string()))
}

impl Op for KeyValueCache {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2, "x, position")?;
        let (Kind::Real, &[batch, heads, 1, columns]) = (inputs[0].kind, &inputs[0].shape[..]) else {
            return Err(Error::shape(self.name(), "x", "real (B, H, 1, D)", inputs[0].to_string()));
        };
        expect_position(self.name(), inputs[1])?;
        let spec = Spec::real([batch, heads, self.length, columns]);
        let strides = vec![self.length * heads * columns, columns, heads * columns, 1];
        Ok(Contract {
            outputs: vec![Output { spec, strides }],
            persistent_outputs: vec![0],
            backward_reads_inputs: vec![false, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let bytes = 8.0 * inputs[0].numel() as f64;
        Cost { forward_flops: 0.0, forward_bytes: bytes, backward_flops: 0.0, backward_bytes: bytes }
    }

    fn accepts_strides(&self) -> bool {
        true
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl<R: Real> CpuOp<R> for KeyValueCache {
    fn forward_cpu(&self, io: ForwardCpu<R>, _: Mode) {
        let (x, position) = (io.inputs[0].real(), io.inputs[1].ints()[0] as usize);
        for (b, h) in (0..x.shape[0]).flat_map(|b| (0..x.shape[1]).map(move |h| (b, h))) {
            // SAFETY: one row at a time, on this thread alone.
            unsafe { io.outputs[0].row(&[b, h, position]) }.copy_from_slice(x.row(&[b, h, 0]));
        }
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let (Some(d_cache), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return };
        let (d_cache, position) = (d_cache.real(), io.inputs[1].ints()[0] as usize);
        for (b, h) in (0..d_cache.shape[0]).flat_map(|b| (0..d_cache.shape[1]).map(move |h| (b, h))) {
            // SAFETY: one row at a time, on this thread alone.
            add_to(unsafe { dx.to.row(&[b, h, 0]) }, d_cache.row(&[b, h, position]), dx.accumulate);
        }
    }
}

impl GpuOp for KeyValueCache {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let (x, n) = (&io.inputs[0], io.inputs[0].numel());
        let (from, to) = (View::of(x), View::of(&io.outputs[0]));
        let (heads, columns) = (x.shape[1] as i32, x.shape[3] as i32);
        let arguments: &[&dyn crate::gpu::Argument] =
            &[&from, &io.inputs[1].address, &to, &(n as i64), &heads, &columns];
        gpu.launch_flat(&gpu.module(&SOURCE), "key_value_cache_forward", n, arguments)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let (Some(d_cache), Some(dx)) = (&io.d_outputs[0], &io.d_inputs[0]) else { return Ok(()) };
        let (from, to, n) = (View::of(d_cache), View::of(&dx.to), dx.to.numel());
        let (heads, columns) = (dx.to.shape[1] as i32, dx.to.shape[3] as i32);
        let arguments: &[&dyn crate::gpu::Argument] =
            &[&from, &io.inputs[1].address, &to, &(n as i64), &heads, &columns, &(dx.accumulate as i32)];
        gpu.launch_flat(&gpu.module(&SOURCE), "key_value_cache_backward", n, arguments)
    }
}

fn cases() -> Vec<Case> {
    let case = |[batch, heads, length, columns]: [usize; 4], position: i32| {
        Case::new(format!("row {position} of {length}, {batch}×{heads}×{columns}"), move |g| {
            let x = g.normal("x", &[batch, heads, 1, columns]);
            let position = g.ints("position", &[1], 0..length as i64, vec![position]);
            g.record(KeyValueCache { length }, &[x, position])
        })
    };
    // Keys of a packed projection, in place; x contributes twice.
    let packed = Case::new("packed, into two caches", |g| {
        let packed = g.normal("packed", &[2, 1, 3 * 3 * 5]);
        let keys = g.heads(packed, 15..30, 3)?;
        let position = g.ints("position", &[1, 1], 0..4, vec![2]);
        let mut outputs = g.record(KeyValueCache { length: 4 }, &[keys, position])?;
        outputs.extend(g.record(KeyValueCache { length: 7 }, &[keys, position])?);
        Ok(outputs)
    });
    vec![case([1, 1, 1, 1], 0), case([2, 3, 37, 16], 36), case([3, 4, 5, 100], 2), packed]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::graph::Graph;
    use crate::plan::{Plan, PlanOptions};
    use std::sync::Arc;

    #[test]
    fn rows_stay_from_run_to_run() {
        let mut g = Graph::new();
        let x = g.input("x", &[1, 1, 1, 2]);
        let position = g.indices("position", &[1], 0..3);
        let cache = g.one(KeyValueCache { length: 3 }, &[x, position]).unwrap();
        // Poisoned: what is shared by lifetime holds NaN before every run.
        let options = PlanOptions { keep: vec![cache], poison: true, ..Default::default() };
        let plan = Plan::new(g, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
        for (row, values) in [(2, [1.0, 2.0]), (0, [3.0, 4.0]), (2, [5.0, 6.0])] {
            plan.write(x, &values).unwrap();
            plan.write_indices(position, &[row]).unwrap();
            plan.forward().unwrap();
        }
        assert_eq!(plan.read(cache).unwrap(), [3.0, 4.0, 0.0, 0.0, 5.0, 6.0]);
    }
}
