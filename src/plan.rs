//! A graph made ready to run on one device: every buffer placed once, by lifetime, in one allocation.
//!
//! `placement` decides where; here plans are written, run and read.

mod placement;
mod pool;

use crate::device::{Device, Memory};
use crate::error::{Error, Result};
use crate::graph::{Graph, Origin, Tensor};
pub use crate::op::HYPER;
use crate::op::{Backward, Forward, Kind, Op, Place, Update};
use crate::precision::Precision;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a plan must keep and compute.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Tensors to differentiate: usually the loss. Empty: forward only. A gradient flows in where
    /// [`Plan::seed`] writes it; a single number gets 1.
    pub roots: Vec<Tensor>,
    /// Tensors whose values (and gradients, if they have any) can be read afterwards, besides inputs and roots.
    pub keep: Vec<Tensor>,
    /// How many parameter-sized buffers the optimiser needs.
    pub optimizer_slots: usize,
    /// Whether parameters' gradients add up over calls of [`Plan::backward`] until [`Plan::zero_gradients`].
    pub accumulate: bool,
    /// Whether memory is filled with NaN before every forward, so that reading what was never written shows.
    pub poison: bool,
}

struct Step<Io> {
    op: Arc<dyn Op>,
    /// Gradients to be zeroed first, as this step writes them only in part.
    zero: Vec<Place>,
    io: Io,
}

/// A planned graph.
pub struct Plan {
    graph: Graph,
    device: Arc<dyn Device>,
    memory: Arc<Memory>,
    /// Where the shared parameters lie, if they are another plan's: that plan's memory, and what it shares itself.
    shared: Vec<Arc<Memory>>,
    forward: Vec<Step<Forward<Place, Place>>>,
    backward: Vec<Step<Backward<Place, Place>>>,
    /// Gradients that nothing contributes to.
    untouched: Vec<Place>,
    values: BTreeMap<Tensor, Place>,
    /// Where a device stores in 16 bits: the parameters in f32, which updates change. Ops read `values`.
    masters: BTreeMap<Tensor, Place>,
    /// The 16-bit parameters' section, to be refreshed from the masters before every forward.
    shadow: Option<u64>,
    gradients: BTreeMap<Tensor, Place>,
    readable: BTreeSet<Tensor>,
    /// Elements of all parameters, and of those with weight decay, which come first.
    parameters: (usize, usize),
    /// Parameters, gradients, slots, hyper-parameters: what updates work on.
    sections: Vec<Place>,
    /// The part of memory that is shared by lifetime: offset and bytes.
    pooled: (u64, usize),
    poison: bool,
}

impl Plan {
    /// The graph that was planned.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Bytes of device memory that the plan holds of its own: all that a run takes there, but for what it shares with
    /// another plan ([`Plan::sharing`]).
    pub fn peak_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Elements of all parameters (with padding), and how many of them, at the front, have weight decay.
    pub fn parameter_elements(&self) -> (usize, usize) {
        self.parameters
    }

    /// Writes a floating-point input, constant or parameter, in row-major order.
    ///
    /// # Errors
    /// If the number of values is not the tensor's.
    pub fn write(&self, t: Tensor, data: &[f64]) -> Result<()> {
        self.check_floating(t, data.len())?;
        self.put(self.stored(t), data)
    }

    /// Writes integers.
    ///
    /// # Errors
    /// If their number is not the tensor's, or one lies outside the range that the graph declared.
    pub fn write_indices(&self, t: Tensor, data: &[i32]) -> Result<()> {
        self.check(t, Kind::Int, data.len())?;
        let info = &self.graph.tensors[t.0];
        if let Origin::Fed { range } = &info.origin
            && let Some(i) = data.iter().position(|&x| !range.contains(&(x as i64)))
        {
            let (low, high) = (range.start, range.end - 1);
            let problem = format!("value {} at position {i} is out of range", data[i]);
            return Err(Error::argument(&info.name, problem, format!("give values from {low} to {high}")));
        }
        // SAFETY: the place lies in the plan's allocation and holds this many elements.
        unsafe { self.device.upload(self.values[&t].address, bytemuck::cast_slice(data)) }
    }

    /// Writes the gradient that flows into a root.
    ///
    /// # Errors
    /// If `t` is no root, or the number of values is not its own.
    pub fn seed(&self, t: Tensor, data: &[f64]) -> Result<()> {
        self.check_floating(t, data.len())?;
        let Some(place) = self.gradients.get(&t) else {
            return Err(Error::argument(self.graph.name(t), "has no gradient", "name it among the plan's roots"));
        };
        self.put(place, data)
    }

    /// Reads a value, in row-major order.
    ///
    /// # Errors
    /// If the plan was not asked to keep it.
    pub fn read(&self, t: Tensor) -> Result<Vec<f64>> {
        let owner = self.graph.part(t).0;
        let computed = matches!(self.graph.tensors[owner.0].origin, Origin::Computed { .. });
        if computed && !self.readable.contains(&owner) {
            return Err(Error::argument(self.graph.name(t), "was not kept", "name it in PlanOptions::keep"));
        }
        self.get(self.stored(t))
    }

    /// Where the user's value of a tensor lies: of parameters, the one that updates change.
    fn stored(&self, t: Tensor) -> &Place {
        self.masters.get(&t).unwrap_or(&self.values[&t])
    }

    /// Reads the gradient of a parameter, variable, root or kept tensor.
    ///
    /// # Errors
    /// If it has none, or the plan was not asked to keep it.
    pub fn read_gradient(&self, t: Tensor) -> Result<Vec<f64>> {
        let owner = self.graph.part(t).0;
        let computed = matches!(self.graph.tensors[owner.0].origin, Origin::Computed { .. });
        match self.gradients.get(&t).filter(|_| !computed || self.readable.contains(&owner)) {
            Some(place) => self.get(place),
            None => Err(Error::argument(self.graph.name(t), "has no kept gradient", "name it in PlanOptions::keep")),
        }
    }

    /// Runs all ops forward.
    pub fn forward(&self) -> Result<()> {
        if self.poison {
            // SAFETY: the pooled part of the plan's allocation, or of the one it shares with.
            unsafe { self.device.fill(self.pooled.0, 0xff, self.pooled.1)? };
        }
        self.run(&|| {
            if let Some(shadow) = self.shadow {
                // SAFETY: two sections, each of all parameters' elements, that the plan keeps alive.
                unsafe { self.device.narrow(self.sections[0].address, shadow, self.parameters.0)? };
            }
            for step in &self.forward {
                // SAFETY: the places lie in the plan's allocation, and what lives at one time does not overlap.
                unsafe { self.device.forward(&*step.op, &step.io)? };
            }
            Ok(())
        })
    }

    /// Runs backward what the roots depend on; forward has run before.
    pub fn backward(&self) -> Result<()> {
        self.run(&|| {
            self.untouched.iter().try_for_each(|p| self.zero(p))?;
            for step in &self.backward {
                step.zero.iter().try_for_each(|p| self.zero(p))?;
                // SAFETY: as in forward.
                unsafe { self.device.backward(&*step.op, &step.io)? };
            }
            Ok(())
        })
    }

    /// Sets the gradients of all parameters to zero: before the first of several backward runs that add up.
    pub fn zero_gradients(&self) -> Result<()> {
        self.zero(&self.sections[1])
    }

    /// Writes the hyper-parameters that updates read; at most [`HYPER`].
    pub fn write_hyper(&self, hyper: &[f64]) -> Result<()> {
        assert!(hyper.len() <= HYPER, "at most {HYPER} hyper-parameters");
        let mut all = [0.0; HYPER];
        all[..hyper.len()].copy_from_slice(hyper);
        self.put(&self.hyper(), &all)
    }

    /// Reads the hyper-parameters back: updates may leave results there (the gradient norm).
    pub fn read_hyper(&self) -> Result<Vec<f64>> {
        self.get(&self.hyper())
    }

    /// Runs an update: its buffers are parameters, gradients, slots, hyper-parameters.
    pub fn update(&self, update: &dyn Update) -> Result<()> {
        // SAFETY: sections of one allocation, the plan's or of the one it shares with, apart from each other.
        self.run(&|| unsafe { self.device.update(update, &self.sections) })
    }

    /// Reads one of the optimiser's buffers, for a checkpoint.
    pub fn read_slot(&self, slot: usize) -> Result<Vec<f64>> {
        self.get(&self.sections[2 + slot])
    }

    /// Writes one of the optimiser's buffers, from a checkpoint.
    pub fn write_slot(&self, slot: usize, data: &[f64]) -> Result<()> {
        assert_eq!(data.len(), self.parameters.0, "a slot has as many elements as the parameters");
        self.put(&self.sections[2 + slot], data)
    }

    /// Takes the parameters of another plan of the same model.
    ///
    /// # Panics
    /// If the models' parameters differ in number or order.
    pub fn copy_parameters(&self, from: &Plan) -> Result<()> {
        assert_eq!(self.parameters, from.parameters, "two plans of one model");
        if Arc::ptr_eq(&self.device, &from.device) {
            let bytes = self.parameters.0 * self.device.precision().full().bytes();
            // SAFETY: the parameters' sections of two plans, each as long.
            return unsafe { self.device.copy(self.sections[0].address, from.sections[0].address, bytes) };
        }
        self.put(&self.sections[0], &from.get(&from.sections[0])?)
    }

    /// The hyper-parameters, without the scratch behind them.
    fn hyper(&self) -> Place {
        Place { shape: vec![HYPER], ..self.sections.last().expect("every plan has some").clone() }
    }

    fn zero(&self, place: &Place) -> Result<()> {
        // SAFETY: an owner's gradient is contiguous or a permutation without gaps, in the plan's allocation.
        unsafe { self.device.fill(place.address, 0, place.numel() * self.precision(place).bytes()) }
    }

    fn run(&self, work: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
        let mut result = Ok(());
        self.device.scope(&mut || result = work());
        result
    }

    fn check(&self, t: Tensor, kind: Kind, len: usize) -> Result<()> {
        let spec = self.graph.spec(t);
        if spec.kind != kind || spec.numel() != len {
            return Err(Error::shape("plan", self.graph.name(t), spec.to_string(), format!("{len} {kind:?} values")));
        }
        Ok(())
    }

    fn check_floating(&self, t: Tensor, len: usize) -> Result<()> {
        let kind = self.graph.spec(t).kind;
        self.check(t, if kind == Kind::Int { Kind::Real } else { kind }, len)
    }

    /// In what the elements of a floating-point place are stored.
    fn precision(&self, place: &Place) -> Precision {
        let precision = self.device.precision();
        if place.kind == Kind::Full { precision.full() } else { precision }
    }

    fn put(&self, place: &Place, data: &[f64]) -> Result<()> {
        let stored = to_stored(place, data);
        let bytes = self.precision(place).encode(&stored);
        // SAFETY: the place lies in the plan's allocation and holds this many elements.
        unsafe { self.device.upload(place.address, &bytes) }
    }

    fn get(&self, place: &Place) -> Result<Vec<f64>> {
        let precision = self.precision(place);
        let mut bytes = vec![0u8; crate::cpu::strided::span(&place.shape, &place.strides) * precision.bytes()];
        // SAFETY: the place lies in the plan's allocation and reaches this far.
        unsafe { self.device.download(place.address, &mut bytes)? };
        let stored = precision.decode(&bytes);
        Ok(indices(place).map(|i| stored[i]).collect())
    }
}

/// The stored index of each element, in row-major order.
fn indices(place: &Place) -> impl Iterator<Item = usize> + '_ {
    (0..place.numel()).map(|mut i| {
        let mut offset = 0;
        for (&n, &stride) in place.shape.iter().zip(&place.strides).rev() {
            offset += i % n * stride;
            i /= n;
        }
        offset
    })
}

/// Row-major values in the order in which a place without gaps stores them.
fn to_stored(place: &Place, data: &[f64]) -> Vec<f64> {
    let mut stored = vec![0.0; data.len()];
    for (&x, i) in data.iter().zip(indices(place)) {
        stored[i] = x;
    }
    stored
}
