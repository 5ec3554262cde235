//! What an op is: its contract, its CPU implementation, its launches, its cost.
//!
//! An op is one value that implements four traits. [`CpuOp`] is written once, generic over `R: Real`, and so
//! gives both `CpuOp<f32>` and `CpuOp<f64>`. A backward pass is a required method everywhere.

use crate::cpu::strided::contiguous_strides;
use crate::cpu::{Mut, Real, Ref};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::precision::Precision;
use rayon::prelude::*;
use std::fmt;

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Floating point, stored in the device's precision: 16 bits where that is f16 or bf16.
    Real,
    /// Floating point in the precision that the device computes in, whatever it stores: statistics, logarithms of sums,
    /// losses, gradients of weights.
    Full,
    /// `i32`: tokens, lengths, seeds.
    Int,
}

/// Kind and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What it holds.
    pub kind: Kind,
    /// Sizes, slowest axis first.
    pub shape: Vec<usize>,
}

impl Spec {
    /// A floating-point tensor.
    pub fn real(shape: impl Into<Vec<usize>>) -> Self {
        Spec { kind: Kind::Real, shape: shape.into() }
    }
    /// A floating-point tensor in the precision of the computation.
    pub fn full(shape: impl Into<Vec<usize>>) -> Self {
        Spec { kind: Kind::Full, shape: shape.into() }
    }
    /// An integer tensor.
    pub fn int(shape: impl Into<Vec<usize>>) -> Self {
        Spec { kind: Kind::Int, shape: shape.into() }
    }
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Display for Spec {
    /// Such as `real(2, 3)`, `full(2)` or `int(4)`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let kind = match self.kind {
            Kind::Real => "real",
            Kind::Full => "full",
            Kind::Int => "int",
        };
        write!(f, "{kind}({})", sizes.join(", "))
    }
}

/// An output's shape, and how it lies in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Kind and sizes.
    pub spec: Spec,
    /// Elements from one index to the next, per axis. They permute a contiguous buffer: no gaps.
    pub strides: Vec<usize>,
}

impl Output {
    /// A contiguous floating-point output.
    pub fn real(shape: impl Into<Vec<usize>>) -> Self {
        Self::contiguous(Spec::real(shape))
    }
    /// A contiguous output in the precision of the computation.
    pub fn full(shape: impl Into<Vec<usize>>) -> Self {
        Self::contiguous(Spec::full(shape))
    }
    fn contiguous(spec: Spec) -> Self {
        let strides = contiguous_strides(&spec.shape);
        Output { spec, strides }
    }
}

/// What an op promises for given inputs: the plan allocates by it.
#[derive(Debug, Clone, Default)]
pub struct Contract {
    /// What it computes.
    pub outputs: Vec<Output>,
    /// What forward keeps for backward (floating point), besides inputs and outputs.
    pub saved: Vec<Spec>,
    /// Elements of scratch in forward, on a GPU, in the precision of the computation. (CPU ops keep per-thread tiles
    /// of constant size themselves.)
    pub scratch_forward: usize,
    /// Elements of scratch in backward, on a GPU, likewise.
    pub scratch_backward: usize,
    /// Which inputs' values backward reads. Empty: all.
    pub backward_reads_inputs: Vec<bool>,
    /// Which outputs' values backward reads. Empty: none.
    pub backward_reads_outputs: Vec<bool>,
    /// Inputs that the op has no gradient for: one that needs a gradient is refused when it is recorded.
    pub constant_inputs: Vec<usize>,
    /// Outputs that no gradient flows through.
    pub constant_outputs: Vec<usize>,
    /// Outputs that have memory of their own, zeros at first: what a run does not write stays from the runs before. A cache
    /// of keys and values, a recurrent state.
    pub persistent_outputs: Vec<usize>,
    /// Which inputs are weights: many rows add to their gradients, which are therefore [`Kind::Full`]. Empty: none.
    pub weights: Vec<bool>,
}

/// What executing an op costs, for roofline figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts 2) of forward.
    pub forward_flops: f64,
    /// Bytes that forward must move at least, at 4 bytes an element whatever its kind.
    pub forward_bytes: f64,
    /// Floating-point operations of backward.
    pub backward_flops: f64,
    /// Bytes that backward must move at least.
    pub backward_bytes: f64,
}

/// Forward's arguments; `I` is what is read, `O` what is written.
#[derive(Debug, Clone)]
pub struct Forward<I, O> {
    /// As recorded.
    pub inputs: Vec<I>,
    /// As in the contract; contents undefined (NaN in validation).
    pub outputs: Vec<O>,
    /// As in the contract; contents undefined.
    pub saved: Vec<O>,
    /// `scratch_forward` elements on a GPU.
    pub scratch: O,
}

/// Backward's arguments.
#[derive(Debug, Clone)]
pub struct Backward<I, O> {
    /// As recorded; only those that the contract says are read still hold their values.
    pub inputs: Vec<I>,
    /// Only those that the contract says are read still hold their values.
    pub outputs: Vec<I>,
    /// As forward left them.
    pub saved: Vec<I>,
    /// Gradient of each output; `None` where nothing depends on it.
    pub d_outputs: Vec<Option<I>>,
    /// Gradient of each input; `None` where it is not needed.
    pub d_inputs: Vec<Option<Gradient<O>>>,
    /// `scratch_backward` elements on a GPU.
    pub scratch: O,
}

/// A gradient to be written.
#[derive(Debug, Clone, Copy)]
pub struct Gradient<O> {
    /// Where.
    pub to: O,
    /// Whether to add to what is there; otherwise it holds nothing yet and is overwritten. (Zeroing everything
    /// first and always adding would cost the memory-bound ops twice the traffic.)
    pub accumulate: bool,
}

impl<'a, R: Real> Gradient<Mut<'a, R>> {
    /// The gradient's elements, ready for `+=`: zeroed where nothing has been written yet.
    pub fn added(self) -> &'a mut [R] {
        let mut to = self.to;
        let all = to.contiguous();
        if !self.accumulate {
            // A table of vectors is as large as a cache.
            all.par_chunks_mut(1 << 16).for_each(|part| part.fill(R::ZERO));
        }
        all
    }
}

/// Forward of a CPU op.
pub type ForwardCpu<'a, R> = Forward<Input<'a, R>, Mut<'a, R>>;
/// Backward of a CPU op.
pub type BackwardCpu<'a, R> = Backward<Input<'a, R>, Mut<'a, R>>;
/// Forward of a GPU op.
pub type ForwardGpu = Forward<Place, Place>;
/// Backward of a GPU op.
pub type BackwardGpu = Backward<Place, Place>;

/// An input of a CPU op.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a, R> {
    /// Floating point.
    Real(Ref<'a, R>),
    /// Integers.
    Int(Ref<'a, i32>),
}

impl<'a, R: Real> Input<'a, R> {
    /// As a floating-point tensor.
    ///
    /// # Panics
    /// If it is an integer tensor; the contract rules that out.
    pub fn real(&self) -> Ref<'a, R> {
        match self {
            Input::Real(r) => *r,
            Input::Int(_) => panic!("a real tensor was expected"),
        }
    }
    /// The integers of a contiguous tensor.
    ///
    /// # Panics
    /// If it is a floating-point tensor; the contract rules that out.
    pub fn ints(&self) -> &'a [i32] {
        match self {
            Input::Int(i) => i.data,
            Input::Real(_) => panic!("an integer tensor was expected"),
        }
    }
    /// As an integer tensor.
    ///
    /// # Panics
    /// If it is a floating-point tensor; the contract rules that out.
    pub fn int_tensor(&self) -> Ref<'a, i32> {
        match self {
            Input::Int(i) => *i,
            Input::Real(_) => panic!("an integer tensor was expected"),
        }
    }
    /// All elements of a contiguous floating-point tensor.
    pub fn all(&self) -> &'a [R] {
        self.real().contiguous()
    }
}

/// Where a tensor lies on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Address of its first element.
    pub address: u64,
    /// What it holds.
    pub kind: Kind,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per axis.
    pub strides: Vec<usize>,
}

impl Place {
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Which of two CPU implementations runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Straight from the formula, in plain loops: the oracle in f64, and in f32 the measure of what rounding alone costs.
    Definition,
    /// Blocked, vectorised, threaded.
    Fast,
}

/// An op's CPU implementation, generic over f32 and f64.
pub trait CpuOp<R: Real> {
    /// Computes outputs and saved tensors.
    fn forward_cpu(&self, io: ForwardCpu<R>, mode: Mode);
    /// Computes the inputs' gradients.
    fn backward_cpu(&self, io: BackwardCpu<R>, mode: Mode);
}

/// An op's launch code, for a GPU and for the emulator.
pub trait GpuOp {
    /// Launches forward.
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()>;
    /// Launches backward.
    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()>;
    /// What users should know of how it runs there on such inputs, in a line: that it is slower than it could be, and why.
    fn remark(&self, gpu: &Gpu, inputs: &[&Spec]) -> Result<Option<String>> {
        let _ = (gpu, inputs);
        Ok(None)
    }
}

/// An operation on tensors, with its derivative.
pub trait Op: CpuOp<f32> + CpuOp<f64> + GpuOp + fmt::Debug + Send + Sync {
    /// Its name: in the registry, on the command line, in benches.
    fn name(&self) -> &'static str;
    /// Checks the inputs and says what comes out. Errors name the argument ([`crate::Error::shape`]).
    fn contract(&self, inputs: &[&Spec]) -> Result<Contract>;
    /// FLOPs and bytes for these inputs.
    fn cost(&self, inputs: &[&Spec]) -> Cost;
    /// Whether inputs may be strided views (with unit stride along the last axis).
    fn accepts_strides(&self) -> bool {
        false
    }
    /// For which precisions of a device it has kernels; [`Precision::STORED`] where they take whatever is stored,
    /// and [`Precision::Tf32`] where its products can be in TF32. The CPU asks nobody.
    fn precisions(&self) -> &'static [Precision] {
        &[Precision::F32]
    }
}

/// Hyper-parameters that may change from step to step.
pub const HYPER: usize = 8;
/// Elements of scratch behind the hyper-parameters: partial sums of a norm.
pub const UPDATE_SCRATCH: usize = 1024;

/// An in-place change of the parameters after backward: an optimiser, or the clipping of gradients.
///
/// `buffers` are flat, [`Kind::Full`] and of one length n: parameters, gradients, then the state slots; last [`HYPER`]
/// hyper-parameters that change from step to step (see each update), with [`UPDATE_SCRATCH`] elements of scratch behind them.
pub trait Update: CpuUpdate<f32> + CpuUpdate<f64> + fmt::Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Launches it.
    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()>;
}

/// An update on the CPU.
pub trait CpuUpdate<R: Real> {
    /// Runs it.
    fn update_cpu(&self, buffers: Vec<&mut [R]>, mode: Mode);
}
