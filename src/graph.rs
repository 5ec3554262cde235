//! Recording a model: tensors, and the ops between them. Shapes are checked as ops are recorded.

use crate::cpu::strided::{contiguous_strides, is_contiguous};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::op::{Contract, Kind, Op, Spec};
use crate::ops::copy::Copy;
use crate::precision::Precision;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// A tensor of a [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(pub(crate) usize);

/// Where a tensor's values come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origin {
    /// Written by the user. Integers must lie in the range.
    Fed { range: Range<i64> },
    /// Trained; `decay` says whether weight decay applies.
    Parameter { decay: bool },
    /// Written by the user once, and never trained.
    Frozen,
    /// The given output of a node.
    Computed { node: usize, output: usize },
    /// Part of another tensor, from the element at `offset` on.
    View { base: Tensor, part: Part, offset: usize },
}

/// A box of a tensor seen as a matrix: rows are all axes but the last, flattened; columns the last axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Part {
    fn whole(shape: &[usize]) -> Part {
        let columns = shape.last().copied().unwrap_or(1);
        Part { rows: 0..shape[..shape.len().saturating_sub(1)].iter().product(), columns: 0..columns }
    }

    fn meets(&self, other: &Part) -> bool {
        let meet = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        meet(&self.rows, &other.rows) && meet(&self.columns, &other.columns)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Info {
    pub name: String,
    pub spec: Spec,
    pub strides: Vec<usize>,
    pub origin: Origin,
    pub needs_gradient: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
    pub contract: Contract,
}

/// What a tensor holds as soon as it is planned.
#[derive(Debug, Clone)]
pub(crate) enum Preset {
    /// Floating point.
    Real(Vec<f64>),
    /// Integers.
    Int(Vec<i32>),
}

/// A model, forward only.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(crate) tensors: Vec<Info>,
    pub(crate) nodes: Vec<Node>,
    /// What plans write before anybody else does.
    pub(crate) presets: Vec<(Tensor, Preset)>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        spec: Spec,
        strides: Vec<usize>,
        origin: Origin,
        needs_gradient: bool,
    ) -> Tensor {
        self.tensors.push(Info { name: name.into(), spec, strides, origin, needs_gradient });
        Tensor(self.tensors.len() - 1)
    }

    fn add_contiguous(&mut self, name: &str, spec: Spec, origin: Origin, needs_gradient: bool) -> Tensor {
        let strides = contiguous_strides(&spec.shape);
        self.add(name, spec, strides, origin, needs_gradient)
    }

    /// A floating-point tensor that the user writes before each run.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.add_contiguous(name, Spec::real(shape), Origin::Fed { range: 0..0 }, false)
    }

    /// The same, stored in the precision of the computation: constants that 16 bits would bend.
    pub fn full_input(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.add_contiguous(name, Spec::full(shape), Origin::Fed { range: 0..0 }, false)
    }

    /// A floating-point tensor that the user writes, with a gradient that can be read after backward.
    pub fn variable(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.add_contiguous(name, Spec::real(shape), Origin::Fed { range: 0..0 }, true)
    }

    /// Integers that the user writes, each in `range`: tokens, lengths. Writing others is an error, so ops need no checks.
    pub fn indices(&mut self, name: &str, shape: &[usize], range: Range<i64>) -> Tensor {
        self.add_contiguous(name, Spec::int(shape), Origin::Fed { range }, false)
    }

    /// A tensor that is no input: tables of sines, slopes. Each plan writes it once. [`Kind::Full`] keeps the precision of the
    /// computation where tensors are stored in 16 bits.
    ///
    /// # Panics
    /// If it is of integers, or the number of values is not the shape's.
    pub fn constant(&mut self, name: &str, spec: Spec, values: Vec<f64>) -> Tensor {
        assert!(spec.kind != Kind::Int && spec.numel() == values.len(), "{name}: as many values as {spec} has");
        let t = self.add_contiguous(name, spec, Origin::Fed { range: 0..0 }, false);
        self.presets.push((t, Preset::Real(values)));
        t
    }

    /// Integers that hold these values until the user writes others.
    ///
    /// # Panics
    /// If the number of values is not the shape's, or one is out of range.
    pub fn preset_indices(&mut self, name: &str, shape: &[usize], range: Range<i64>, values: Vec<i32>) -> Tensor {
        assert!(shape.iter().product::<usize>() == values.len(), "{name}: as many values as {shape:?} has");
        assert!(values.iter().all(|&x| range.contains(&(x as i64))), "{name}: values in range");
        let t = self.indices(name, shape, range);
        self.presets.push((t, Preset::Int(values)));
        t
    }

    /// A trained tensor; `decay` says whether an optimiser's weight decay applies to it.
    pub fn parameter(&mut self, name: &str, shape: &[usize], decay: bool) -> Tensor {
        self.add_contiguous(name, Spec::real(shape), Origin::Parameter { decay }, true)
    }

    /// A tensor that is part of the model as parameters are, but keeps what the user writes: it has no gradient and no
    /// optimiser's state. Plans that share parameters share it.
    pub fn frozen(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.add_contiguous(name, Spec::real(shape), Origin::Frozen, false)
    }

    /// Records an op and returns its outputs.
    ///
    /// # Errors
    /// If an input's shape or kind does not fit, with the op's and the argument's name.
    pub fn record(&mut self, op: impl Op + 'static, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.record_op(Arc::new(op), inputs)
    }

    /// [`Graph::record`] for an op with one output.
    pub fn one(&mut self, op: impl Op + 'static, inputs: &[Tensor]) -> Result<Tensor> {
        Ok(self.record(op, inputs)?[0])
    }

    fn record_op(&mut self, op: Arc<dyn Op>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut inputs = inputs.to_vec();
        for i in 0..inputs.len() {
            // Gradients of one node's inputs must not share elements, so a tensor used twice is copied.
            if self.tensors[inputs[i].0].needs_gradient && inputs[..i].iter().any(|&t| self.overlap(t, inputs[i])) {
                inputs[i] = self.one(Copy, &[inputs[i]])?;
            }
            let info = &self.tensors[inputs[i].0];
            if !op.accepts_strides() && !is_contiguous(&info.spec.shape, &info.strides) {
                let got = format!("a view with strides {:?}", info.strides);
                return Err(Error::shape(op.name(), &info.name, "a contiguous tensor (record a Copy first)", got));
            }
        }
        let specs: Vec<&Spec> = inputs.iter().map(|t| &self.tensors[t.0].spec).collect();
        let contract = op.contract(&specs)?;
        if let Some(&i) = contract.constant_inputs.iter().find(|&&i| self.tensors[inputs[i].0].needs_gradient) {
            let info = &self.tensors[inputs[i].0];
            let expected = "a tensor that needs no gradient: the op has none for it";
            return Err(Error::shape(op.name(), &info.name, expected, "one that needs a gradient"));
        }
        let needs_gradient = inputs.iter().any(|t| self.tensors[t.0].needs_gradient);
        let node = self.nodes.len();
        let mut outputs = Vec::new();
        for (output, o) in contract.outputs.iter().enumerate() {
            let name = format!("{}:{node}.{output}", op.name());
            let origin = Origin::Computed { node, output };
            let constant = contract.constant_outputs.contains(&output);
            let differentiable = needs_gradient && o.spec.kind != Kind::Int && !constant;
            outputs.push(self.add(name, o.spec.clone(), o.strides.clone(), origin, differentiable));
        }
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), contract });
        Ok(outputs)
    }

    /// Whether two tensors share elements.
    fn overlap(&self, a: Tensor, b: Tensor) -> bool {
        let ((base_a, part_a), (base_b, part_b)) = (self.part(a), self.part(b));
        base_a == base_b && part_a.meets(&part_b)
    }

    /// The tensor that owns the memory, and which part of it this one covers.
    pub(crate) fn part(&self, t: Tensor) -> (Tensor, Part) {
        match &self.tensors[t.0].origin {
            Origin::View { base, part, .. } => (*base, part.clone()),
            _ => (t, Part::whole(&self.tensors[t.0].spec.shape)),
        }
    }

    /// Whether a tensor's gradient is [`Kind::Full`]: many rows add to a weight's.
    pub(crate) fn gradient_kind(&self, t: Tensor, weights: &BTreeSet<Tensor>) -> Kind {
        let owner = self.part(t).0;
        let info = &self.tensors[owner.0];
        let full = weights.contains(&owner) || matches!(info.origin, Origin::Parameter { .. });
        if full { Kind::Full } else { info.spec.kind }
    }

    /// The owners of all tensors that an op takes as a weight.
    pub(crate) fn weights(&self) -> BTreeSet<Tensor> {
        self.uses().filter(|(.., weight)| *weight).map(|(_, t, _)| self.part(t).0).collect()
    }

    /// Every node's every input, and whether it is a weight there.
    fn uses(&self) -> impl Iterator<Item = (&Node, Tensor, bool)> {
        let weight = |node: &Node, i: usize| node.contract.weights.get(i).copied().unwrap_or(false);
        self.nodes.iter().flat_map(move |n| n.inputs.iter().enumerate().map(move |(i, &t)| (n, t, weight(n, i))))
    }

    /// What users should know of how the ops run on a device, each line once.
    ///
    /// # Errors
    /// If a kernel cannot be compiled there.
    pub fn remarks(&self, device: &dyn Device) -> Result<BTreeSet<String>> {
        let specs = |node: &Node| node.inputs.iter().map(|t| self.spec(*t).clone()).collect::<Vec<Spec>>();
        let of = |node: &Node| device.remark(&*node.op, &specs(node).iter().collect::<Vec<_>>());
        self.nodes.iter().filter_map(|node| of(node).transpose()).collect()
    }

    /// Whether every op has kernels for a device of this precision, and every gradient one kind.
    ///
    /// # Errors
    /// Naming the op without kernels, or the tensor that is used both as a weight and otherwise.
    pub fn check(&self, precision: Precision) -> Result<()> {
        if !precision.is_half() {
            return Ok(());
        }
        let remedy = "use --dtype f32";
        if let Some(node) = self.nodes.iter().find(|n| !n.op.precisions().contains(&precision)) {
            return Err(Error::argument(node.op.name(), format!("has no kernels in {precision}"), remedy));
        }
        let weights = self.weights();
        for (node, t, weight) in self.uses().filter(|(_, t, _)| self.needs_gradient(*t)) {
            let (owner, op) = (self.part(t).0, node.op.name());
            let info = &self.tensors[owner.0];
            let computed = matches!(info.origin, Origin::Computed { .. });
            let problem = if weight && computed {
                format!(
                    "is computed, and `{op}` takes it as a weight: its gradient would be f32, its producer's {precision}"
                )
            } else if !weight && self.gradient_kind(t, &weights) == Kind::Full && info.spec.kind == Kind::Real {
                format!("is a weight, and `{op}` takes it as no weight: its gradient would be both f32 and {precision}")
            } else {
                continue;
            };
            return Err(Error::argument(format!("tensor `{}`", info.name), problem, remedy));
        }
        Ok(())
    }

    /// A tensor that views can be made of: contiguous, and no view itself.
    fn viewable(&self, t: Tensor, view: &str) -> Result<&Info> {
        let info = &self.tensors[t.0];
        if matches!(info.origin, Origin::View { .. }) || !is_contiguous(&info.spec.shape, &info.strides) {
            let got = format!("{} with strides {:?}", info.spec, info.strides);
            return Err(Error::shape(view, &info.name, "a contiguous tensor that is no view", got));
        }
        Ok(info)
    }

    /// Indices `range` of the first axis of a contiguous tensor, in place.
    ///
    /// # Errors
    /// If the tensor is a view, or the range does not fit.
    pub fn slice(&mut self, t: Tensor, range: Range<usize>) -> Result<Tensor> {
        let info = self.viewable(t, "slice")?;
        let shape = &info.spec.shape;
        if range.is_empty() || shape.first().is_none_or(|&n| range.end > n) {
            return Err(Error::shape(
                "slice",
                &info.name,
                format!("a first axis that holds {range:?}"),
                info.spec.to_string(),
            ));
        }
        let mut part = Part::whole(shape);
        let scaled = |by: usize| range.start * by..range.end * by;
        if shape.len() == 1 {
            part.columns = range.clone();
        } else {
            part.rows = scaled(shape[1..shape.len() - 1].iter().product());
        }
        let mut sliced = shape.clone();
        sliced[0] = range.len();
        let origin = Origin::View { base: t, part, offset: range.start * info.strides[0] };
        let (name, needs_gradient) = (format!("{}[{range:?}]", info.name), info.needs_gradient);
        let spec = Spec { kind: info.spec.kind, shape: sliced };
        Ok(self.add_contiguous(&name, spec, origin, needs_gradient))
    }

    /// Columns `columns` of the last axis of a contiguous (B,T,C) tensor as (B,heads,T,D), in place.
    ///
    /// # Errors
    /// If the tensor is no contiguous (B,T,C), or the columns do not divide into heads.
    pub fn heads(&mut self, t: Tensor, columns: Range<usize>, heads: usize) -> Result<Tensor> {
        let info = self.viewable(t, "heads")?;
        let bad = |expected: String| Error::shape("heads", &info.name, expected, info.spec.to_string());
        let [batch, length, width] = info.spec.shape[..] else { return Err(bad("(B, T, C)".into())) };
        if columns.end > width || columns.is_empty() || heads == 0 || !columns.len().is_multiple_of(heads) {
            return Err(bad(format!("columns {columns:?} that divide into {heads} heads")));
        }
        let head_dim = columns.len() / heads;
        let (name, needs_gradient) = (format!("{}[{columns:?}]", info.name), info.needs_gradient);
        let spec = Spec { kind: info.spec.kind, shape: vec![batch, heads, length, head_dim] };
        let strides = vec![length * width, head_dim, width, 1];
        let part = Part { rows: 0..batch * length, columns: columns.clone() };
        let origin = Origin::View { base: t, part, offset: columns.start };
        Ok(self.add(name, spec, strides, origin, needs_gradient))
    }

    /// The same elements under another shape. The tensor must lie in memory in the new shape's order: any contiguous
    /// tensor, or a (B,H,T,D) output stored as (B,T,H,D) seen as (B,T,H·D).
    ///
    /// # Errors
    /// If the number of elements differs or the order in memory is another.
    pub fn reshape(&mut self, t: Tensor, shape: &[usize]) -> Result<Tensor> {
        let info = &self.tensors[t.0];
        let numel: usize = shape.iter().product();
        let in_order = is_contiguous(&info.spec.shape, &info.strides) || {
            let [b, h, length, d] = info.spec.shape[..] else {
                return Err(Error::shape("reshape", &info.name, "a contiguous tensor", info.spec.to_string()));
            };
            info.strides == [length * h * d, d, h * d, 1] && shape == [b, length, h * d]
        };
        if numel != info.spec.numel() || !in_order {
            let expected = format!("{} elements in the order of {shape:?}", numel);
            return Err(Error::shape("reshape", &info.name, expected, info.spec.to_string()));
        }
        if matches!(info.origin, Origin::View { .. }) {
            return Err(Error::shape("reshape", &info.name, "a tensor that is no view", "a view"));
        }
        let (name, kind, needs_gradient) = (info.name.clone(), info.spec.kind, info.needs_gradient);
        let part = Part::whole(&info.spec.shape);
        let spec = Spec { kind, shape: shape.to_vec() };
        Ok(self.add_contiguous(&name, spec, Origin::View { base: t, part, offset: 0 }, needs_gradient))
    }

    /// A tensor's sizes.
    pub fn shape(&self, t: Tensor) -> &[usize] {
        &self.tensors[t.0].spec.shape
    }

    /// A tensor's name: the user's for inputs and parameters, the op's for what is computed.
    pub fn name(&self, t: Tensor) -> &str {
        &self.tensors[t.0].name
    }

    /// All parameters, in the order in which they were recorded.
    pub fn parameters(&self) -> Vec<Tensor> {
        let trained = |i: &Info| matches!(i.origin, Origin::Parameter { .. });
        (0..self.tensors.len()).filter(|&i| trained(&self.tensors[i])).map(Tensor).collect()
    }

    /// All tensors that are part of the model and not trained, likewise.
    pub fn frozen_tensors(&self) -> Vec<Tensor> {
        (0..self.tensors.len()).filter(|&i| self.tensors[i].origin == Origin::Frozen).map(Tensor).collect()
    }

    /// All tensors that are written from outside: by the user, or as constants by the plan.
    pub fn fed(&self) -> Vec<Tensor> {
        let fed = |i: &Info| matches!(i.origin, Origin::Fed { .. } | Origin::Frozen);
        (0..self.tensors.len()).filter(|&i| fed(&self.tensors[i])).map(Tensor).collect()
    }

    /// Kind and sizes.
    pub fn spec(&self, t: Tensor) -> &Spec {
        &self.tensors[t.0].spec
    }

    /// Whether backward computes a gradient for it.
    pub fn needs_gradient(&self, t: Tensor) -> bool {
        self.tensors[t.0].needs_gradient
    }
}
