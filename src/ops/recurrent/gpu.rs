//! The launches of a recurrence.
//!
//! Where W_hh fits on chip, divided among the blocks of a team (`kernels/recurrent.cu`), one cooperative launch takes as many
//! teams as can run at once through all steps: in 16 bits on tensor cores (`kernels/recurrent_mma.cu`) where there are any,
//! otherwise in f32 arithmetic. Where it does not fit, or where asked ([`Recurrence::kernel`]), a launch is one step
//! of all teams, and weights are read from memory; [`crate::Graph::remarks`] says so.

use super::{Cell, Kernel, Recurrence, Sizes};
use crate::error::Result;
use crate::gpu::{Argument, Gpu, Launch, Matmul, Module, Source};
use crate::op::*;
use crate::ops::linear;
use crate::precision::Precision;
use bytemuck::{Pod, Zeroable};

// SAFETY: units, sequences and steps are compared with the sizes that the launch code takes from the places; the blocks of
// a team all run at once, or a launch is one step.
const SOURCE: Source = unsafe {
    Source::new(
        "recurrent",
        include_str!("../../../kernels/recurrent.cu"),
        &["recurrent_forward", "recurrent_forward_step", "recurrent_backward", "recurrent_backward_step"],
    )
};

// SAFETY: as above.
const ON_TENSOR_CORES: Source = unsafe {
    Source::new(
        "recurrent_mma",
        include_str!("../../../kernels/recurrent_mma.cu"),
        &["recurrent_mma_forward", "recurrent_mma_backward"],
    )
};

/// Sequences of a team; mirrors the kernel's ROWS.
const ROWS: usize = 8;
/// Hidden units of a block, at least: one for each warp. More where fewer blocks must do.
const UNITS: usize = 8;

/// Hidden units of a block on tensor cores, and sums of a warp for each matrix of them; mirror that kernel's UNITS and
/// ROWS·SUMS.
const TILE_UNITS: usize = 16;
const TILE_SUMS: usize = ROWS * (TILE_UNITS + 4);
const WARPS: usize = 8;

/// The two passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
}

impl Pass {
    /// Of W_hh, what a block holds for each hidden unit: so many rows of so many columns.
    fn weights(self, s: &Sizes) -> (usize, usize) {
        match self {
            Pass::Forward => (s.columns / s.hidden, s.hidden),
            Pass::Backward => (1, s.columns),
        }
    }

    fn entry(self, kernel: Kernel) -> &'static str {
        match (self, kernel) {
            (Pass::Forward, Kernel::TensorCores) => "recurrent_mma_forward",
            (Pass::Backward, Kernel::TensorCores) => "recurrent_mma_backward",
            (Pass::Forward, Kernel::OnChip) => "recurrent_forward",
            (Pass::Backward, Kernel::OnChip) => "recurrent_backward",
            (Pass::Forward, Kernel::Stepwise) => "recurrent_forward_step",
            (Pass::Backward, Kernel::Stepwise) => "recurrent_backward_step",
        }
    }
}

fn teams(s: &Sizes) -> usize {
    s.directions * s.batch.div_ceil(ROWS)
}

/// Of forward: the state twice, and a counter for each team.
pub(super) fn scratch_forward(s: &Sizes) -> usize {
    2 * s.directions * s.batch * s.hidden + teams(s)
}

/// Of backward: the gradients of the products and the states before each step (these on the CPU too), the gradient
/// that is carried, a counter for each team, and partial sums for the bias.
pub(super) fn scratch_backward(s: &Sizes) -> usize {
    let sums = linear::sum_scratch(s.batch * s.length, s.columns);
    s.steps() * (s.columns + s.hidden) + s.directions * s.batch * s.hidden + teams(s) + sums
}

/// `Inputs` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Inputs {
    gates: [u64; 2],
    weight: [u64; 2],
    bias: [u64; 2],
    initial: u64,
    lengths: u64,
    batch: i32,
    length: i32,
    hidden: i32,
    directions: i32,
    units: i32,
    first_team: i32,
}

/// `Gradients` of the kernel.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Gradients {
    out: u64,
    saved: u64,
    d_out: u64,
    d_last: u64,
    d_gates: [u64; 2],
    d_initial: u64,
    products: u64,
    before: u64,
    carried: u64,
    accumulate: [i32; 2],
    accumulate_initial: i32,
    unused: i32,
}

/// Columns of a row in shared memory, and of a row of the tile; mirror the kernel's `padded` and `pitch`.
fn padded(n: usize) -> usize {
    n.next_multiple_of(16)
}
fn pitch(n: usize) -> usize {
    16 * (n.div_ceil(16) | 1)
}

/// How a pass is divided among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Division {
    kernel: Kernel,
    units: usize,
    /// Blocks of a team.
    slices: usize,
    /// Bytes of shared memory a block.
    shared: u32,
    /// Teams of a launch.
    at_once: usize,
}

impl Recurrence {
    fn module(&self, gpu: &Gpu, kernel: Kernel) -> Module {
        let cell = match self.cell {
            Cell::Gru => 0,
            Cell::Tanh => 1,
            Cell::Relu => 2,
            Cell::Identity => 3,
        };
        gpu.module(if kernel == Kernel::TensorCores { &ON_TENSOR_CORES } else { &SOURCE }).define("CELL", cell)
    }

    fn inputs(&self, s: &Sizes, inputs: &[Place]) -> Inputs {
        let each = |i: usize| {
            std::array::from_fn(|d| if d < self.directions { inputs[self.gates_at(d) + i].address } else { 0 })
        };
        let optional = |at: Option<usize>| at.map_or(0, |i| inputs[i].address);
        Inputs {
            gates: each(0),
            weight: each(1),
            bias: if self.bias { each(2) } else { [0; 2] },
            initial: optional(self.initial_at()),
            lengths: optional(self.lengths_at()),
            batch: s.batch as i32,
            length: s.length as i32,
            hidden: s.hidden as i32,
            directions: s.directions as i32,
            units: 0,
            first_team: 0,
        }
    }

    /// The division with so many units a block, if a team's blocks can then all run at once.
    fn division_of(&self, gpu: &Gpu, s: &Sizes, pass: Pass, kernel: Kernel, units: usize) -> Result<Option<Division>> {
        let (rows, columns) = pass.weights(s);
        let slices = s.hidden.div_ceil(units);
        let shared = match kernel {
            Kernel::TensorCores => 2 * (ROWS + rows * units) * (padded(columns) + 8) + 4 * WARPS * rows * TILE_SUMS,
            _ => 4 * ROWS * pitch(columns) + rows * units * padded(columns) * gpu.storage().bytes(),
        };
        if shared > gpu.properties().shared_per_block as usize {
            return Ok(None);
        }
        let shared = shared as u32;
        let block = Launch { grid: [1, 1, 1], block: [256, 1, 1], shared };
        let at_once = gpu.cooperative_blocks(&self.module(gpu, kernel), pass.entry(kernel), block)? as usize / slices;
        Ok((at_once > 0).then_some(Division { kernel, units, slices, shared, at_once }))
    }

    /// How a pass is divided: on tensor cores, or with the fewest units a block with which it fits on chip, or in steps.
    fn division(&self, gpu: &Gpu, s: &Sizes, pass: Pass) -> Result<Division> {
        let slices = s.hidden.div_ceil(UNITS);
        let stepwise = Division { kernel: Kernel::Stepwise, units: UNITS, slices, shared: 0, at_once: teams(s) };
        if self.kernel == Some(Kernel::Stepwise) {
            return Ok(stepwise);
        }
        if self.kernel != Some(Kernel::OnChip)
            && gpu.storage() != Precision::F32
            && gpu.properties().sm >= 80
            && let Some(division) = self.division_of(gpu, s, pass, Kernel::TensorCores, TILE_UNITS)?
        {
            return Ok(division);
        }
        for units in (0..).map(|doubled| UNITS << doubled) {
            if let Some(division) = self.division_of(gpu, s, pass, Kernel::OnChip, units)? {
                return Ok(division);
            }
            if units >= s.hidden {
                break;
            }
        }
        Ok(stepwise)
    }

    /// Runs a pass of `turns` turns. `launch` does it: inputs, grid, first turn and the one behind the last.
    fn run(
        &self,
        s: &Sizes,
        inputs: Inputs,
        division: Division,
        turns: usize,
        launch: &dyn Fn(Inputs, Launch, i32, i32) -> Result<()>,
    ) -> Result<()> {
        let inputs = Inputs { units: division.units as i32, ..inputs };
        let shape = |teams: usize| Launch {
            grid: [(teams * division.slices) as u32, 1, 1],
            block: [256, 1, 1],
            shared: division.shared,
        };
        let all = teams(s);
        if division.kernel == Kernel::Stepwise {
            return (0..turns as i32).try_for_each(|turn| launch(inputs, shape(all), turn, turn + 1));
        }
        (0..all).step_by(division.at_once).try_for_each(|first| {
            let inputs = Inputs { first_team: first as i32, ..inputs };
            launch(inputs, shape(division.at_once.min(all - first)), 0, turns as i32)
        })
    }

    fn launch(&self, gpu: &Gpu, pass: Pass, kernel: Kernel, shape: Launch, arguments: &[&dyn Argument]) -> Result<()> {
        let (module, entry) = (self.module(gpu, kernel), pass.entry(kernel));
        match kernel {
            Kernel::Stepwise => gpu.launch(&module, entry, shape, arguments),
            _ => gpu.launch_cooperative(&module, entry, shape, arguments),
        }
    }

    fn launch_forward(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let s = self.sizes(&io.inputs[0].shape, &io.inputs[1].shape);
        let [out, last] = &io.outputs[..] else { unreachable!("two outputs") };
        if self.lengths {
            gpu.zero(out)?;
        }
        let states = 2 * s.directions * s.batch * s.hidden;
        let (state, arrived) = (io.scratch.address, io.scratch.address + 4 * states as u64);
        gpu.zero(&counters(arrived, teams(&s)))?;
        let saved = io.saved.first().map_or(0, |p| p.address);
        let division = self.division(gpu, &s, Pass::Forward)?;
        // One even where there are no steps: it writes h_n.
        let turns = s.length.max(1);
        self.run(&s, self.inputs(&s, &io.inputs), division, turns, &|inputs, launch, first, end| {
            let arguments: [&dyn Argument; 8] =
                [&inputs, &out.address, &last.address, &saved, &state, &arrived, &first, &end];
            self.launch(gpu, Pass::Forward, division.kernel, launch, &arguments)
        })
    }

    fn launch_backward(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let s = self.sizes(&io.inputs[0].shape, &io.inputs[1].shape);
        let d_gates =
            |d: usize| io.d_inputs.get(self.gates_at(d)).filter(|_| d < s.directions).and_then(Option::as_ref);
        let products = io.scratch.address;
        let before = products + 4 * (s.steps() * s.columns) as u64;
        let carried = before + 4 * (s.steps() * s.hidden) as u64;
        let arrived = carried + 4 * (s.directions * s.batch * s.hidden) as u64;
        let sums = arrived + 4 * teams(&s) as u64;
        if self.lengths {
            // What lies past a length is written by no step.
            gpu.zero(&flat(products, s.steps() * (s.columns + s.hidden)))?;
            for d in (0..s.directions).filter_map(d_gates).filter(|d| !d.accumulate) {
                gpu.zero(&d.to)?;
            }
        }
        gpu.zero(&counters(arrived, teams(&s)))?;
        let address = |p: Option<&Place>| p.map_or(0, |p| p.address);
        let initial = self.initial_at().and_then(|i| io.d_inputs[i].as_ref());
        let gradients = Gradients {
            out: io.outputs[0].address,
            saved: address(io.saved.first()),
            d_out: address(io.d_outputs[0].as_ref()),
            d_last: address(io.d_outputs[1].as_ref()),
            d_gates: [0, 1].map(|d| address(d_gates(d).map(|d| &d.to))),
            d_initial: address(initial.map(|d| &d.to)),
            products,
            before,
            carried,
            accumulate: [0, 1].map(|d| d_gates(d).is_some_and(|d| d.accumulate) as i32),
            accumulate_initial: initial.is_some_and(|d| d.accumulate) as i32,
            unused: 0,
        };
        let division = self.division(gpu, &s, Pass::Backward)?;
        let turns = s.length + 1;
        self.run(&s, self.inputs(&s, &io.inputs), division, turns, &|inputs, launch, first, end| {
            let arguments: [&dyn Argument; 5] = [&inputs, &gradients, &arrived, &first, &end];
            self.launch(gpu, Pass::Backward, division.kernel, launch, &arguments)
        })?;
        let rows = s.batch * s.length;
        for d in 0..s.directions {
            let (products, before) =
                (products + 4 * (d * rows * s.columns) as u64, before + 4 * (d * rows * s.hidden) as u64);
            if let Some(dw) = &io.d_inputs[self.gates_at(d) + 1] {
                gpu.matmul(&Matmul {
                    m: s.columns,
                    n: s.hidden,
                    k: rows,
                    a: products,
                    lda: s.columns,
                    transpose_a: true,
                    b: before,
                    ldb: s.hidden,
                    transpose_b: false,
                    c: dw.to.address,
                    ldc: s.hidden,
                    beta: dw.accumulate as i32 as f32,
                    factors: Precision::F32,
                    product: Precision::F32,
                })?;
            }
            if self.bias
                && let Some(db) = &io.d_inputs[self.gates_at(d) + 2]
            {
                linear::sum_columns(gpu, products, (rows, s.columns), sums, db)?;
            }
        }
        Ok(())
    }
}

/// f32 numbers in the scratch.
fn flat(address: u64, n: usize) -> Place {
    Place { address, kind: Kind::Full, shape: vec![n], strides: vec![1] }
}

/// A 32-bit counter for each team.
fn counters(address: u64, teams: usize) -> Place {
    Place { address, kind: Kind::Int, shape: vec![teams], strides: vec![1] }
}

impl GpuOp for Recurrence {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        self.launch_forward(gpu, io)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        self.launch_backward(gpu, io)
    }

    fn remark(&self, gpu: &Gpu, inputs: &[&Spec]) -> Result<Option<String>> {
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        for pass in [Pass::Forward, Pass::Backward] {
            if self.kernel.is_none() && self.division(gpu, &s, pass)?.kernel == Kernel::Stepwise {
                let (name, hidden, device) = (self.name(), s.hidden, &gpu.properties().name);
                return Ok(Some(format!(
                    "{name}: the recurrent weights of {hidden} units do not fit on chip of {device}: each step reads them anew"
                )));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::cuda::Arch;
    use crate::gpu::recorder::Recorder;
    use std::sync::Arc;

    /// How both passes of a GRU are divided on an architecture, both directions of 8 sequences.
    fn divisions(arch: Arch, precision: Precision, hidden: usize) -> [Division; 2] {
        let recorder = Arc::new(Recorder::new(arch.sm, arch.shared_per_block()));
        let gpu = Gpu::storing(precision, "recorder", recorder);
        let op =
            Recurrence { cell: Cell::Gru, directions: 2, bias: true, initial: false, lengths: false, kernel: None };
        let s = Sizes { batch: 8, length: 5, hidden, columns: 3 * hidden, directions: 2 };
        [Pass::Forward, Pass::Backward].map(|pass| op.division(&gpu, &s, pass).unwrap())
    }

    #[test]
    fn a_hidden_width_of_256_stays_on_chip_everywhere() {
        for (arch, precision) in Arch::ALL.into_iter().flat_map(|a| Precision::STORED.iter().map(move |&p| (a, p))) {
            let tensor_cores = precision != Precision::F32 && arch.sm >= 80;
            let expected = if tensor_cores { Kernel::TensorCores } else { Kernel::OnChip };
            for division in divisions(arch, precision, 256) {
                // One direction of it at least: a T4 has 40 multiprocessors.
                assert!(division.kernel == expected && division.slices <= 40, "{arch} {precision}: {division:?}");
            }
            assert_eq!(divisions(arch, precision, 8192).map(|d| d.kernel), [Kernel::Stepwise; 2], "{arch} {precision}");
        }
    }

    #[test]
    fn fewer_blocks_take_more_units() {
        // 132 multiprocessors cannot hold 1100 / 8 blocks; with 16 units a block they hold one team.
        let forward = divisions(Arch::from_capability(9, 0), Precision::F32, 1100)[0];
        assert_eq!((forward.units, forward.slices, forward.at_once), (16, 69, 1));
    }

    #[test]
    fn what_does_not_fit_is_remarked_upon() {
        let arch = Arch::from_capability(9, 0);
        let recorder = Arc::new(Recorder::new(arch.sm, arch.shared_per_block()));
        let device: Arc<dyn crate::Device> = Arc::new(Gpu::storing(Precision::Bf16, "recorder", recorder));
        let remarks = |hidden: usize| {
            let mut g = crate::Graph::new();
            let x = g.input("x", &[1, 1, 3 * hidden]);
            let weight = g.input("weight_hh", &[3 * hidden, hidden]);
            let (cell, directions) = (Cell::Gru, 1);
            let op = Recurrence { cell, directions, bias: false, initial: false, lengths: false, kernel: None };
            g.record(op, &[x, weight]).unwrap();
            g.remarks(&*device).unwrap()
        };
        assert!(remarks(256).is_empty());
        assert!(remarks(4096).first().unwrap().contains("4096 units do not fit on chip"));
    }
}
