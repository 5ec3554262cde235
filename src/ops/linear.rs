//! y = g(x·W + b), x (…, I), y (…, O); W is stored as PyTorch's nn.Linear has it, (O, I), or as GPT-2's Conv1D, (I, O).
//! g is the identity, a GELU, the ReLU or tanh; b may be absent.
//!
//! With such a g, g′(x·W + b) is saved rather than x·W + b: it takes the same memory, and the tanh or erf is computed once.
//! dz = dy·g′; dx = dz·Wᵀ; dW = xᵀ·dz; db = Σ dz over the rows.

mod cpu;
mod gpu;

pub(crate) use cpu::{activate, product};
use gpu::partials;
pub(crate) use gpu::{activation_define, sum_columns, sum_scratch};

use crate::case::Case;
use crate::cpu::Matrix;
use crate::error::{Error, Result};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// (O, I), as nn.Linear stores it.
    OutIn,
    /// (I, O), as GPT-2's Conv1D stores it.
    InOut,
}

/// What a layer applies to its sums: one of the two forms of GELU, the ReLU, or tanh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))): GPT-2's GELU.
    GeluTanh,
    /// z·Φ(z): nn.GELU's default.
    GeluErf,
    /// max(z, 0); its derivative at 0 is 0.
    Relu,
    /// tanh z.
    Tanh,
}

/// y = g(x·W + b), on [x (…, I), weight] or [x, weight, bias (O)].
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// How the weight lies in memory.
    pub weight: WeightLayout,
    /// Whether there is a bias.
    pub bias: bool,
    /// What follows; `None`: nothing.
    pub activation: Option<Activation>,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "linear",
    summary: "y = g(x·W + b), g a GELU, the ReLU, tanh or nothing",
    cases,
    run: Some(&RUN),
    attention: None,
};

struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    /// nn.Linear: weight (O, I), a bias, nothing after it.
    pub const TORCH: Linear = Linear { weight: WeightLayout::OutIn, bias: true, activation: None };

    fn sizes(&self, x: &[usize], weight: &[usize]) -> Sizes {
        let outputs = if self.weight == WeightLayout::OutIn { weight[0] } else { weight[1] };
        Sizes { rows: x[..x.len() - 1].iter().product(), inputs: x[x.len() - 1], outputs }
    }

    /// W as a matrix (I, O).
    fn matrix<'a, R>(&self, weight: &'a [R], s: &Sizes) -> Matrix<'a, R> {
        match self.weight {
            WeightLayout::OutIn => Matrix::new(weight, s.inputs).t(),
            WeightLayout::InOut => Matrix::new(weight, s.outputs),
        }
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 2 + self.bias as usize, "x, weight and the bias if there is one")?;
        let (rows, columns) = rows_and_columns(self.name(), "x", inputs[0])?;
        let out_in = self.weight == WeightLayout::OutIn;
        let outputs = match inputs[1].shape[..] {
            [o, i] if inputs[1].kind == Kind::Real && out_in && i == columns && o > 0 => o,
            [i, o] if inputs[1].kind == Kind::Real && !out_in && i == columns && o > 0 => o,
            _ => {
                let expected = if out_in { format!("real (O, {columns})") } else { format!("real ({columns}, O)") };
                return Err(Error::shape(self.name(), "weight", expected, inputs[1].to_string()));
            }
        };
        if self.bias {
            expect(self.name(), "bias", inputs[2], Spec::real([outputs]))?;
        }
        let mut shape = inputs[0].shape.clone();
        *shape.last_mut().expect("at least one axis") = outputs;
        let activated = self.activation.is_some();
        Ok(Contract {
            saved: if activated { vec![Spec::real(shape.clone())] } else { vec![] },
            outputs: vec![Output::real(shape)],
            scratch_backward: if activated { rows * outputs } else { 0 } + partials(rows) * outputs,
            backward_reads_inputs: [true, true, false][..inputs.len()].to_vec(),
            weights: [false, true, true][..inputs.len()].to_vec(),
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let (x, w, y) = ((s.rows * s.inputs) as f64, (s.inputs * s.outputs) as f64, (s.rows * s.outputs) as f64);
        let saved = if self.activation.is_some() { y } else { 0.0 };
        let product = 2.0 * x * s.outputs as f64;
        Cost {
            forward_flops: product,
            forward_bytes: 4.0 * (x + w + y + saved),
            backward_flops: 2.0 * product,
            backward_bytes: 4.0 * (2.0 * x + 2.0 * w + y + saved),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(…,I)", optional: false },
        TensorDoc { name: "weight", shape: "(O,I)", optional: false },
        TensorDoc { name: "bias", shape: "(O)", optional: true },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(…,O)", optional: false }],
    options: &[OptionDoc { name: "gelu", value: Some("tanh|erf"), help: "applies this GELU to the result" }],
    record: |run| {
        let activation = match run.options.get("gelu").map(String::as_str) {
            None => None,
            Some("tanh") => Some(Activation::GeluTanh),
            Some("erf") => Some(Activation::GeluErf),
            Some(other) => return Err(Error::argument(format!("--gelu {other}"), "is no GELU", "give tanh or erf")),
        };
        let mut inputs = vec![run.real_of_any_shape("x")?, run.real("weight", "(O,I)")?];
        if run.has("bias") {
            inputs.push(run.real("bias", "(O)")?);
        }
        let op = Linear { weight: WeightLayout::OutIn, bias: inputs.len() == 3, activation };
        run.graph.record(op, &inputs)
    },
};

fn cases() -> Vec<Case> {
    use WeightLayout::{InOut, OutIn};
    let case = |x: &'static [usize], outputs: usize, weight, bias, activation: Option<Activation>| {
        let name = format!("{x:?} to {outputs} {weight:?} bias {bias} {activation:?}");
        Case::new(name, move |g| {
            let inputs = x[x.len() - 1];
            let shape = if weight == OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let mut tensors = vec![g.normal("x", x), g.scaled("weight", &shape, (inputs as f64).powf(-0.5))];
            if bias {
                tensors.push(g.normal("bias", &[outputs]));
            }
            g.record(Linear { weight, bias, activation }, &tensors)
        })
    };
    // The ReLU's slope jumps at 0, where rounding would decide it: all sums here are halves of odd integers, in every
    // precision exactly.
    let relu = |rows: usize, inputs: usize, outputs: usize, weight, bias| {
        Case::new(format!("[{rows}, {inputs}] to {outputs} {weight:?} bias {bias} ReLU"), move |g| {
            let shape = if weight == OutIn { [outputs, inputs] } else { [inputs, outputs] };
            let input = |i: usize| if weight == OutIn { i % inputs } else { i / outputs };
            let x = |i: usize| if i.is_multiple_of(inputs) { 0.5 } else { (i * 7 % 5) as f64 - 2.0 };
            let w = |i: usize| if input(i) == 0 { 1.0 } else { (i * 11 % 7 % 3) as f64 - 1.0 };
            let mut tensors = vec![
                g.given("x", &[rows, inputs], (0..rows * inputs).map(x).collect()),
                g.given("weight", &shape, (0..inputs * outputs).map(w).collect()),
            ];
            if bias {
                tensors.push(g.given("bias", &[outputs], (0..outputs).map(|o| (o % 3) as f64 - 1.0).collect()));
            }
            g.record(Linear { weight, bias, activation: Some(Activation::Relu) }, &tensors)
        })
    };
    // A layer used twice: the second use's gradients are added to the first's.
    let twice = Case::new("one layer twice", |g| {
        let x = g.normal("x", &[300, 37]);
        let (w, b) = (g.scaled("weight", &[37, 37], 0.2), g.normal("bias", &[37]));
        let op = Linear { activation: Some(Activation::GeluTanh), ..Linear::TORCH };
        let y = g.one(op, &[x, w, b])?;
        g.record(op, &[y, w, b])
    });
    // Parameters, which a 16-bit device keeps in f32 beside what the layer reads.
    let trained = Case::new("a layer of parameters", |g| {
        let x = g.normal("x", &[37, 65]);
        let (w, b) = (g.weight("weight", &[33, 65], 0.1), g.weight("bias", &[33], 1.0));
        g.record(Linear::TORCH, &[x, w, b])
    });
    vec![
        case(&[1], 1, OutIn, true, None),
        case(&[37, 65], 1, InOut, true, Some(Activation::GeluErf)),
        case(&[2, 5, 37], 65, OutIn, true, Some(Activation::GeluTanh)).in_every_order(),
        case(&[300, 1], 37, OutIn, true, Some(Activation::GeluErf)).in_every_order(),
        case(&[300, 5], 33, InOut, true, None),
        case(&[37, 128], 128, InOut, false, Some(Activation::GeluTanh)),
        case(&[65, 65], 37, OutIn, false, None),
        case(&[3, 1000], 128, InOut, true, Some(Activation::GeluTanh)),
        case(&[3, 128], 1000, OutIn, true, None),
        case(&[0, 37], 65, OutIn, true, Some(Activation::GeluTanh)),
        // More rows than one part has on the CPU; a weight that is large to it.
        case(&[600, 5], 7, InOut, true, Some(Activation::GeluErf)),
        case(&[65, 37], 33, OutIn, true, Some(Activation::Tanh)),
        case(&[3, 300], 300, InOut, true, Some(Activation::GeluErf)),
        relu(3, 5, 37, OutIn, true),
        relu(300, 17, 33, InOut, false).in_every_order(),
        twice,
        trained,
    ]
}
