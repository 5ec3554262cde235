//! Launches of `kernels/linear_cross_entropy.cu`.
//!
//! Tensor cores (16-bit storage, sm_80 and later, C to 256) hold whole rows in shared memory. Otherwise 64×64 tiles on
//! ordinary arithmetic units, with any C: blocks of the y axis each make 128 columns at most of a gradient, and compute
//! the logits anew, so that a wide f32 model pays for them C/128 times in backward.

use super::LinearCrossEntropy;
use crate::error::Result;
use crate::gpu::{Gpu, Launch, Module, Source};
use crate::op::*;
use bytemuck::{Pod, Zeroable};

const ENTRIES: &[&str] = &[
    "linear_cross_entropy_forward",
    "linear_cross_entropy_combine",
    "linear_cross_entropy_mean",
    "linear_cross_entropy_d_hidden",
    "linear_cross_entropy_d_weight",
    "linear_cross_entropy_add_hidden",
    "linear_cross_entropy_add_weight",
];

// SAFETY: rows, classes and columns are compared with the sizes that the launch code takes from the places; `partial`
// holds what `scratch` says for as many splits as `Splits` gives; targets are compared, and never an index.
const SOURCE: Source =
    unsafe { Source::new("linear_cross_entropy", include_str!("../../../kernels/linear_cross_entropy.cu"), ENTRIES) };

/// Among how many blocks a sum is split, and what each takes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Splits {
    count: usize,
    part: usize,
}

impl Splits {
    /// As many as `blocks` are more than the tiles of `rows`, none under 256 of the `terms`. By shape alone, so that
    /// results do not depend on the device's size.
    fn of(rows: usize, terms: usize, blocks: usize) -> Splits {
        let wanted = (blocks / rows.div_ceil(64).max(1)).min(terms / 256).max(1);
        let part = terms.div_ceil(wanted).next_multiple_of(128).max(128);
        Splits { count: terms.div_ceil(part).max(1), part }
    }
}

/// Of the classes in forward, of the classes for dh, of the rows for dW. Partial gradients are as large as the gradient,
/// so that backward splits less.
fn splits(rows: usize, classes: usize) -> [Splits; 3] {
    [Splits::of(rows, classes, 512), Splits::of(rows, classes, 256), Splits::of(classes, rows, 256)]
}

/// Elements of scratch in forward and in backward.
pub(super) fn scratch(rows: usize, classes: usize, columns: usize) -> (usize, usize) {
    let [forward, hidden, weight] = splits(rows, classes);
    let partial = |s: Splits, rows: usize| if s.count > 1 { s.count * rows * columns } else { 0 };
    (3 * forward.count * rows, partial(hidden, rows).max(partial(weight, classes)))
}

/// `Problem` of the kernels.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    hidden: u64,
    weight: u64,
    targets: u64,
    rows: i64,
    classes: i32,
    columns: i32,
    ignore: i32,
    splits: i32,
    part: i32,
    padding: i32,
}

impl Problem {
    fn of(op: &LinearCrossEntropy, inputs: &[Place]) -> Problem {
        let (classes, columns) = (inputs[1].shape[0], inputs[1].shape[1]);
        let [hidden, weight, targets] = [0, 1, 2].map(|i| inputs[i].address);
        let (rows, ignore) = (inputs[2].numel() as i64, op.ignore);
        let (classes, columns) = (classes as i32, columns as i32);
        Problem { hidden, weight, targets, rows, classes, columns, ignore, splits: 1, part: 0, padding: 0 }
    }

    fn splits(&self) -> [Splits; 3] {
        splits(self.rows as usize, self.classes as usize)
    }

    fn split(self, by: Splits) -> Problem {
        Problem { splits: by.count as i32, part: by.part as i32, ..self }
    }
}

/// Tiles of one kernel: groups of 16 rows a warp, warps, columns; no groups: ordinary arithmetic.
#[derive(Debug, Clone, Copy)]
struct Tile {
    groups: usize,
    warps: usize,
    n: usize,
    shared: u32,
}

impl Tile {
    fn tensor([groups, warps, n]: [usize; 3], columns: usize) -> Tile {
        // A row is padded by 16 bytes; M + N rows are held.
        Tile { groups, warps, n, shared: ((16 * groups * warps + n) * (2 * columns + 16)) as u32 }
    }

    fn define(&self) -> String {
        format!("{},{},{}", self.groups, self.warps, self.n)
    }

    /// For each M of `rows` a block, times `splits`, times slices.
    fn launch(&self, rows: usize, splits: Splits, slices: usize) -> Launch {
        let m = if self.groups == 0 { 64 } else { 16 * self.groups * self.warps };
        let grid = [(rows.div_ceil(m) * splits.count) as u32, slices as u32, 1];
        Launch { grid, block: [32 * self.warps as u32, 1, 1], shared: self.shared }
    }
}

/// The module for these columns on this device, with its tiles forward and backward, and slices of a gradient's columns.
fn module(gpu: &Gpu, columns: usize) -> (Module, Tile, Tile, usize) {
    let module = gpu.module(&SOURCE);
    if gpu.storage().bytes() == 2 && gpu.properties().sm >= 80 && columns <= 256 {
        let padded = columns.next_multiple_of(16);
        let [forward, backward] = if padded <= 128 { [[2, 4, 64], [1, 4, 64]] } else { [[1, 4, 64], [1, 4, 32]] };
        let [forward, backward] = [forward, backward].map(|tile| Tile::tensor(tile, padded));
        let module = module.define("HIDDEN_COLUMNS", padded).define("TENSOR_CORES", 1);
        return (
            module.define("FORWARD", forward.define()).define("BACKWARD", backward.define()),
            forward,
            backward,
            1,
        );
    }
    let slice = [16, 32, 64].into_iter().find(|&s| columns <= s).unwrap_or(128);
    // Two pieces of 64 rows of 32 + 4 columns (a tile of weights overlays them), and 64 rows of a slice.
    let tile = Tile { groups: 0, warps: 8, n: 64, shared: 4 * (2 * 64 * 36 + 64 * slice) as u32 };
    (module.define("HIDDEN_COLUMNS", slice).define("TENSOR_CORES", 0), tile, tile, columns.div_ceil(slice))
}

impl GpuOp for LinearCrossEntropy {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let problem = Problem::of(self, &io.inputs);
        let rows = problem.rows as usize;
        let (module, tile, _, _) = module(gpu, problem.columns as usize);
        let [splits, ..] = problem.splits();
        let problem = problem.split(splits);
        let (partial, lse, token_losses) = (io.scratch.address, io.saved[0].address, io.outputs[1].address);
        let launch = tile.launch(rows, splits, 1);
        gpu.launch(&module, "linear_cross_entropy_forward", launch, &[&problem, &partial])?;
        gpu.launch_flat(&module, "linear_cross_entropy_combine", rows, &[&problem, &partial, &lse, &token_losses])?;
        let (loss, count) = (io.outputs[0].address, io.saved[1].address);
        gpu.launch(
            &module,
            "linear_cross_entropy_mean",
            Launch { grid: [1; 3], block: [256, 1, 1], shared: 0 },
            &[&token_losses, &problem.targets, &problem.rows, &self.ignore, &loss, &count],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(d_loss) = &io.d_outputs[0] else { return Ok(()) };
        let problem = Problem::of(self, &io.inputs);
        let (rows, classes) = (problem.rows as usize, problem.classes as usize);
        let (module, _, tile, slices) = module(gpu, problem.columns as usize);
        let (lse, count, partial) = (io.saved[0].address, io.saved[1].address, io.scratch.address);
        let [_, by_classes, by_rows] = problem.splits();
        for (i, rows, splits, kernel, add) in [
            (0, rows, by_classes, "linear_cross_entropy_d_hidden", "linear_cross_entropy_add_hidden"),
            (1, classes, by_rows, "linear_cross_entropy_d_weight", "linear_cross_entropy_add_weight"),
        ] {
            let Some(d) = &io.d_inputs[i] else { continue };
            let (problem, accumulate) = (problem.split(splits), d.accumulate as i32);
            gpu.launch(
                &module,
                kernel,
                tile.launch(rows, splits, slices),
                &[&problem, &lse, &count, &d_loss.address, &d.to.address, &accumulate, &partial],
            )?;
            if splits.count > 1 {
                let arguments: &[&dyn crate::gpu::Argument] =
                    &[&problem, &partial, &count, &d_loss.address, &d.to.address, &accumulate];
                gpu.launch_flat(&module, add, d.to.numel(), arguments)?;
            }
        }
        Ok(())
    }
}
