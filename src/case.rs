//! A validation case: a small graph with its data, which every device must compute alike.

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::op::Update;
use crate::ops::copy::Copy;
use crate::philox::Philox;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

type Build = dyn Fn(&mut CaseGraph) -> Result<Vec<Tensor>> + Send + Sync;

/// One case of one op.
#[derive(Clone)]
pub struct Case {
    /// What is special about it: shapes and options.
    pub name: String,
    /// Whether it runs in every thread order and copy policy, not only in one chosen by its hash.
    pub every_order: bool,
    /// Whether it is many blocks of what smaller cases do: too slow for sanitizers, which would learn nothing new.
    pub large: bool,
    /// Whether it is about index arithmetic, which is the same in every precision: f32 shows it.
    pub of_indices: bool,
    /// Whether a second derivative jumps at its inputs, so that central differences err in the first order of the step.
    pub kink: bool,
    /// What follows backward, if anything.
    pub training: Option<Training>,
    build: Arc<Build>,
}

/// Updates that follow backward, for three steps.
#[derive(Clone)]
pub struct Training {
    /// In their order.
    pub updates: Vec<Arc<dyn Update>>,
    /// Parameter-sized buffers that they need.
    pub slots: usize,
    /// The hyper-parameters of a step; the first step is 1.
    pub hyper: fn(u64) -> Vec<f64>,
}

/// What a case's input holds.
#[derive(Debug, Clone)]
pub enum Data {
    /// Floating point.
    Real(Vec<f64>),
    /// Integers.
    Int(Vec<i32>),
}

/// A graph under construction, with its inputs' data.
#[derive(Clone)]
pub struct CaseGraph {
    graph: Graph,
    /// Each input or parameter, and what it holds.
    pub data: Vec<(Tensor, Data)>,
    seed: u64,
}

impl Deref for CaseGraph {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl DerefMut for CaseGraph {
    fn deref_mut(&mut self) -> &mut Graph {
        &mut self.graph
    }
}

impl Case {
    /// A case that records ops on inputs of its making and returns the outputs to compare.
    pub fn new(
        name: impl Into<String>,
        build: impl Fn(&mut CaseGraph) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            every_order: false,
            large: false,
            of_indices: false,
            kink: false,
            training: None,
            build: Arc::new(build),
        }
    }

    /// The same case, followed by updates of its parameters.
    pub fn followed_by(mut self, updates: Vec<Arc<dyn Update>>, slots: usize, hyper: fn(u64) -> Vec<f64>) -> Case {
        self.training = Some(Training { updates, slots, hyper });
        self
    }

    /// The same case, run in all thread orders and copy policies.
    pub fn in_every_order(mut self) -> Case {
        self.every_order = true;
        self
    }

    /// The same case, marked as large.
    pub fn large(mut self) -> Case {
        self.large = true;
        self
    }

    /// The same case, marked as about indices.
    pub fn of_indices(mut self) -> Case {
        self.of_indices = true;
        self
    }

    /// The same case, marked as one at a kink: see [`Case::kink`].
    pub fn at_a_kink(mut self) -> Case {
        self.kink = true;
        self
    }

    /// A hash of the name (FNV-1a): it seeds the data and chooses the thread order.
    pub fn seed(&self) -> u64 {
        self.name.bytes().fold(0xcbf29ce484222325, |h, b| (h ^ b as u64).wrapping_mul(0x100000001b3))
    }

    /// Builds the graph: with its data, and the outputs to compare.
    pub fn build(&self) -> Result<(CaseGraph, Vec<Tensor>)> {
        let mut graph = CaseGraph { graph: Graph::new(), data: Vec::new(), seed: self.seed() };
        let outputs = (self.build)(&mut graph)?;
        Ok((graph, outputs))
    }
}

impl CaseGraph {
    /// A differentiable input with standard normal values.
    pub fn normal(&mut self, name: &str, shape: &[usize]) -> Tensor {
        self.scaled(name, shape, 1.0)
    }

    /// A differentiable input with normal values of this standard deviation.
    pub fn scaled(&mut self, name: &str, shape: &[usize], deviation: f64) -> Tensor {
        let values = self.draw(shape.iter().product(), deviation);
        self.given(name, shape, values)
    }

    /// A differentiable input with these values.
    pub fn given(&mut self, name: &str, shape: &[usize], values: Vec<f64>) -> Tensor {
        let t = self.graph.variable(name, shape);
        self.data.push((t, Data::Real(values)));
        t
    }

    /// A parameter with standard normal values, and something computed from it whose gradient is also its own.
    pub fn trained(&mut self, name: &str, shape: &[usize], decay: bool) -> Result<Tensor> {
        let values = self.draw(shape.iter().product(), 1.0);
        let parameter = self.graph.parameter(name, shape, decay);
        self.data.push((parameter, Data::Real(values)));
        self.graph.one(Copy, &[parameter])
    }

    /// A parameter for an op that takes it as a weight, with normal values of this standard deviation.
    pub fn weight(&mut self, name: &str, shape: &[usize], deviation: f64) -> Tensor {
        let values = self.draw(shape.iter().product(), deviation);
        let parameter = self.graph.parameter(name, shape, true);
        self.data.push((parameter, Data::Real(values)));
        parameter
    }

    /// Integers, each in `range`.
    pub fn ints(&mut self, name: &str, shape: &[usize], range: Range<i64>, values: Vec<i32>) -> Tensor {
        let t = self.graph.indices(name, shape, range);
        self.data.push((t, Data::Int(values)));
        t
    }

    /// Normal values that depend on the case's name and on how many inputs there are already.
    pub fn draw(&self, n: usize, deviation: f64) -> Vec<f64> {
        // Rounded to f32, so that every precision starts from the same numbers.
        let generator = Philox::new(self.seed, self.data.len() as u32, 0);
        (0..n as u64).map(|i| (generator.normal(i) * deviation) as f32 as f64).collect()
    }
}
